"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drupe import ops
from drupe.autograd import SparseRows
from drupe.optim.optimizer import Optimizer, Params
from drupe.tensor import Tensor


class RMSprop(Optimizer):
    """RMSprop; the formula is :func:`drupe.ops.rmsprop`'s.

    Args:
        params: tensors or groups.
        lr: the learning rate.
        alpha: how much of the mean of squares stays, in [0, 1).
        eps: keeps the quotient finite.
        momentum: how much of the last update stays.
        centered: divide by the standard deviation.
        weight_decay: L2 factor, added to the gradient.
        l1: L1 factor, added to the gradient.
        master_weights: keep float32 copies of 16-bit parameters (see :class:`Optimizer`).
        stochastic_rounding: round 16-bit parameters by chance; not together with copies.
        seed: of that, and of what narrow states draw.
        state_dtype: float32, bfloat16 or uint8 (see :class:`Optimizer`); centered needs float32.
        capturable: let steps be captured in a graph (see :class:`Optimizer`).

    Raises:
        ValueError: an option out of its range.
    """

    name = "RMSprop"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str = "float32",
        capturable: bool = False,
    ) -> None:
        options = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "centered": centered,
            "weight_decay": weight_decay,
            "l1": l1,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "seed": seed,
            "state_dtype": state_dtype,
        }
        super().__init__(params, options, capturable=capturable)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        self._check_number("alpha", group["alpha"], below=1)
        if group["centered"] and group["state_dtype"] != "float32":
            raise ValueError(f"[RMSprop] centered needs float32 states, state_dtype is {group['state_dtype']}")

    def _state_names(self, group: Mapping[str, Any]) -> Sequence[str]:
        names = ["square_avg"]
        if group["centered"]:
            names.append("grad_avg")
        if group["momentum"]:
            names.append("buffer")
        return names

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor | SparseRows],
        step: int | list[Tensor],
        grad_scale: float | Tensor,
        precision: dict[str, Any],
    ) -> None:
        ops.rmsprop(
            params,
            grads,
            self._states(params, "square_avg"),
            self._states(params, "grad_avg") if group["centered"] else (),
            self._states(params, "buffer") if group["momentum"] else (),
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            momentum=group["momentum"],
            centered=group["centered"],
            weight_decay=group["weight_decay"],
            l1=group["l1"],
            grad_scale=grad_scale,
            **precision,
            steps=() if isinstance(step, int) else step,
        )
