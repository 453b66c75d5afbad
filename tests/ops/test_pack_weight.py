from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from reference import FLOATS, dtype

# Few rows, which read the matrix itself; tiles and a slice of K crossed; an outer block crossed; nothing to sum.
SHAPES = [(3, 5, 7), (17, 33, 7), (130, 70, 600), (40, 2100, 9), (1400, 34, 5), (20, 3, 0), (20, 0, 3), (0, 4, 5)]


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_have_the_same_bits(backend, rng, name, shape, transpose_b):
    M, N, K = shape
    a, b = draw(rng, (M, K), name), draw(rng, (N, K) if transpose_b else (K, N), name)
    bias, residual = draw(rng, N, name), draw(rng, (M, N), name)
    packed = ops.pack_weight(b, transpose_b=transpose_b)
    assert packed.transpose_b is transpose_b
    options = {"bias": bias, "residual": residual, "transpose_b": transpose_b, "activation": "gelu"}
    actual, expected = ops.gemm(a, packed, **options), ops.gemm(a, b, **options)
    assert isinstance(actual, np.ndarray)
    assert actual.tobytes() == expected.tobytes()


def test_any_strides_and_batches(backend, rng):
    wide = rng.standard_normal((66, 40))
    b = wide[::2, 3:23]  # (33, 20)
    a = rng.standard_normal((2, 3, 19, 33))
    np.testing.assert_array_equal(ops.gemm(a, ops.pack_weight(b)), ops.gemm(a, b))
    # A batch whose rows do not follow one another.
    a = a.transpose(1, 0, 2, 3)
    np.testing.assert_array_equal(ops.gemm(a, ops.pack_weight(b)), ops.gemm(a, b))


def test_the_copy_is_what_is_read(isa, rng):
    a, b = rng.standard_normal((40, 30)), rng.standard_normal((30, 20))
    packed, before = ops.pack_weight(b), a @ b
    b[:] = 0
    np.testing.assert_allclose(ops.gemm(a, packed), before, rtol=1e-12, atol=1e-12)


def test_other_kernels_read_the_matrix(rng):
    a, b = rng.standard_normal((40, 30)), rng.standard_normal((30, 20))
    before = drupe.cpu_isa()
    packed = ops.pack_weight(b)
    try:
        for isa in drupe.cpu_isas():
            drupe.set_cpu_isa(isa)
            np.testing.assert_array_equal(ops.gemm(a, packed), ops.gemm(a, b))
    finally:
        drupe.set_cpu_isa(before)


def test_gradients_flow_to_all_but_the_weight(device, rng):
    a, bias = (drupe.tensor(rng.standard_normal(s), requires_grad=True) for s in ((20, 4), (3,)))
    b = drupe.tensor(rng.standard_normal((3, 4)), requires_grad=True)
    dy = rng.standard_normal((20, 3))
    ops.gemm(a, ops.pack_weight(b, transpose_b=True), bias=bias, transpose_b=True).backward(dy)
    np.testing.assert_allclose(a.grad.numpy(), dy @ b.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(bias.grad.numpy(), dy.sum(0), rtol=1e-12)
    assert b.grad is None


def test_errors(device, rng):
    with pytest.raises(ValueError, match=r"\[pack_weight\] b is \(2, 3, 4\): expected 2 dimensions"):
        ops.pack_weight(np.zeros((2, 3, 4)))
    with pytest.raises(TypeError, match=r"\[pack_weight\] b is int64: expected float32"):
        ops.pack_weight(np.zeros((3, 4), np.int64))
    packed = ops.pack_weight(np.zeros((4, 4)), transpose_b=True)
    with pytest.raises(
        ValueError, match=r"\[gemm\] b is \(4, 4\), what was packed is another matrix, \(4, 4\) transposed"
    ):
        ops.gemm(np.zeros((20, 4)), packed)
    with pytest.raises(ValueError, match=r"\[gemm\] a is \(20, 5\), b is \(4, 4\) transposed: inner dimensions"):
        ops.gemm(np.zeros((20, 5)), packed, transpose_b=True)
