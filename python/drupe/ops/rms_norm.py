"""Root mean square normalisation."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def rms_norm(
    x: A,
    weight: Array | None = None,
    *,
    residual: Array | None = None,
    eps: float = 1e-5,
    ndim: int = 1,
) -> A:
    """Root mean square normalisation: ``h / sqrt(mean(h^2) + eps) * weight`` with ``h = x + residual``.

    The mean is taken over the trailing ``ndim`` dimensions, in float32 for float16 and bfloat16. The sum ``h`` is never
    stored: backward forms it again.

    Args:
        x: (..., D…), float; copied unless it is C-contiguous, as is ``residual``.
        weight: (D…), the dtype of ``x``, or float32 for 16-bit ``x``; 1 where left out.
        residual: as ``x``, added to it before it is normalised.
        eps: added to the mean square; finite, not negative.
        ndim: how many trailing dimensions D… are normalised together.

    Returns:
        The shape and dtype of ``x``, C-contiguous.

    Raises:
        ValueError: shapes that do not fit, ``ndim`` or ``eps`` out of range.
        TypeError: a dtype that is not float, or one that does not go with that of ``x``.

    Reference:
        B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467, section 4.
    """
    call = Call("rms_norm", x, weight, residual)
    rx, rweight, rresidual = call.raw
    y, rstd = _C.rms_norm(rx, rweight, rresidual, eps, ndim)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        dx, dweight = _C.rms_norm_backward(dy, rx, rweight, rresidual, rstd, ndim)
        return dx, dweight, dx

    return call.output(y, backward)
