"""CsrMatrix: a sparse matrix in compressed rows, for products with dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np

import drupe
from drupe import _C
from drupe.tensor import DtypeLike, Tensor, dtype_name, to_raw


class CsrMatrix:
    """A sparse matrix in compressed rows (CSR); ``a @ x`` multiplies it with a dense one (:func:`drupe.ops.spmm`).

    Row r has the entries ``indptr[r]`` to ``indptr[r + 1]``, whose columns are in ``indices``, in any order; entries
    with the same place add up. All is checked once, here, and copied, so that products need not look again: the
    matrix does not change. Only values that require a gradient are shared: those may be trained.

    Args:
        indptr: (M + 1,), int32 or int64: 0, then without decrease up to the number of entries.
        indices: (entries,), int32 or int64, in [0, N).
        values: (entries,), a float dtype; every entry is 1 without them.
        shape: (M, N).
        symmetric: say that the matrix is its own transpose, which then costs nothing.

    Attributes:
        shape: (M, N).
        values: (entries,) or None.
        symmetric: as given.

    Raises:
        ValueError: an ``indptr`` that does not start at 0, decreases or ends elsewhere than the indices; shapes that do
            not fit; ``symmetric``, and it is not, or its values require a gradient.
        IndexError: an index that is no column.
        TypeError: other dtypes.
    """

    __slots__ = ("_order", "_transposed", "pattern", "symmetric", "values")

    def __init__(
        self,
        indptr: Any,
        indices: Any,
        values: Any = None,
        *,
        shape: tuple[int, int],
        symmetric: bool = False,
    ) -> None:
        pattern = _C.CsrPattern(to_raw(indptr, "csr"), to_raw(indices, "csr"), *shape)
        self._set(pattern, _own(values, pattern))
        if symmetric:
            self._check_symmetry()
            self.symmetric = True

    def _set(self, pattern: _C.CsrPattern, values: Tensor | None, *, symmetric: bool = False) -> None:
        self.pattern = pattern
        self.values = values
        self.symmetric = symmetric
        self._transposed: CsrMatrix | None = None  # where the values are fixed
        self._order: tuple[_C.CsrPattern, _C.Tensor] | None = None  # of the transpose's entries, where they are not

    @classmethod
    def _made(cls, pattern: _C.CsrPattern, values: Tensor | None, *, symmetric: bool = False) -> CsrMatrix:
        matrix = cls.__new__(cls)
        matrix._set(pattern, values, symmetric=symmetric)
        return matrix

    # ---- ways in

    @classmethod
    def from_coo(cls, rows: Any, cols: Any, values: Any = None, *, shape: tuple[int, int]) -> CsrMatrix:
        """Return the matrix with the entries ``(rows[i], cols[i])``; those of a row keep their order.

        Args:
            rows: (entries,), int32 or int64, in [0, M).
            cols: (entries,), int32 or int64, in [0, N).
            values: (entries,), a float dtype; every entry is 1 without them. Copied.
            shape: (M, N).

        Raises:
            ValueError: lengths that differ.
            IndexError: an entry outside the matrix.
            TypeError: other dtypes.
        """
        pattern, order = _C.csr_from_coo(to_raw(rows, "csr"), to_raw(cols, "csr"), tuple(shape))
        given = _own(values, pattern)
        return cls._made(pattern, given if given is None else _reorder(given.detach(), order))

    @classmethod
    def from_scipy(cls, matrix: Any) -> CsrMatrix:
        """Return a copy of anything with ``tocsr()``: SciPy's sparse matrices and arrays, say.

        Raises:
            TypeError: it has no ``tocsr``, or its values have a dtype that drupe has not.
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"[csr] expected a matrix with tocsr(), got {type(matrix).__name__}")
        csr = matrix.tocsr()
        return cls(csr.indptr, csr.indices, csr.data, shape=csr.shape)

    @classmethod
    def normalized_adjacency(cls, sources: Any, targets: Any, nodes: int, *, dtype: DtypeLike = "float32") -> CsrMatrix:
        """Return ``D^-1/2 A D^-1/2`` of an undirected graph, where D is diagonal with the nodes' degrees.

        Args:
            sources: (edges,) integers in [0, nodes): one end of each edge.
            targets: (edges,) integers in [0, nodes): the other. An edge that is given twice, in whichever direction,
                counts once; one from a node to itself counts once in its degree.
            nodes: how many there are; the row of one without edges is empty.
            dtype: of the values.

        Raises:
            ValueError: lengths that differ.
            IndexError: an end that is no node.
            TypeError: ends that are no integers.

        Reference:
            T. Kipf, M. Welling, "Semi-Supervised Classification with Graph Convolutional Networks", arXiv:1609.02907.
        """
        ends = [np.asarray(x.detach().numpy() if isinstance(x, Tensor) else x) for x in (sources, targets)]
        for name, end in zip(("sources", "targets"), ends, strict=True):
            if end.dtype.kind not in "iu" or end.ndim != 1:
                raise TypeError(f"[csr] {name} is {end.dtype} {end.shape}: expected a list of integers")
            outside = np.flatnonzero((end < 0) | (end >= nodes))
            if outside.size:
                raise IndexError(f"[csr] {name}[{outside[0]}] is {end[outside[0]]}: expected [0, {nodes})")
        a, b = (end.astype(np.int64) for end in ends)
        if a.size != b.size:
            raise ValueError(f"[csr] sources is {a.shape}, targets is {b.shape}")
        rows, cols = np.divmod(np.unique(np.concatenate([a * nodes + b, b * nodes + a])), max(1, nodes))
        degrees = np.bincount(rows, minlength=nodes)
        # Rounded once, and the same for (i, j) and (j, i).
        values = 1 / np.sqrt(degrees[rows].astype(np.float64) * degrees[cols])
        indptr = np.concatenate([[0], np.cumsum(degrees)])
        narrow = np.int32 if nodes <= np.iinfo(np.int32).max else np.int64
        pattern = _C.CsrPattern(to_raw(indptr), to_raw(cols.astype(narrow)), nodes, nodes)
        return cls._made(pattern, Tensor(_C.cast(to_raw(values), dtype_name(dtype))), symmetric=True)

    # ---- what it is

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        rows, cols = self.pattern.shape
        return rows, cols

    @property
    def nnz(self) -> int:
        """The number of entries, zeros among them included."""
        return self.pattern.size

    @property
    def indptr(self) -> Tensor:
        """Where the entries of each row start, (M + 1,) int64; read-only."""
        return Tensor(self.pattern.indptr)

    @property
    def indices(self) -> Tensor:
        """The column of each entry; read-only."""
        return Tensor(self.pattern.indices)

    @property
    def device(self) -> str:
        """Where the memory lies: ``"cpu"`` or ``"cuda:<index>"``."""
        return self.pattern.device

    @property
    def requires_grad(self) -> bool:
        """Whether the values want a gradient."""
        return self.values is not None and self.values.requires_grad

    def __repr__(self) -> str:
        dtype = "ones" if self.values is None else self.values.raw.dtype
        return f"CsrMatrix({dtype} {self.shape}, {self.nnz} entries)"

    # ---- others like it

    def transpose(self) -> CsrMatrix:
        """Return the transpose, whose rows are sorted by column; made at the first call and kept.

        It is made on the host, in linear time, with the same bits every time: on a device, call it once before a graph
        is captured. Of values that require a gradient only the order is kept.
        """
        if self.symmetric:
            return self
        if self._transposed is not None:
            return self._transposed
        if self._order is None:
            self._order = _C.csr_transpose(self.pattern)
        pattern, order = self._order
        matrix = self._made(pattern, None if self.values is None else _reorder(self.values, order))
        if not self.requires_grad:
            self._transposed, self._order = matrix, None
        return matrix

    @property
    def T(self) -> CsrMatrix:  # noqa: N802
        """The transpose; see :meth:`transpose`."""
        return self.transpose()

    def astype(self, dtype: DtypeLike) -> CsrMatrix:
        """Return the matrix with values of another float dtype, outside the tape; itself if they are of that one."""
        name = dtype_name(dtype)
        if self.values is None or self.values.raw.dtype == name:
            return self
        return self._made(self.pattern, Tensor(_C.cast(self.values.raw, name)), symmetric=self.symmetric)

    def to(self, device: str) -> CsrMatrix:
        """Return the matrix on a device, itself if it is there; errors as :meth:`drupe.Tensor.to`."""
        if _C.empty((0,), "uint8", device).device == self.device:
            return self
        values = None if self.values is None else self.values.to(device)
        return self._made(self.pattern.to(device), values, symmetric=self.symmetric)

    def to_dense(self) -> Tensor:
        """Return all of it as a dense tensor (M, N), outside the tape; float32 where there are no values."""
        dtype = "float32" if self.values is None else self.values.raw.dtype
        identity = Tensor(_C.cast(_C.to_device(to_raw(np.eye(self.shape[1])), self.device), dtype))
        with drupe.no_grad():
            dense: Tensor = drupe.ops.spmm(self, identity)
        return dense

    def __matmul__(self, x: Any) -> Any:
        return drupe.ops.spmm(self, x)

    def _check_symmetry(self) -> None:
        """Sorted twice, a matrix has its rows in order; so has its transpose, sorted once."""
        rows, cols = self.shape
        if rows != cols:
            raise ValueError(f"[csr] the shape is {self.shape}: a symmetric matrix is square")
        if self.requires_grad:
            raise ValueError("[csr] values that require a gradient need not stay symmetric")
        once = self.transpose()
        twice = once.transpose()
        pairs = [(once.indptr, twice.indptr), (once.indices, twice.indices)]
        if once.values is not None and twice.values is not None:
            pairs.append((once.values, twice.values))
        if not all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs):
            raise ValueError("[csr] the matrix is not symmetric")
        self._transposed = None


def _own(values: Any, pattern: _C.CsrPattern) -> Tensor | None:
    """Return the values as a matrix keeps them: a copy, or the tensor itself where it requires a gradient."""
    if values is None:
        return None
    raw = to_raw(values, "csr")
    if "float" not in raw.dtype:
        raise TypeError(f"[csr] values is {raw.dtype}: expected a float dtype")
    if raw.shape != (pattern.size,):
        raise ValueError(f"[csr] values is {raw.shape}: expected ({pattern.size},)")
    if raw.device != pattern.device:
        raise ValueError(f"[csr] values is on {raw.device}, the indices on {pattern.device}")
    return values if isinstance(values, Tensor) and values.requires_grad else Tensor(_C.clone(raw))


def _reorder(values: Tensor, order: _C.Tensor) -> Tensor:
    """Return ``values[order]``, on the tape."""
    column: Tensor = drupe.ops.embedding(values.reshape((-1, 1)), Tensor(order))
    return column.reshape((-1,))
