"""Squared error."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def mse(a: A, b: Array, *, reduction: str = "mean") -> A:
    """Squared error: ``(a - b)^2`` of each element, and the mean or the sum of these.

    Args:
        a: any shape, float; copied unless C-contiguous, as is ``b``.
        b: the shape and dtype of ``a``; nothing broadcasts.
        reduction: ``"mean"``, which is 0 for no elements, ``"sum"`` or ``"none"``.

    Returns:
        (), or the shape of ``a`` for ``"none"``; float64 for float64, float32 otherwise.

    Raises:
        ValueError: shapes that differ, an unknown reduction.
        TypeError: a dtype that is not float, or dtypes that differ.
    """
    call = Call("mse", a, b)
    ra, rb = call.raw
    loss = _C.mse(ra, rb, reduction)
    wanted = call.needs_grad(0), call.needs_grad(1)

    def backward(dloss: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        da, db = _C.mse_backward(dloss, ra, rb, reduction, *wanted)
        return da if wanted[0] else None, db if wanted[1] else None

    return call.output(loss, backward)
