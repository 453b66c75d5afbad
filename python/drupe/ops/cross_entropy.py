"""Cross entropy of class labels."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def cross_entropy(
    logits: A,
    labels: Array,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> A:
    """Cross entropy fused with log-softmax: ``-(1 - s) w_y log p_y - s / C sum_c w_c log p_c``, p = softmax(logits).

    The logits are read once, and no probabilities are stored. ``"mean"`` divides the sum of the losses by the sum of
    ``w_y`` over the labels that are not ignored, and is 0 where there are none.

    Args:
        logits: (..., C), float; copied unless C-contiguous. -infinity is a class of probability 0; a row with NaN or
            +infinity, or of -infinity alone, gives NaN.
        labels: (...), int32 or int64, each in [0, C) or ``ignore_index``.
        weight: (C,), w, the dtype of ``logits``, or float32 for 16-bit ``logits``; 1 where left out. No gradient.
        ignore_index: labels of this value have a loss and a gradient of 0.
        label_smoothing: s, 0 to 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        (), or (...) for ``"none"``; float64 for float64 logits, float32 otherwise.

    Raises:
        IndexError: a label that is out of range.
        ValueError: shapes that do not fit, an option out of range, a weight that requires a gradient.
        TypeError: a dtype that is not as above.

    Reference:
        M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867; C. Szegedy et al.,
        "Rethinking the Inception Architecture", arXiv:1512.00567, section 7.
    """
    call = Call("cross_entropy", logits, labels, weight)
    if call.needs_grad(2):
        raise ValueError("[cross_entropy] weight requires a gradient, which it does not get: pass weight.detach()")
    rlogits, rlabels, rweight = call.raw
    options = (ignore_index, label_smoothing, reduction)
    loss, sums, total = _C.cross_entropy(rlogits, rlabels, rweight, *options)

    def backward(dloss: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        return _C.cross_entropy_backward(dloss, rlogits, rlabels, rweight, sums, total, *options), None, None

    return call.output(loss, backward)
