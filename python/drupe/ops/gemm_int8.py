"""Product of matrices quantised to int8."""

from __future__ import annotations

import numpy as np

from drupe import _C
from drupe.ops._call import A, Array, Call


def gemm_int8(
    a: A,
    b: Array,
    scale_a: Array | float,
    scale_b: Array | float,
    bias: Array | None = None,
    *,
    transpose_b: bool = False,
    activation: str | None = None,
    dtype: str = "float32",
) -> A:
    """Product of int8 matrices, scaled: ``activation((a @ op(b)) * scale_a[:, None] * scale_b + bias)``.

    The product accumulates in int32, exactly; the rest happens in float32 and is rounded once. For inference: nothing
    is recorded for gradients. :func:`quantize_int8` makes the operands and their scales. The kernels read both along
    K: a ``b`` that does not lie along it, as a C-contiguous (K, N), is copied on each call, so keep weights as (N, K).

    Args:
        a: (..., M, K) int8.
        b: (K, N) int8, or (N, K) with ``transpose_b``.
        scale_a: float32, what a unit of each row of ``a`` is worth: broadcastable to (..., M), or a number.
        scale_b: float32, what a unit of each column of ``op(b)`` is worth: broadcastable to (N,), or a number.
        bias: (N,) float32, float16 or bfloat16.
        transpose_b: take ``b`` as (N, K).
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``, ``"tanh"`` or None.
        dtype: the result's: ``"float32"``, ``"float16"`` or ``"bfloat16"``.

    Returns:
        (..., M, N), C-contiguous.

    Raises:
        ValueError: shapes that do not fit, K above 131071 (where int32 could overflow), an unknown activation.
        TypeError: operands that are not int8, scales that are not float32, another ``dtype`` or dtype of the bias.
        RuntimeError: gradients are enabled and an input requires one.

    Reference:
        B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 2; here symmetric, with a scale for each row and column.
    """
    scales = [np.asarray(s, np.float32) if isinstance(s, (int, float)) else s for s in (scale_a, scale_b)]
    call = Call("gemm_int8", a, b, *scales, bias)
    if call.recorded:
        raise RuntimeError("[gemm_int8] an input requires a gradient, and this op has none: call it in drupe.no_grad()")
    ra, rb, left, right, rbias = call.raw
    return call.output(_C.gemm_int8(ra, rb, left, right, rbias, transpose_b, activation or "", dtype))
