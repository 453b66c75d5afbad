"""Connectionist temporal classification."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def ctc_loss(
    logits: A,
    targets: Array,
    input_lengths: Array | None = None,
    target_lengths: Array | None = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> A:
    """Negative log-likelihood of label sequences under all their alignments, fused with log-softmax.

    An alignment of the labels is a sequence of one class a step that gives them once equal neighbours are merged and
    blanks are dropped. With ``p_t = softmax(logits[t, b])``, the loss of row b is
    ``-log sum_a prod_t p_t[a_t]`` over all alignments a of its ``input_lengths[b]`` steps.

    Logarithms of probabilities may be given for logits, as to PyTorch's loss of that name: they are their own
    log-softmax, and the gradient is the same. Sums are kept as numbers with an exponent of any size, whose relative
    error does not grow as the likelihood shrinks. Where a gradient is wanted it is found in the same call, so that
    nothing of the size of the alignments is kept.

    Args:
        logits: (T, B, C), time first; float. Copied unless it is C-contiguous.
        targets: (B, L), padded with anything, or (sum of ``target_lengths``,), one row's after the other's; int32 or
            int64. Those that count are in [0, C) and not ``blank``.
        input_lengths: (B,), int32 or int64, 0 to T: how many steps count; T by default. Those after them have a
            gradient of 0.
        target_lengths: (B,), int32 or int64, 0 to L: how many labels count; L by default, for padded targets.
        blank: the class that stands for no label.
        reduction: ``"none"``; ``"sum"``; or ``"mean"``, which divides each row's loss by its number of labels (by 1
            if it has none) and then takes the mean over the rows, 0 if there are none.
        zero_infinity: makes infinite losses and their gradients 0.

    Returns:
        () or, for ``"none"``, (B,); float64 for float64 logits, float32 otherwise. It is infinite where no alignment
        is possible (more labels than steps, counting one step more between equal neighbours, or classes of probability
        0), in float32 also above 1e37, and then the row's gradient is NaN. A row of C logits with NaN or +infinity, or
        with -infinity alone, makes the loss and the gradient of its row of the batch NaN.

    Raises:
        IndexError: a label that is out of range or the blank.
        ValueError: shapes that do not fit, lengths out of range, a ``blank`` that is no class; while a graph is
            captured, targets that are not padded.
        TypeError: a dtype that is not as above.

    Reference:
        A. Graves, S. Fernandez, F. Gomez, J. Schmidhuber, "Connectionist Temporal Classification: Labelling
        Unsegmented Sequence Data with Recurrent Neural Networks", ICML 2006.
    """
    call = Call("ctc_loss", logits, targets, input_lengths, target_lengths)
    rlogits, rtargets, rinput, rtarget = call.raw
    wanted = call.needs_grad(0)
    loss, gradient = _C.ctc_loss(rlogits, rtargets, rinput, rtarget, blank, reduction, zero_infinity, wanted)

    def backward(dloss: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        assert gradient is not None
        return _C.ctc_loss_backward(dloss, gradient, rlogits), None, None, None

    return call.output(loss, backward)
