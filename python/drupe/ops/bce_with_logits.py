"""Binary cross entropy of logits."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call


def bce_with_logits(
    logits: A,
    targets: Array,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: str = "mean",
) -> A:
    """Binary cross entropy: ``-weight (pos_weight t log sigmoid(z) + (1 - t) log sigmoid(-z))`` of each element.

    Computed from the logits z without overflow or cancellation. A term whose factor t or 1 - t is 0 is 0, so that
    infinite logits of the right sign cost nothing. ``"mean"`` divides by the number of elements; it is 0 for none.

    Args:
        logits: z, any shape, float; copied unless C-contiguous, as are the others.
        targets: t, the shape of ``logits``; its dtype, or integers or bool. Probabilities, though that is not checked.
        weight: broadcastable to that shape, the dtype of ``logits``; 1 where left out. No gradient.
        pos_weight: as ``weight``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        (), or the shape of ``logits`` for ``"none"``; float64 for float64 logits, float32 otherwise.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction, a weight that requires a gradient.
        TypeError: a dtype that is not as above.
    """
    call = Call("bce_with_logits", logits, targets, weight, pos_weight)
    if call.needs_grad(2, 3):
        raise ValueError("[bce_with_logits] weight or pos_weight requires a gradient, which neither gets: detach() it")
    rlogits, rtargets, rweight, rpos = call.raw
    loss = _C.bce_with_logits(rlogits, rtargets, rweight, rpos, reduction)
    wanted = call.needs_grad(1)

    def backward(dloss: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        dlogits, dtargets = _C.bce_with_logits_backward(dloss, rlogits, rtargets, rweight, rpos, reduction, wanted)
        return dlogits, dtargets if wanted else None, None, None

    return call.output(loss, backward)
