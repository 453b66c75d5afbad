from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from reference import ACTIVATIONS, EPSILON, assert_close, dtype, f64

# Below and above the tiles of every ISA and of a GPU's blocks; K in whole vectors and not, over several stages and
# parts.
SHAPES = [(1, 1, 1), (7, 5, 3), (6, 4, 64), (50, 66, 65), (49, 130, 31), (13, 24, 16), (70, 72, 208), (64, 64, 1104)]
SHAPES += [(130, 136, 96), (3, 9, 1101), (1, 70, 200), (75, 33, 4101)]


def draw(rng, shape):
    return rng.integers(-128, 128, shape, np.int8)


def exact(a, b):
    return a.astype(np.int64) @ b.astype(np.int64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transpose_b", [False, True])
def test_sums_are_exact(backend, rng, shape, transpose_b):
    M, N, K = shape
    a, b = draw(rng, (M, K)), draw(rng, (N, K) if transpose_b else (K, N))
    y = ops.gemm_int8(a, b, 1.0, 1.0, transpose_b=transpose_b)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, exact(a, b.T if transpose_b else b).astype(np.float32))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(17, 37, 40), (24, 40, 48), (80, 37, 40)], ids=str)
def test_epilogue(backend, rng, name, activation, shape):
    M, N, K = shape
    a, b, bias = draw(rng, (M, K)), draw(rng, (N, K)), rng.standard_normal(N).astype(dtype(name))
    left, right = (rng.uniform(0.001, 0.01, n).astype(np.float32) for n in (M, N))
    y = ops.gemm_int8(a, b, left, right, bias, transpose_b=True, activation=activation, dtype=name)
    assert y.dtype == dtype(name)
    z = exact(a, b.T) * f64(left)[:, None] * f64(right) + f64(bias)
    assert_close(y, ACTIVATIONS[activation](z), name, 4, 4)


@pytest.mark.parametrize("M", [2, 73])
def test_largest_sums_are_exact(backend, M):
    K = 131071
    a = np.full((M, K), -128, np.int8)
    b = np.full((3, K), -128, np.int8)
    b[1] = 127
    y = ops.gemm_int8(a, b, 1.0, 1.0, transpose_b=True)
    np.testing.assert_array_equal(y, exact(a, b.T).astype(np.float32))


def test_leading_dimensions_and_broadcast_scales(backend, rng):
    a, b = draw(rng, (2, 3, 5, 20)), draw(rng, (20, 7))
    left = rng.uniform(0.5, 2, (3, 1)).astype(np.float32)
    y = ops.gemm_int8(a, b, left, np.float32([0.5]))
    assert y.shape == (2, 3, 5, 7)
    np.testing.assert_allclose(y, exact(a, b) * f64(left)[..., None] * 0.5, rtol=1e-6)


def test_strided_operands(backend, rng):
    a, b = draw(rng, (20, 40))[::2, ::-2], draw(rng, (20, 9))[:, ::2]
    np.testing.assert_array_equal(ops.gemm_int8(a, b, 2.0, 0.5), exact(a, b))


def test_misaligned_operands(backend, rng):
    a, b = draw(rng, 4 * 32 + 1)[1:].reshape(4, 32), draw(rng, 8 * 32 + 3)[3:].reshape(8, 32)
    np.testing.assert_array_equal(ops.gemm_int8(a, b, 1, 1, transpose_b=True), exact(a, b.T))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4)], ids=str)
def test_empty_output(backend, shape):
    M, N, K = shape
    assert ops.gemm_int8(np.ones((M, K), np.int8), np.ones((K, N), np.int8), 1.0, 1.0).shape == (M, N)


def test_empty_sum_leaves_the_bias(backend):
    bias = np.float32([-1, 2])
    y = ops.gemm_int8(np.ones((3, 0), np.int8), np.ones((0, 2), np.int8), 1.0, 1.0, bias, activation="relu")
    np.testing.assert_array_equal(y, [[0, 2]] * 3)


def test_stands_in_for_a_float_product(backend, rng):
    x, w = rng.standard_normal((30, 64)).astype(np.float32), rng.standard_normal((20, 64)).astype(np.float32)
    (qx, sx), (qw, sw) = ops.quantize_int8(x), ops.quantize_int8(w)
    y = ops.gemm_int8(qx, qw, sx, sw, transpose_b=True)
    exact_y = f64(x) @ f64(w).T
    assert np.abs(y - exact_y).max() < 0.02 * np.abs(exact_y).max()
    # Weights as (K, N): what quantize_int8 gives needs no copy.
    qk, sk = ops.quantize_int8(np.ascontiguousarray(w.T), axis=0)
    np.testing.assert_array_equal(ops.gemm_int8(qx, qk, sx, sk), y)


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (((6, 32), "i1"), ((16, 8), "i1"), {}, ValueError, r"\[gemm_int8\] a is \(6, 32\), b is \(16, 8\): inner"),
        (((32,), "i1"), ((32, 8), "i1"), {}, ValueError, r"a is \(32,\): expected at least 2"),
        (((6, 4), "i1"), ((2, 4, 8), "i1"), {}, ValueError, r"b is \(2, 4, 8\): expected 2 dimensions"),
        (((6, 4), "f4"), ((4, 8), "i1"), {}, TypeError, r"a is float32: expected int8"),
        (((6, 4), "i1"), ((4, 8), "u1"), {}, TypeError, r"b is uint8: expected int8"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"bias": np.ones(4, "f4")}, ValueError, r"bias is \(4,\): expected \(8,\)"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"bias": np.ones(8)}, TypeError, r"bias is float64"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"dtype": "float64"}, TypeError, r"dtype is float64"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"scale_a": np.ones(5, "f4")}, ValueError, r"scale_a|broadcast"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"scale_b": np.ones((2, 8), "f4")}, ValueError, r"scale_b is \(2, 8\)"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"scale_b": np.ones(8)}, TypeError, r"scale_b is float64: expected float32"),
        (((6, 4), "i1"), ((4, 8), "i1"), {"activation": "mish"}, ValueError, r'activation is "mish"'),
        (((1, 131072), "i1"), ((131072, 1), "i1"), {}, ValueError, r"K is 131072: int32 sums are exact up to 131071"),
    ],
)
def test_errors_name_what_is_wrong(device, a, b, options, error, message):
    options = {"scale_a": 1.0, "scale_b": 1.0} | options
    with pytest.raises(error, match=message):
        ops.gemm_int8(np.ones(*a), np.ones(*b), **options)


def test_has_no_gradient():
    scale = drupe.ones((2,))
    scale.requires_grad = True
    q = drupe.tensor(np.ones((2, 3), np.int8))
    with pytest.raises(RuntimeError, match=r"\[gemm_int8\] an input requires a gradient"):
        ops.gemm_int8(q, q, scale, 1.0, transpose_b=True)
    with drupe.no_grad():
        assert not ops.gemm_int8(q, q, scale, 1.0, transpose_b=True).requires_grad
    with pytest.raises(RuntimeError, match=r"\[quantize_int8\] x requires a gradient"):
        ops.quantize_int8(scale)


def quantize(x, axis=-1):
    """Compute what quantize_int8 states, in NumPy's float32."""
    x = np.asarray(x).astype(np.float32)
    scale = (np.abs(x).max(axis) / np.float32(127)).astype(np.float32)
    divisor = np.expand_dims(np.where(scale > 0, scale, np.float32(np.inf)), axis)
    return np.clip(np.rint(x / divisor), -127, 127).astype(np.int8), scale


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (9, 64), (300, 3), (2, 2500), (3, 2048), (2, 3, 40)], ids=str)
def test_quantize_is_what_it_states(backend, rng, name, shape):
    x = rng.standard_normal(shape).astype(dtype(name))
    q, scale = ops.quantize_int8(x)
    assert q.dtype == np.int8
    assert scale.dtype == np.float32
    expected_q, expected_scale = quantize(x)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(q, expected_q)
    error = np.abs(f64(q) * f64(scale)[..., None] - f64(x))
    assert (error <= f64(scale)[..., None] * (0.5 + 200 * EPSILON["float32"])).all()


@pytest.mark.parametrize("axis", [0, 1, -2, 2])
def test_quantize_along_any_axis(backend, rng, axis):
    x = rng.standard_normal((4, 6, 10)).astype(np.float32)[:, ::-1]
    q, scale = ops.quantize_int8(x, axis)
    expected_q, expected_scale = quantize(x, axis)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(q, expected_q)


def test_quantize_rounds_ties_to_even_and_saturates(backend):
    x = np.float32([[127, 0.5, 1.5, -2.5, -126.5, -127]])
    q, scale = ops.quantize_int8(x)
    np.testing.assert_array_equal(scale, [1])
    np.testing.assert_array_equal(q, [[127, 0, 2, -2, -126, -127]])
    tiny = np.float32(2.0**-149)  # the scale of 200 of them rounds to 2 of them: no q may leave the range
    q, scale = ops.quantize_int8(np.float32([[190 * tiny, -190 * tiny, tiny]]))
    np.testing.assert_array_equal(scale, [tiny])
    np.testing.assert_array_equal(q, [[127, -127, 1]])


def test_quantize_rows_without_a_scale(backend):
    nan, inf, tiny = np.nan, np.inf, 2.0**-149
    x = np.float32([[0, -0.0, 0], [tiny, -tiny, 0], [nan, 1, 2], [3, inf, 2], [3, 1, -inf], [127, 1, 2]])
    q, scale = ops.quantize_int8(x)
    np.testing.assert_array_equal(scale, np.float32([0, 0, nan, nan, nan, 1]))
    np.testing.assert_array_equal(q[:-1], np.zeros((5, 3), np.int8))
    np.testing.assert_array_equal(q[-1], [127, 1, 2])


def test_quantize_empty(backend):
    q, scale = ops.quantize_int8(np.ones((3, 0), np.float32))
    assert q.shape == (3, 0)
    np.testing.assert_array_equal(scale, np.zeros(3))
    q, scale = ops.quantize_int8(np.ones((0, 4), np.float32))
    assert q.shape == (0, 4)
    assert scale.shape == (0,)


def test_quantize_errors():
    with pytest.raises(TypeError, match=r"\[quantize_int8\] x is int64"):
        ops.quantize_int8(np.ones((2, 2), np.int64))
    with pytest.raises(ValueError, match=r"x is \(\): expected at least 1 dimension"):
        ops.quantize_int8(np.float32(3))
    with pytest.raises(IndexError):
        ops.quantize_int8(np.ones((2, 2)), 2)
