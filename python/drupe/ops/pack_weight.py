"""Weights that are packed once for many products."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import Array
from drupe.tensor import Tensor, to_raw


class PackedWeight:
    """What :func:`pack_weight` returns: the matrix, and a copy of it in the order in which the kernels read it.

    Attributes:
        matrix: as it was given, without a gradient; its memory is shared.
        transpose_b: whether it is (N, K).
    """

    __slots__ = ("matrix", "packed", "raw")

    def __init__(self, matrix: Array, transpose_b: bool) -> None:
        self.raw = to_raw(matrix, "pack_weight")
        self.matrix = Tensor(self.raw) if isinstance(matrix, Tensor) else matrix
        self.packed = _C.pack_weight(self.raw, transpose_b)

    @property
    def transpose_b(self) -> bool:
        """Whether the matrix is (N, K)."""
        return self.packed.transpose


def pack_weight(b: Array, *, transpose_b: bool = False) -> PackedWeight:
    """Copy a matrix into the layout that products on this processor read, so that :func:`gemm` need not each time.

    Worth it for constant weights: the copy takes as many bytes as ``b`` (float16, and bfloat16 where the processor has
    no dot instruction: twice as many). A change of ``b`` does not reach it. On a GPU, and after
    :func:`drupe.set_cpu_isa` chose other kernels, ``b`` itself is read, as it is by products of 16 rows or fewer.

    Args:
        b: (K, N), or (N, K) with ``transpose_b``; float; any strides.
        transpose_b: as the products will have it.

    Returns:
        What ``gemm`` takes for ``b``, with the same ``transpose_b``.

    Raises:
        ValueError: ``b`` is not a matrix.
        TypeError: a dtype that is not float.

    Reference:
        K. Goto, R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 34(3), 2008, section 4.
    """
    return PackedWeight(b, transpose_b)
