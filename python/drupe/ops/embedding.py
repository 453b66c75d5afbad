"""Rows of a table."""

from __future__ import annotations

from drupe import _C
from drupe.autograd import Gradient, SparseRows
from drupe.ops._call import A, Array, Call


def embedding(weight: A, indices: Array, *, padding_idx: int | None = None, sparse: bool = False) -> A:
    """Rows of a table, ``weight[indices]``; the gradient of a row is the sum over its uses, in their order.

    Args:
        weight: (V, D), any dtype; rows with any stride (columns that are not adjacent cost a copy).
        indices: any shape, int32 or int64, in [0, V).
        padding_idx: a row in [-V, V) that receives no gradient.
        sparse: give the gradient as :class:`drupe.SparseRows` instead of a whole table.

    Returns:
        (*indices.shape, D), C-contiguous.

    Raises:
        IndexError: an index or ``padding_idx`` that is not in the table, with its place.
        ValueError: ``weight`` has not 2 dimensions.
        TypeError: ``indices`` are no int32 or int64.
    """
    call = Call("embedding", weight, indices)
    raw_weight, raw_indices = call.raw
    y = _C.embedding(raw_weight, raw_indices, padding_idx)
    shape = raw_weight.shape

    def backward(dy: _C.Tensor) -> tuple[Gradient, None]:
        if not sparse:
            return _C.embedding_backward(dy, raw_indices, shape[0], padding_idx), None
        rows, values = _C.embedding_backward_sparse(dy, raw_indices, shape[0], padding_idx)
        return SparseRows(rows, values, shape), None

    return call.output(y, backward)
