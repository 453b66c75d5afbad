"""The ``@`` operator."""

from __future__ import annotations

from typing import Any

from drupe.ops._call import Array, Call
from drupe.ops.gemm import gemm
from drupe.ops.shape import squeeze, unsqueeze


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
    left, right = Call("matmul", a, b).raw
    for name, raw in (("a", left), ("b", right)):
        if len(raw.shape) == 0:
            raise ValueError(f"[matmul] {name} is (): expected at least 1 dimension")
    if len(left.shape) == 1:
        return squeeze(matmul(unsqueeze(a, 0), b), -1 if len(right.shape) == 1 else -2)
    if len(right.shape) == 1:
        return squeeze(gemm(a, unsqueeze(b, 1)), -1)
    return gemm(a, b)
