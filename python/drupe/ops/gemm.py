"""General matrix product."""

from __future__ import annotations

from functools import partial

from drupe import _C
from drupe.autograd import Product
from drupe.ops._call import A, Array, Call
from drupe.ops._shape import sum_to_shape
from drupe.ops.activation import FROM_INPUT, differentiate
from drupe.ops.pack_weight import PackedWeight


def gemm(
    a: A,
    b: Array | PackedWeight,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    alpha: float = 1.0,
    activation: str | None = None,
) -> A:
    """Matrix product with a fused epilogue: ``activation(alpha * op(a) @ op(b) + bias + residual)``.

    Products accumulate in float32 for float16 and bfloat16, in the dtype itself otherwise. A processor with AVX512-BF16
    multiplies bfloat16 by its dot instruction, which takes subnormal numbers (below 1.2e-38) as zeros, and may round
    results to such zeros.
    A GPU may round float32 operands to tf32 where :func:`drupe.set_float32_matmul_precision` allows it.

    Args:
        a: (..., M, K), or (..., K, M) with ``transpose_a``; any strides.
        b: (..., K, N), or (..., N, K) with ``transpose_b``; any strides. Leading dimensions broadcast. Or a matrix that
            :func:`pack_weight` packed: the same bits, sooner; no gradient flows to it.
        bias: (N,).
        residual: anything that broadcasts to (..., M, N).
        transpose_a: swap the last two dimensions of ``a``.
        transpose_b: swap the last two dimensions of ``b``.
        alpha: a finite factor of the product.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``, ``"tanh"`` or None.

    Returns:
        (..., M, N), C-contiguous.

    Raises:
        ValueError: shapes that do not fit, a non-finite ``alpha``, an unknown activation, a ``transpose_b`` that is not
            that of the packed matrix.
        TypeError: a dtype that is not float, or operands of different dtypes.

    Reference:
        K. Goto, R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 34(3), 2008, section 4.
    """
    weight = b if isinstance(b, PackedWeight) else None
    call = Call("gemm", a, b if weight is None else weight.matrix, bias, residual)
    ra, rb, rbias, rresidual = call.raw
    packed = None
    if weight is not None:
        rb, packed = weight.raw, weight.packed
    name = activation or ""
    keep = name in FROM_INPUT and call.recorded
    y, pre = _C.gemm(ra, rb, rbias, rresidual, transpose_a, transpose_b, alpha, name, keep, packed)

    def backward(dy: _C.Tensor | Product) -> tuple[_C.Tensor | Product | None, ...]:
        dz, dbias = differentiate(dy, pre if keep else y, name, sum_columns=call.needs_grad(2))
        da = db = dresidual = None
        if call.needs_grad(0):
            # d op(a) = dz op(b)^T, or its transpose where a came transposed.
            if transpose_a:
                product = partial(_C.gemm, rb, dz, transpose_a=transpose_b, transpose_b=True, alpha=alpha)
            else:
                product = partial(_C.gemm, dz, rb, transpose_b=not transpose_b, alpha=alpha)
            whole = ra.shape[:-2] == dz.shape[:-2]  # a was not broadcast: nothing of the product is summed up
            da = Product(ra.shape, product) if whole else sum_to_shape(product()[0], ra.shape)
        if call.needs_grad(1):
            # d op(b) = op(a)^T dz. Where b has no batch, the batch is part of the sum over rows.
            left, right = ra, dz
            if len(rb.shape) == 2 and len(dz.shape) > 2 and not transpose_a and ra.shape[:-2] == dz.shape[:-2]:
                left = _C.reshape(ra, (-1, ra.shape[-1]))
                right = _C.reshape(dz, (-1, dz.shape[-1]))
            if transpose_b:
                db = _C.gemm(right, left, transpose_a=True, transpose_b=transpose_a, alpha=alpha)[0]
            else:
                db = _C.gemm(left, right, transpose_a=not transpose_a, alpha=alpha)[0]
            db = sum_to_shape(db, rb.shape)
        if dbias is None and call.needs_grad(2):
            dbias = sum_to_shape(dz, rbias.shape)
        if call.needs_grad(3):
            dresidual = sum_to_shape(dz, rresidual.shape)
        return da, db, dbias, dresidual

    return call.output(y, backward, takes_products=True)
