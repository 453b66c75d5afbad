"""Clipping of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, overload

from drupe import ops
from drupe.autograd import SparseRows
from drupe.tensor import Tensor, as_tensor


def _gradients(parameters: Iterable[Tensor] | Tensor) -> list[tuple[Tensor, Tensor | SparseRows]]:
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [(p, p.grad) for p in params if p.grad is not None]


@overload
def clip_grad_norm(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, *, capturable: Literal[False] = False
) -> float: ...
@overload
def clip_grad_norm(parameters: Iterable[Tensor] | Tensor, max_norm: float, *, capturable: Literal[True]) -> Tensor: ...


def clip_grad_norm(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, *, capturable: bool = False
) -> float | Tensor:
    """Scale all gradients by ``min(1, max_norm / norm)``, where norm is that of all of them together.

    Gradients are replaced, not changed in place: others may hold the same memory. A norm that is not finite leaves
    them as they are.

    Args:
        parameters: tensors; those without a gradient do not count.
        max_norm: a finite number above 0.
        capturable: decide on the device, and do not wait for it: what a :class:`drupe.cuda.Graph` needs. The gradients
            are then multiplied by 1 where they are not clipped. (:func:`drupe.ops.clip_factor` gives the factor alone,
            which an optimizer's ``step(grad_scale=…)`` applies at no cost.)

    Returns:
        The norm before clipping; with ``capturable`` a float64 tensor of no dimensions, where the gradients lie.

    Raises:
        ValueError: ``max_norm`` is not a finite number above 0.

    Reference:
        R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
        algorithm 1.
    """
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"[clip_grad_norm] max_norm is {max_norm}: expected a finite number above 0")
    pairs = _gradients(parameters)
    if capturable:
        norm_there, factor = ops.clip_factor([grad for _, grad in pairs], max_norm)
        for p, grad in pairs:
            _replace(p, grad, lambda x: _scale(x, factor))
        return norm_there
    norm = ops.global_norm([grad for _, grad in pairs])
    if math.isfinite(norm) and norm > max_norm:
        for p, grad in pairs:
            _replace(p, grad, lambda x: _scale(x, max_norm / norm))
    return norm


def _scale(x: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply in the accumulator's dtype: a small factor is nothing in float16."""
    wide = as_tensor(x, "float64" if x.raw.dtype == "float64" else "float32")
    product = ops.mul(wide, as_tensor(factor, wide.dtype) if isinstance(factor, Tensor) else factor)
    return as_tensor(product, x.dtype)


def clip_grad_value(parameters: Iterable[Tensor] | Tensor, max_value: float) -> None:
    """Limit every element of every gradient to [-max_value, max_value]; gradients are replaced. NaN stays NaN.

    Args:
        parameters: tensors; those without a gradient do not count.
        max_value: a finite number above 0.

    Raises:
        ValueError: ``max_value`` is not a finite number above 0.
    """
    if not (math.isfinite(max_value) and max_value > 0):
        raise ValueError(f"[clip_grad_value] max_value is {max_value}: expected a finite number above 0")
    for p, grad in _gradients(parameters):
        _replace(p, grad, lambda x: ops.minimum(ops.maximum(x, -max_value), max_value))


def _replace(p: Tensor, grad: Tensor | SparseRows, change: Callable[[Tensor], Tensor]) -> None:
    if isinstance(grad, SparseRows):
        p.set_raw_grad(SparseRows(grad.indices, change(Tensor(grad.values)).raw, grad.shape))
    else:
        p.set_raw_grad(change(grad).raw)
