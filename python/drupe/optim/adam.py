"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drupe import ops
from drupe.autograd import SparseRows
from drupe.optim.optimizer import Optimizer, Params
from drupe.tensor import Tensor


class Adam(Optimizer):
    """Adam; the formula is :func:`drupe.ops.adam`'s.

    Args:
        params: tensors or groups.
        lr: the learning rate.
        betas: how much of the means of the gradient and its square stays, in [0, 1).
        eps: keeps the quotient finite.
        weight_decay: L2 factor, added to the gradient.
        l1: L1 factor, added to the gradient.
        master_weights: keep float32 copies of 16-bit parameters (see :class:`Optimizer`).
        stochastic_rounding: round 16-bit parameters by chance; not together with copies.
        seed: of that, and of what narrow states draw.
        state_dtype: float32, bfloat16 or uint8 (see :class:`Optimizer`).
        capturable: let steps be captured in a graph (see :class:`Optimizer`).

    Raises:
        ValueError: an option out of its range.
    """

    name = "Adam"
    _op: Callable[..., None] = staticmethod(ops.adam)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
            "betas": betas,
            "eps": eps,
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
        if len(group["betas"]) != 2:
            raise ValueError(f"[{self.name}] betas is {group['betas']}: expected two numbers")
        for i, beta in enumerate(group["betas"]):
            self._check_number(f"betas[{i}]", beta, below=1)

    def _state_names(self, group: Mapping[str, Any]) -> Sequence[str]:
        return ("exp_avg", "exp_avg_sq")

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor | SparseRows],
        step: int | list[Tensor],
        grad_scale: float | Tensor,
        precision: dict[str, Any],
    ) -> None:
        self._op(
            params,
            grads,
            self._states(params, "exp_avg"),
            self._states(params, "exp_avg_sq"),
            step=step,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            l1=group["l1"],
            grad_scale=grad_scale,
            **precision,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay; arguments and errors as :class:`Adam`, formula :func:`drupe.ops.adamw`'s."""

    name = "AdamW"
    _op: Callable[..., None] = staticmethod(ops.adamw)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        l1: float = 0.0,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str = "float32",
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            l1=l1,
            master_weights=master_weights,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            state_dtype=state_dtype,
            capturable=capturable,
        )
