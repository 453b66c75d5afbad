"""Group normalisation."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def group_norm(
    x: A,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    layout: str = "NCHW",
) -> A:
    """Group normalisation: ``(x - mean) / sqrt(var + eps) * weight + bias`` over groups of channels and over space.

    Mean and biased variance belong to one sample and one of ``groups`` groups of neighbouring channels: one group is
    layer normalisation of whole images, C groups are instance normalisation.

    On the CPU the result has the memory order of ``x`` where that is dense, the channels first or last, whatever the
    layout; an ``x`` that is neither is copied, and the result is contiguous. The GPU's kernels want the channels last:
    ``x`` in another memory order is copied, and the result has the channels last. In bfloat16 subnormal results (below
    1.2e-38) may be zeros.

    Args:
        x: (N, C, …), or (N, …, C) for layout ``"NHWC"``; float.
        weight: (C,), the dtype of ``x``, or float32 for 16-bit ``x``; 1 where left out.
        bias: as ``weight``; 0 where left out.
        groups: a divisor of C.
        eps: added to the variance; finite, not negative.
        layout: ``"NCHW"`` or ``"NHWC"``, whatever the number of dimensions, 2 at least.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: shapes that do not fit, ``groups`` does not divide C, an option out of range.
        TypeError: a dtype that is not float, or one that does not go with that of ``x``.

    Reference:
        Y. Wu, K. He, "Group Normalization", arXiv:1803.08494, section 3.1.
    """
    call = Call("group_norm", x, weight, bias)
    rx, rweight, rbias = call.raw
    y, mean, rstd = _C.group_norm(rx, groups, rweight, rbias, eps, layout)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        return _C.group_norm_backward(dy, rx, rweight, rbias, mean, rstd, layout)

    return call.output(y, backward)
