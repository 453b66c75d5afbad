"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drupe import ops
from drupe.autograd import SparseRows
from drupe.optim.optimizer import Optimizer, Params
from drupe.tensor import Tensor


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; the formula is :func:`drupe.ops.sgd`'s.

    Args:
        params: tensors or groups.
        lr: the learning rate.
        momentum: how much of the last update stays.
        nesterov: look ahead; needs momentum.
        weight_decay: L2 factor, added to the gradient.
        l1: L1 factor, added to the gradient.
        master_weights: keep float32 copies of 16-bit parameters (see :class:`Optimizer`).
        stochastic_rounding: round 16-bit parameters by chance; not together with copies.
        seed: of that, and of what narrow states draw.
        state_dtype: float32, bfloat16 or uint8 (see :class:`Optimizer`).
        capturable: let steps be captured in a graph (see :class:`Optimizer`).

    Raises:
        ValueError: an option that is negative or not finite.
    """

    name = "SGD"

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
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
            "momentum": momentum,
            "nesterov": nesterov,
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
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("[SGD] nesterov needs a momentum above 0")

    def _state_names(self, group: Mapping[str, Any]) -> Sequence[str]:
        return ("buffer",) if group["momentum"] else ()

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor | SparseRows],
        step: int | list[Tensor],
        grad_scale: float | Tensor,
        precision: dict[str, Any],
    ) -> None:
        ops.sgd(
            params,
            grads,
            self._states(params, "buffer") if group["momentum"] else (),
            lr=group["lr"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            l1=group["l1"],
            grad_scale=grad_scale,
            **precision,
            steps=() if isinstance(step, int) else step,
        )
