"""Quantisation to int8."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Call


def quantize_int8(x: A, axis: int = -1) -> tuple[A, A]:
    """Quantise symmetrically to int8: ``scale = max|x| / 127`` along an axis, ``q = round(x / scale)``.

    In float32, each operation rounded once, ties to even: the same bits on every device. ``q`` stays within -127 and
    127, and ``x`` is about ``q * scale``. For inference: nothing is recorded for gradients.

    Args:
        x: any shape of at least one dimension, float; float64 is rounded to float32 first.
        axis: the dimension that shares a scale: K of a matrix for :func:`gemm_int8`.

    Returns:
        ``q``, int8, of the shape of ``x`` and contiguous along ``axis``; ``scale``, float32, the shape of ``x``
        without ``axis``. A row of zeros, or one so small that its scale is 0 in float32, gives scale 0 and q 0. A row
        with a NaN or an infinity gives scale NaN and q 0: dequantised, all of it is NaN.

    Raises:
        ValueError: ``x`` has no dimension.
        IndexError: there is no such axis.
        TypeError: not a float dtype.
        RuntimeError: gradients are enabled and ``x`` requires one.
    """
    call = Call("quantize_int8", x)
    if call.recorded:
        raise RuntimeError("[quantize_int8] x requires a gradient, and this op has none: call it in drupe.no_grad()")
    q, scale = call.outputs(_C.quantize_int8(call.raw[0], axis))
    return q, scale
