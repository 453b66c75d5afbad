from __future__ import annotations

import functools

import numpy as np
import pytest

import drupe
from drupe import ops
from drupe.runtime import measure_limit
from reference import ACTIVATIONS, assert_close, dtype, f64

MOST = {"int8": 127, "int4": 7}
# Rows below, at and above what reads the integers; columns and K in whole panels and vectors and not; outer blocks.
SHAPES = [(1, 1, 1), (1, 33, 70), (2, 40, 9), (3, 64, 130), (8, 32, 64), (16, 31, 65), (17, 50, 66), (30, 70, 1101)]
SHAPES += [(1, 129, 1101), (1400, 34, 5)]


@functools.cache
def has_dot(isa):
    assert drupe.cpu_isa() == isa
    return measure_limit("dot_bf16", seconds=0.001) is not None


def draw(rng, shape, name="float32"):
    return rng.standard_normal(shape).astype(dtype(name))


def quantize(w, most, group):
    """Compute what quantize_weight states of an (N, K), in NumPy's float32."""
    w = np.asarray(w).astype(np.float32)
    N, K = w.shape
    scales = [np.abs(w[:, k : k + group]).max(axis=1, initial=0) / np.float32(most) for k in range(0, K, group)]
    scales = np.stack(scales, 1) if scales else np.zeros((N, 0), np.float32)
    each = np.repeat(scales, group, axis=1)[:, :K]
    q = np.clip(np.rint(w / np.where(each > 0, each, np.float32(np.inf))), -most, most).astype(np.int8)
    return q, scales, q * each


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 64), (64, 130), (100, 31), (3, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("transpose_b", [False, True])
def test_quantize_is_what_it_states(isa, rng, kind, name, shape, transpose_b):
    rows = draw(rng, shape, name)
    for group in (None, 1, 7, 32, 1000):
        weight = ops.quantize_weight(rows if transpose_b else rows.T, kind, transpose_b=transpose_b, group=group)
        size = group or (max(1, shape[1]) if kind == "int8" else 64)
        q, scales, expected = quantize(rows, MOST[kind], size)
        assert weight.shape == (shape if transpose_b else shape[::-1])
        assert (weight.dtype, weight.transpose_b) == (kind, transpose_b)
        assert weight.group == min(size, max(1, shape[1]))
        assert weight.values.dtype == np.int8
        np.testing.assert_array_equal(weight.values.numpy(), q)
        np.testing.assert_array_equal(weight.scales.numpy(), scales)
        np.testing.assert_array_equal(weight.dequantize().numpy(), expected if transpose_b else expected.T)


def test_int8_is_as_quantize_int8(isa, rng):
    w = draw(rng, (50, 300))
    weight = ops.quantize_weight(w, transpose_b=True)
    q, scale = ops.quantize_int8(w)
    np.testing.assert_array_equal(weight.values.numpy(), q)
    np.testing.assert_array_equal(weight.scales.numpy()[:, 0], scale)


@pytest.mark.parametrize(
    ("kind", "group", "share"), [("int8", None, 0.008), ("int4", 32, 0.10), ("int4", None, 0.11), ("int4", 128, 0.12)]
)
def test_error_of_normally_distributed_weights(rng, kind, group, share):
    w = draw(rng, (768, 500))
    error = ops.quantize_weight(w, kind, group=group).dequantize().numpy() - w
    assert 0.9 * share < np.sqrt(np.square(error).mean()) < share


def test_bytes(rng):
    w = draw(rng, (128, 64))
    assert ops.quantize_weight(w).nbytes == 64 * 128 + 64 * 4
    assert ops.quantize_weight(w, "int4").nbytes == 64 * 128 // 2 + 2 * 64 * 4


@pytest.mark.parametrize("kind", MOST)
def test_ties_go_to_even_and_what_is_beyond_saturates(isa, kind):
    most = MOST[kind]
    weight = ops.quantize_weight(np.float32([[most, 0.5, 1.5, -2.5, 0.5 - most, -most]]), kind, transpose_b=True)
    np.testing.assert_array_equal(weight.values.numpy(), [[most, 0, 2, -2, 1 - most if most == 7 else -126, -most]])
    tiny = np.float32(2.0**-149)  # the scale rounds to one of them, though more than `most` of them are to be told
    beyond = np.float32((most + most // 3) * tiny)
    weight = ops.quantize_weight(np.float32([[beyond, -beyond, tiny]]), kind, transpose_b=True)
    np.testing.assert_array_equal(weight.values.numpy(), [[most, -most, 1]])


@pytest.mark.parametrize("kind", MOST)
def test_groups_of_zeros(isa, rng, kind):
    w = draw(rng, (70, 40))
    w[:, 3] = 0
    w[32:64, 5] = -0.0
    weight = ops.quantize_weight(w, kind, group=32)
    assert not weight.dequantize().numpy()[:, 3].any()
    assert not weight.dequantize().numpy()[32:64, 5].any()
    y = ops.gemm_quantized(draw(rng, (2, 70)), weight)
    np.testing.assert_array_equal(y[:, 3], 0)
    assert np.isfinite(y).all()


def test_any_strides_of_the_weight(isa, rng):
    wide = draw(rng, (90, 99))
    part = wide[::2, 3:80:2]  # (45, 39)
    plain = np.ascontiguousarray(part)
    for a, b in ((part, plain), (part.T, plain.T), (part[::-1], plain[::-1].copy())):
        np.testing.assert_array_equal(ops.quantize_weight(a).dequantize(), ops.quantize_weight(b).dequantize())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", MOST)
def test_what_is_not_finite_is_an_error(isa, rng, kind, bad):
    w = draw(rng, (80, 70))
    w[66, 35] = bad
    with pytest.raises(
        ValueError, match=r"\[quantize_weight\] b is \(80, 70\), with a NaN or an infinity in column 35"
    ):
        ops.quantize_weight(w, kind)
    with pytest.raises(ValueError, match=r"b is \(80, 70\), with a NaN or an infinity in row 66"):
        ops.quantize_weight(w, kind, transpose_b=True)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products(isa, rng, name, kind, shape, transpose_b):
    M, N, K = shape
    a, w = draw(rng, (M, K), name), draw(rng, (N, K) if transpose_b else (K, N))
    for group in (None, 7, 32):
        weight = ops.quantize_weight(w, kind, transpose_b=transpose_b, group=group)
        y = ops.gemm_quantized(a, weight)
        assert isinstance(y, np.ndarray)
        assert y.dtype == dtype(name)
        wide = weight.dequantize().numpy()
        if name == "bfloat16" and M > 16 and has_dot(isa):
            wide = wide.astype(dtype(name))
        exact = f64(a) @ f64(wide.T if transpose_b else wide)
        assert_close(y, exact, name, K, max(1.0, np.sqrt(K) / 8))  # each addition rounds a sum of that size


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("M", [1, 5, 20])
def test_epilogue(isa, rng, name, activation, M):
    a, bias = draw(rng, (M, 40), name), draw(rng, 37, name)
    weight = ops.quantize_weight(draw(rng, (40, 37)) / 8)
    product = f64(a) @ f64(weight.dequantize())
    for residual in (None, draw(rng, (M, 37), name), draw(rng, (1, 37), name), draw(rng, (M, 1), name)):
        y = ops.gemm_quantized(a, weight, bias, residual=residual, activation=activation)
        z = product + f64(bias) + (0 if residual is None else f64(residual))
        assert_close(y, ACTIVATIONS[activation](z), name, 40, 2)
        without = ops.gemm_quantized(a, weight, residual=residual, activation=activation)
        assert_close(without, ACTIVATIONS[activation](z - f64(bias)), name, 40, 2)


def test_leading_dimensions_and_strides(isa, rng):
    weight = ops.quantize_weight(draw(rng, (20, 9)), "int4", group=8)
    wide = f64(weight.dequantize())
    a = draw(rng, (5, 3, 2, 40)).transpose(2, 1, 0, 3)[..., ::-2]
    y = ops.gemm_quantized(a, weight, residual=draw(rng, (3, 1, 9)) * 0)
    assert y.shape == (2, 3, 5, 9)
    np.testing.assert_allclose(y, f64(a) @ wide, rtol=1e-5, atol=1e-5)
    unaligned = np.frombuffer(b"\0" * 4 + draw(rng, (2, 20)).tobytes(), np.float32, offset=4).reshape(2, 20)
    np.testing.assert_allclose(ops.gemm_quantized(unaligned, weight), f64(unaligned) @ wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("M", [1, 16, 40])
def test_the_same_bits_on_any_number_of_threads(isa, rng, kind, M):
    a, weight = draw(rng, (M, 200)), ops.quantize_weight(draw(rng, (200, 150)), kind)
    before, found = drupe.num_threads(), []
    try:
        for threads in (1, 2, 3):
            drupe.set_num_threads(threads)
            found.append(ops.gemm_quantized(a, weight).tobytes())
    finally:
        drupe.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_a_weight_is_for_all_kernels(rng):
    a, before = draw(rng, (3, 70)), drupe.cpu_isa()
    weight = ops.quantize_weight(draw(rng, (70, 50)), "int4")
    try:
        for isa in drupe.cpu_isas():
            drupe.set_cpu_isa(isa)
            np.testing.assert_allclose(ops.gemm_quantized(a, weight), a @ weight.dequantize().numpy(), atol=1e-4)
    finally:
        drupe.set_cpu_isa(before)


@pytest.mark.parametrize("M", [3, 20])
def test_empty(isa, M):
    weight = ops.quantize_weight(np.ones((0, 2), np.float32))
    y = ops.gemm_quantized(np.ones((M, 0), np.float32), weight, np.float32([-1, 2]), activation="relu")
    np.testing.assert_array_equal(y, [[0, 2]] * M)
    assert ops.gemm_quantized(np.ones((0, 4), np.float32), ops.quantize_weight(np.ones((4, 3)))).shape == (0, 3)
    assert ops.gemm_quantized(np.ones((M, 4), np.float32), ops.quantize_weight(np.ones((4, 0)))).shape == (M, 0)


@pytest.mark.parametrize(
    ("a", "options", "error", "message"),
    [
        (((6, 32), "f4"), {}, ValueError, r"a is \(6, 32\), the weight is \(8, 16\) transposed: inner dimensions 32"),
        (((16,), "f4"), {}, ValueError, r"a is \(16,\): expected at least 2 dimensions"),
        (((6, 16), "f8"), {}, TypeError, r"a is float64: expected float32, float16 or bfloat16"),
        (((6, 16), "f4"), {"bias": np.ones(4, "f4")}, ValueError, r"bias is \(4,\): expected \(8,\)"),
        (((6, 16), "f4"), {"bias": np.ones(8)}, TypeError, r"a is float32, bias is float64"),
        (((6, 16), "f4"), {"residual": np.ones((5, 8), "f4")}, ValueError, r"\[gemm_quantized\].*\(5, 8\)"),
        (((6, 16), "f4"), {"residual": np.ones((2, 6, 8), "f4")}, ValueError, r"residual is \(2, 6, 8\)"),
        (((6, 16), "f4"), {"residual": np.ones((6, 8))}, TypeError, r"residual is float64"),
        (((6, 16), "f4"), {"activation": "mish"}, ValueError, r'activation is "mish"'),
    ],
)
def test_errors_name_what_is_wrong(a, options, error, message):
    weight = ops.quantize_weight(np.ones((8, 16)), transpose_b=True)
    with pytest.raises(error, match=message):
        ops.gemm_quantized(np.ones(*a), weight, **options)


def test_errors_of_quantize_weight():
    with pytest.raises(ValueError, match=r"\[quantize_weight\] b is \(2, 3, 4\): expected 2 dimensions"):
        ops.quantize_weight(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"\[quantize_weight\] b is \(\): expected 2 dimensions"):
        ops.quantize_weight(np.float32(1))
    with pytest.raises(TypeError, match=r"\[quantize_weight\] b is int64: expected float32"):
        ops.quantize_weight(np.zeros((3, 4), np.int64))
    with pytest.raises(ValueError, match=r'\[quantize_weight\] dtype is "int2": expected int8 or int4'):
        ops.quantize_weight(np.zeros((3, 4)), "int2")
    with pytest.raises(ValueError, match=r"\[quantize_weight\] group is 0: expected at least 1"):
        ops.quantize_weight(np.zeros((3, 4)), group=0)


@pytest.mark.skipif(not drupe.cuda_status()["available"], reason="no GPU, real or emulated")
def test_is_for_the_cpu_alone_cuda():
    weight = ops.quantize_weight(np.ones((4, 3)))
    x = drupe.tensor(np.ones((4, 4), np.float32)).to("cuda")
    with pytest.raises(ValueError, match=r"\[quantize_weight\] b is on cuda:0: quantised weights are for the CPU"):
        ops.quantize_weight(x)
    with pytest.raises(ValueError, match=r"\[gemm_quantized\] a is on cuda:0: quantised weights are for the CPU"):
        ops.gemm_quantized(x, weight)


def test_has_no_gradient():
    a = drupe.ones((2, 4))
    a.requires_grad = True
    weight = ops.quantize_weight(np.ones((4, 3)))
    with pytest.raises(RuntimeError, match=r"\[gemm_quantized\] an input requires a gradient"):
        ops.gemm_quantized(a, weight)
    with drupe.no_grad():
        assert not ops.gemm_quantized(a, weight).requires_grad
