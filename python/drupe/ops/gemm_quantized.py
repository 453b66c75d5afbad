"""Matrix product with a quantised weight."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call
from drupe.ops.quantize_weight import QuantizedWeight


def gemm_quantized(
    a: A,
    weight: QuantizedWeight,
    bias: Array | None = None,
    *,
    residual: Array | None = None,
    activation: str | None = None,
) -> A:
    """Product with a weight of small integers: ``activation(a @ w + bias + residual)``.

    Only the weight is quantised, and sums are float32. Up to 16 rows take as long as reading the integers, a quarter or
    an eighth of float32's bytes. More rows multiply ``weight.dequantize()``: in float32, or where ``a`` is bfloat16 and
    the processor has a dot instruction for that, rounded to bfloat16. For inference on the CPU: nothing is recorded for
    gradients, and there is no kernel for a GPU.

    Args:
        a: (..., M, K) float32, float16 or bfloat16; any strides.
        weight: (K, N), or (N, K), from :func:`quantize_weight`.
        bias: (N,), of the dtype of ``a``.
        residual: anything that broadcasts to (..., M, N), of the dtype of ``a``.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``, ``"tanh"`` or None.

    Returns:
        (..., M, N), C-contiguous.

    Raises:
        ValueError: shapes that do not fit, an unknown activation, an operand on a GPU.
        TypeError: another dtype of ``a``, or operands of different dtypes.
        RuntimeError: gradients are enabled and an input requires one.
    """
    call = Call("gemm_quantized", a, bias, residual)
    if call.recorded:
        raise RuntimeError(
            "[gemm_quantized] an input requires a gradient, and this op has none: call it in drupe.no_grad()"
        )
    ra, rbias, rresidual = call.raw
    return call.output(_C.gemm_quantized(ra, weight.raw, rbias, rresidual, activation or ""))
