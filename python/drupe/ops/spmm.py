"""Products of a sparse matrix and a dense one."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import _C
from drupe.ops._call import A, Array, Call
from drupe.sparse import CsrMatrix
from drupe.tensor import to_raw


def spmm(a: CsrMatrix, x: A, *, alpha: float = 1.0, z: Array | None = None, beta: float = 1.0) -> A:
    """Sparse times dense: ``y = alpha A x + beta z``.

    The entries of a row add up in their order, in float32 for float16 and bfloat16 (those of a row with thousands in
    parts of fixed length, and then the parts). The gradient of x is ``alpha A^T dy``: the transpose is made once and
    kept by ``a``, which is its own where it is marked symmetric. Values that require a gradient get
    ``dv[i] = alpha dy[row of i] . x[indices[i]]``.

    Args:
        a: (M, N); its values of x's dtype, or float32 for float16 and bfloat16, or none.
        x: (N, D), a float dtype; rows with any stride (columns that are not adjacent cost a copy).
        alpha: a factor of the product.
        z: (M, D) of x's dtype, what is added; may be x.
        beta: its factor.

    Returns:
        (M, D), C-contiguous.

    Raises:
        ValueError: shapes that do not fit, or devices that differ.
        TypeError: ``a`` is no :class:`drupe.CsrMatrix`, or dtypes that do not fit.
    """
    matrix = _checked(a, "spmm")
    call = Call("spmm", x, z, matrix.values if matrix.requires_grad else None)
    raw_x, raw_z, _ = call.raw
    y = _C.spmm(matrix.pattern, _raw_values(matrix), raw_x, alpha, raw_z, beta)

    def scaled(gradient: _C.Tensor, factor: float) -> _C.Tensor:
        if factor == 1:
            return gradient
        return _C.binary("mul", gradient, _C.scalar("spmm", factor, gradient.dtype, gradient.device))

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        dx = dz = dvalues = None
        if call.needs_grad(0):
            back = matrix.transpose()
            dx = _C.spmm(back.pattern, _raw_values(back), dy, alpha, None, 1.0)
        if call.needs_grad(1):
            dz = scaled(dy, beta)
        if call.needs_grad(2):
            assert matrix.values is not None
            dvalues = _C.cast(
                scaled(_C.spmm_backward_values(matrix.pattern, dy, raw_x), alpha), matrix.values.raw.dtype
            )
        return dx, dz, dvalues

    return call.output(y, backward)


def propagate(a: CsrMatrix, x: A, weights: Sequence[float], *, rows: Array | None = None) -> A:
    """Weighted sum of powers of a sparse matrix times a dense one: ``y = sum_k weights[k] A^k x``.

    By Horner's rule: one product for each power, with the addition in it, forward and backward alike. Where only some
    rows of y are wanted, the last product makes no others, and the first one backward takes only their gradients.

    Args:
        a: (N, N), with values that do not require a gradient; see :func:`spmm`.
        x: (N, D), a float dtype.
        weights: of ``x``, ``A x``, ``A A x``, …; two at least.
        rows: (R,) int32 or int64, which rows of y are wanted, each once; all by default. They are read on the host,
            so that a captured step cannot have them.

    Returns:
        (N, D), or (R, D) with ``rows``; C-contiguous.

    Raises:
        ValueError: ``a`` is not square or wants a gradient; fewer than two weights; a row wanted twice; otherwise as
            :func:`spmm`.
        IndexError: ``rows`` out of range.
        TypeError: ``rows`` are no integers; otherwise as :func:`spmm`.
    """
    matrix = _checked(a, "propagate")
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"[propagate] a is {matrix.shape}: expected a square matrix")
    if matrix.requires_grad:
        raise ValueError("[propagate] a's values require a gradient: use spmm for each product")
    if len(weights) < 2:
        raise ValueError(f"[propagate] weights has {len(weights)} elements: expected 2 or more")
    last, *factors = reversed([float(weight) for weight in weights])
    call = Call("propagate", x)
    raw: _C.Tensor = call.raw[0]
    N = matrix.shape[0]
    wanted = None if rows is None else _C.RowPlaces("propagate", to_raw(rows, "propagate"), N, raw.device)

    def forward() -> _C.Tensor:
        values, y, factor = _raw_values(matrix), raw, last
        for k, weight in enumerate(factors, 1):
            made = wanted if k == len(factors) else None
            y, factor = _C.spmm(matrix.pattern, values, y, factor, raw, weight, y_rows=made), 1.0
        return y

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        back = matrix.transpose()
        values, dx, factor, given = _raw_values(back), dy, last, wanted
        for weight in factors:
            dx = _C.spmm(back.pattern, values, dx, factor, dy, weight, x_rows=given, z_rows=wanted)
            factor, given = 1.0, None
        return (dx,)

    return call.output(forward(), backward)


def _checked(a: CsrMatrix, op: str) -> CsrMatrix:
    if not isinstance(a, CsrMatrix):
        raise TypeError(f"[{op}] a is {type(a).__name__}: expected a drupe.CsrMatrix")
    return a


def _raw_values(a: CsrMatrix) -> _C.Tensor | None:
    return None if a.values is None else a.values.raw
