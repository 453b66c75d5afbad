"""Layer normalisation."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def layer_norm(
    x: A,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    residual: Array | None = None,
    eps: float = 1e-5,
    ndim: int = 1,
) -> A:
    """Layer normalisation: ``(h - mean(h)) / sqrt(var(h) + eps) * weight + bias`` with ``h = x + residual``.

    Mean and (biased) variance are taken over the trailing ``ndim`` dimensions, in float32 for float16 and bfloat16.
    Rows whose mean is large against their spread keep full precision. The sum ``h`` is never stored: backward forms it
    again.

    Args:
        x: (..., D…), float; copied unless it is C-contiguous, as is ``residual``.
        weight: (D…), the dtype of ``x``, or float32 for 16-bit ``x``; 1 where left out.
        bias: as ``weight``; 0 where left out.
        residual: as ``x``, added to it before it is normalised.
        eps: added to the variance; finite, not negative.
        ndim: how many trailing dimensions D… are normalised together.

    Returns:
        The shape and dtype of ``x``, C-contiguous.

    Raises:
        ValueError: shapes that do not fit, ``ndim`` or ``eps`` out of range.
        TypeError: a dtype that is not float, or one that does not go with that of ``x``.

    Reference:
        J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450, section 3.
    """
    call = Call("layer_norm", x, weight, bias, residual)
    rx, rweight, rbias, rresidual = call.raw
    y, mean, rstd = _C.layer_norm(rx, rweight, rbias, rresidual, eps, ndim)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        dx, dweight, dbias = _C.layer_norm_backward(dy, rx, rweight, rbias, rresidual, mean, rstd, ndim)
        return dx, dweight, dbias, dx

    return call.output(y, backward)
