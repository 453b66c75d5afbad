"""Reductions over bags of a table's rows."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import _C
from drupe.autograd import Gradient, SparseRows
from drupe.ops._call import A, Array, Call


def embedding_bag(
    weight: A,
    indices: Array,
    offsets: Array | None = None,
    *,
    mode: str = "sum",
    per_sample_weights: Array | None = None,
    padding_idx: int | None = None,
    sparse: bool = False,
    tables: Sequence[int] = (),
) -> A:
    """Sum, mean or maximum of the rows in each bag, ``y[b] = reduce_{i in bag b} s[i] weight[indices[i]]``.

    The rows are reduced in their order, in float32 for float16 and bfloat16; a bag with nothing in it gives zeros.

    With ``tables``, ``weight`` holds T tables one after another, and each bag belongs to one of them, in which its
    indices count: one call and one gradient for all. :func:`hash_ids` makes indices of ids that have no vocabulary.

    Args:
        weight: (V, D), a float dtype; rows with any stride (columns that are not adjacent cost a copy).
        indices: (N,) beside ``offsets``, or (B, L); int32 or int64, in [0, V).
        offsets: (B,), int32 or int64: where each bag starts in ``indices``; the first at 0, none before the last.
        mode: ``"sum"``, ``"mean"``, or ``"max"``: of each column; NaN wins, the first of equals gets the gradient.
        per_sample_weights: the factors s, of ``indices``' shape and ``weight``'s dtype; only for ``"sum"``.
        padding_idx: a row in [-V, V) that is left out of its bags, and receives no gradient.
        sparse: give the gradient as :class:`drupe.SparseRows` instead of a whole table.
        tables: how many rows each of T tables has, V in all. Then ``indices`` is (B, T), bags of one, or (B, T, L),
            with column t for table t, or (N,) beside ``offsets`` (T, B), with all bags of a table before the next
            one's; in [0, rows of its table). The modes are ``"sum"`` and ``"mean"``; there is no ``padding_idx``.

    Returns:
        (B, D), C-contiguous; (B, T, D) with ``tables``.

    Raises:
        IndexError: an index or ``padding_idx`` that is not in the table, with its place, and its table of many.
        ValueError: shapes that do not fit, offsets that decrease or leave the indices, an unknown mode, factors with
            another mode than ``"sum"``; a bag of more than 2^24 for the gradient of ``"max"``; a mode or a
            ``padding_idx`` that many tables do not have.
        TypeError: dtypes that do not fit.
    """
    call = Call("embedding_bag", weight, indices, offsets, per_sample_weights)
    raw_weight, raw_indices, raw_offsets, scale = call.raw
    y, argmax = _C.embedding_bag(
        raw_weight, raw_indices, raw_offsets, scale, mode, padding_idx, tables, mode == "max" and call.needs_grad(0)
    )
    kept = argmax if mode == "max" else None
    shape = raw_weight.shape

    def table_gradient(dy: _C.Tensor) -> Gradient:
        bags = (dy, raw_indices, raw_offsets, scale)
        if not sparse:
            return _C.embedding_bag_backward(*bags, kept, shape[0], mode, padding_idx, tables)
        rows, values = _C.embedding_bag_backward_sparse(*bags, kept, shape[0], mode, padding_idx, tables)
        return SparseRows(rows, values, shape)

    def backward(dy: _C.Tensor) -> tuple[Gradient | None, None, None, _C.Tensor | None]:
        dweight = table_gradient(dy) if call.needs_grad(0) else None
        dscale = None
        if call.needs_grad(3):
            dscale = _C.embedding_bag_backward_scale(dy, raw_weight, raw_indices, raw_offsets, padding_idx, tables)
        return dweight, None, None, dscale

    return call.output(y, backward)
