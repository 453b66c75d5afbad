"""The ``@`` operator."""

from __future__ import annotations

from typing import Any

from drupe.ops._call import Array
from drupe.ops.gemm import gemm
from drupe.ops.shape import squeeze, unsqueeze
from drupe.tensor import to_raw


def matmul(a: Array, b: Array) -> Any:
    """Matrix product as NumPy's: :func:`gemm`, where an operand of one dimension is a row (left) or a column (right).

    Args:
        a: (..., M, K) or (K,).
        b: (..., K, N) or (K,), of the same float dtype.

    Returns:
        (..., M, N), without the dimension of a vector.

    Raises:
        ValueError: shapes that do not fit, or a scalar.
        TypeError: a dtype that is not float, or two of them.
    """
    left, right = to_raw(a, "matmul").ndim, to_raw(b, "matmul").ndim
    if left > 1 and right > 1:
        return gemm(a, b)
    for name, ndim in (("a", left), ("b", right)):
        if ndim == 0:
            raise ValueError(f"[matmul] {name} is (): expected at least 1 dimension")
    if left == 1:
        return squeeze(matmul(unsqueeze(a, 0), b), -1 if right == 1 else -2)
    return squeeze(gemm(a, unsqueeze(b, 1)), -1)
