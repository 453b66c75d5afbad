from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import _C, ops
from gradients import check_gradients
from reference import ACTIVATIONS, FLOATS, assert_close, dtype, f64

# One element, below and above the register tile of every ISA, across a slice of K, across a task and an outer block.
# On a GPU: small blocks of threads and large ones, in vectors (multiples of 16 bytes) and by the element, K in parts
# for all tiles and for the last.
SHAPES = [(1, 1, 1), (3, 5, 7), (14, 32, 256), (15, 33, 513), (113, 70, 600), (1, 300, 64), (260, 1, 31), (6, 2100, 9)]
SHAPES += [(256, 256, 136), (250, 230, 70), (64, 72, 800), (5, 9, 1100), (70, 560, 600)]


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposes", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_matches_numpy(backend, rng, name, shape, transposes):
    M, N, K = shape
    ta, tb = transposes
    a = draw(rng, (K, M) if ta else (M, K), name)
    b = draw(rng, (N, K) if tb else (K, N), name)
    y = ops.gemm(a, b, transpose_a=ta, transpose_b=tb)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype(name)
    assert_close(y, (f64(a).T if ta else f64(a)) @ (f64(b).T if tb else f64(b)), name, K, np.sqrt(K))


@pytest.mark.skipif(
    not drupe.cuda_status()["available"] or drupe.cuda_status()["emulated"],
    reason="the emulated GPU has so few multiprocessors that SHAPES fill it with large blocks",
)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("transposes", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_large_blocks_of_a_gpu(rng, name, transposes):
    M, N, K = 2100, 1912, 136
    ta, tb = transposes
    a = draw(rng, (K, M) if ta else (M, K), name)
    b = draw(rng, (N, K) if tb else (K, N), name)
    with drupe.default_device("cuda"):
        y = ops.gemm(a, b, transpose_a=ta, transpose_b=tb)
    assert_close(y, (f64(a).T if ta else f64(a)) @ (f64(b).T if tb else f64(b)), name, K, np.sqrt(K))


# A GPU's kernel for few rows: one and all of its rows, blocks of 8 and of 16 columns, K over several turns and not.
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(1, 70, 1104), (4, 300, 136), (5, 37, 264), (16, 48, 2064), (2, 3, 128)], ids=str)
def test_few_rows(backend, rng, name, shape):
    M, N, K = shape
    a, b = draw(rng, (M, K), name), draw(rng, (N, K), name)
    bias, residual = draw(rng, N, name), draw(rng, (M, N), name)
    y = ops.gemm(a, b, bias=bias, residual=residual, transpose_b=True, alpha=0.5, activation="relu")
    z = 0.5 * (f64(a) @ f64(b).T) + f64(bias) + f64(residual)
    assert_close(y, np.maximum(z, 0), name, K, np.sqrt(K))


# Few columns are few rows of the transposed product, by rows of A and, where these are not contiguous, by its columns.
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(70, 1, 1104), (300, 4, 136), (5, 16, 264), (513, 9, 65), (1000, 2, 1)], ids=str)
@pytest.mark.parametrize("transposes", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_few_columns(backend, rng, name, shape, transposes):
    M, N, K = shape
    ta, tb = transposes
    a = draw(rng, (2, 3, K, M) if ta else (2, 3, M, K), name)[:, ::2]
    b = draw(rng, (N, K) if tb else (K, N), name)
    bias, residual = draw(rng, N, name), draw(rng, (2, 2, M, N), name)
    product = (f64(a).swapaxes(-1, -2) if ta else f64(a)) @ (f64(b).T if tb else f64(b))
    y = ops.gemm(a, b, transpose_a=ta, transpose_b=tb)
    assert_close(y, product, name, K, np.sqrt(K))
    y = ops.gemm(a, b, bias=bias, residual=residual, transpose_a=ta, transpose_b=tb, alpha=0.5, activation="relu")
    assert_close(y, np.maximum(0.5 * product + f64(bias) + f64(residual), 0), name, K, np.sqrt(K))


# Of few rows and B as large as this, runs of B's rows are multiplied apart: the last is shorter, or there are fewer.
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(1, 301, 1801), (3, 2100, 400), (1, 4100, 130), (2, 255, 2060)], ids=str)
def test_few_rows_in_runs(isa, rng, name, shape):
    M, N, K = shape
    a, b, bias = draw(rng, (M, K), name), draw(rng, (K, N), name), draw(rng, N, name)
    y = ops.gemm(a, b, bias=bias, activation="relu")
    assert_close(y, np.maximum(f64(a) @ f64(b) + f64(bias), 0), name, K, np.sqrt(K))
    threads = drupe.num_threads()
    try:
        drupe.set_num_threads(1 if threads > 1 else 2)
        np.testing.assert_array_equal(y, ops.gemm(a, b, bias=bias, activation="relu"))
    finally:
        drupe.set_num_threads(threads)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_few_rows_of_strided_batches(backend, rng, name):
    a = draw(rng, (3, 6, 2, 160), name).transpose(2, 0, 1, 3)
    b = draw(rng, (3, 21, 160), name)[::-1]
    y = ops.gemm(a, b, transpose_b=True)
    assert_close(y, f64(a) @ f64(b).swapaxes(-1, -2), name, 160, np.sqrt(160))


def tf32(x):
    """Round to 10 bits after the point, ties away from zero."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


# Large and small blocks, in vectors and by the element, K in parts, empty.
@pytest.mark.parametrize("shape", [(3, 5, 7), (256, 256, 136), (250, 230, 70), (64, 72, 800), (9, 7, 0)], ids=str)
@pytest.mark.parametrize("transposes", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_high_precision_is_tf32_on_a_gpu_alone(backend, rng, shape, transposes):
    M, N, K = shape
    ta, tb = transposes
    a = draw(rng, (K, M) if ta else (M, K), "float32")
    b = draw(rng, (N, K) if tb else (K, N), "float32")
    bias = draw(rng, N, "float32")
    with drupe.float32_matmul_precision("high"):
        y = ops.gemm(a, b, bias=bias, transpose_a=ta, transpose_b=tb, activation="relu")
    if backend == "cuda":
        left, right = f64(tf32(a)), f64(tf32(b))
        z = (left.T if ta else left) @ (right.T if tb else right) + bias
        assert_close(y, np.maximum(z, 0), "float32", K, np.sqrt(K + 1))
    else:
        np.testing.assert_array_equal(y, ops.gemm(a, b, bias=bias, transpose_a=ta, transpose_b=tb, activation="relu"))


def test_high_precision_leaves_other_dtypes_alone(device, rng):
    a, b = draw(rng, (70, 90), "float64"), draw(rng, (90, 50), "float64")
    with drupe.float32_matmul_precision("high"):
        np.testing.assert_allclose(ops.gemm(a, b), a @ b, rtol=1e-12, atol=1e-12)


def test_high_precision_passes_nan_and_infinity(device):
    a = np.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0]], np.float32)
    with drupe.float32_matmul_precision("high"):
        y = ops.gemm(a, np.ones((2, 20), np.float32))
    np.testing.assert_array_equal(y, np.repeat(np.float32([[np.nan], [np.inf], [-np.inf]]), 20, 1))


def test_matmul_precision_is_set_and_restored():
    assert drupe.get_float32_matmul_precision() == "highest"
    with drupe.float32_matmul_precision("high"):
        assert drupe.get_float32_matmul_precision() == "high"
    assert drupe.get_float32_matmul_precision() == "highest"
    drupe.set_float32_matmul_precision("high")
    assert drupe.get_float32_matmul_precision() == "high"
    drupe.set_float32_matmul_precision("highest")
    with pytest.raises(ValueError, match=r'precision is "medium": expected highest or high'):
        drupe.set_float32_matmul_precision("medium")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(17, 37, 40), (24, 40, 40), (9, 20, 530), (9, 24, 530)], ids=str)
def test_epilogue(backend, rng, name, activation, shape):
    M, N, K = shape
    a, b = draw(rng, (M, K), name), draw(rng, (K, N), name)
    bias, residual = draw(rng, N, name), draw(rng, (M, N), name)
    y = ops.gemm(a, b, bias=bias, residual=residual, alpha=0.25, activation=activation)
    z = 0.25 * (f64(a) @ f64(b)) + f64(bias) + f64(residual)
    assert_close(y, ACTIVATIONS[activation](z), name, K, np.sqrt(K))


@pytest.mark.parametrize(
    ("left", "right"),
    [((4,), ()), ((), (4,)), ((2, 1), (3,)), ((2, 3), (2, 3)), ((1,), (5,)), ((0,), (1,))],
    ids=str,
)
def test_batch_dimensions_broadcast(backend, rng, left, right):
    a, b = rng.standard_normal((*left, 5, 7)), rng.standard_normal((*right, 7, 9))
    np.testing.assert_allclose(ops.gemm(a, b), a @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (0, 0, 0)], ids=str)
def test_empty_output(backend, shape):
    M, N, K = shape
    assert ops.gemm(np.ones((M, K)), np.ones((K, N))).shape == (M, N)


def test_empty_sum_leaves_the_epilogue(backend):
    bias = np.array([-1.0, 2.0, 3.0])
    y = ops.gemm(np.ones((2, 0)), np.ones((0, 3)), bias=bias, activation="relu")
    np.testing.assert_array_equal(y, [[0, 2, 3], [0, 2, 3]])


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_strided_operands(backend, rng, name):
    a = draw(rng, (40, 63), name)[::2, ::-3]
    b = draw(rng, (21, 66), name)[::-1, 1::2]
    residual = draw(rng, (33, 20), name).T
    y = ops.gemm(a, b, residual=residual)
    assert_close(y, f64(a) @ f64(b) + f64(residual), name, 20, 5)


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("M", "N", "K"), [(24, 40, 16), (9, 7, 520)], ids=str)
def test_strided_batches(backend, rng, name, M, N, K):
    a = draw(rng, (3, M, 2, K), name).transpose(2, 0, 1, 3)
    b = draw(rng, (3, K, N), name)[::-1]
    residual = draw(rng, (3, M, N), name)[:, None, 1]
    y = ops.gemm(a, b, residual=residual)
    assert_close(y, f64(a) @ f64(b) + f64(residual), name, K, np.sqrt(K))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("turned", [False, True])
def test_memory_that_vectors_cannot_read(backend, rng, name, turned):
    """Rows, or with `turned` matrices, lie a distance apart that 16 bytes do not divide: views of tensors stay so."""
    wide = 16 + 8 // dtype(name).itemsize

    def view(rows):
        x = draw(rng, (rows, 2, wide) if turned else (2, rows, wide), name)
        t = drupe.tensor(x)
        return (ops.transpose(t, 0, 1) if turned else t)[:, :, :16]

    a, b, residual = view(5), view(16), view(5)
    y = ops.gemm(a, b, residual=residual).numpy()
    assert_close(y, f64(a.numpy()) @ f64(b.numpy()) + f64(residual.numpy()), name, 16, 5)


def test_misaligned_and_read_only_operands(backend, rng):
    buffer = np.zeros(4 * 6 * 4 + 1, np.uint8)
    a = buffer[1:].view(np.float32).reshape(4, 6)
    a[...] = rng.standard_normal((4, 6))
    b = rng.standard_normal((6, 5)).astype(np.float32)
    b.flags.writeable = False
    assert_close(ops.gemm(a, b), f64(a) @ f64(b), "float32", 6)


def test_broadcast_residual(backend, rng):
    a, b = rng.standard_normal((2, 5, 6)), rng.standard_normal((6, 7))
    for shape in [(7,), (5, 1), (2, 1, 1), ()]:
        residual = rng.standard_normal(shape)
        np.testing.assert_allclose(ops.gemm(a, b, residual=residual), a @ b + residual, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FLOATS)
def test_nan_and_infinity_pass(backend, name):
    a = np.array([[np.nan, 1.0], [np.inf, 1.0]], dtype(name))
    y = f64(ops.gemm(a, np.ones((2, 20), dtype(name)), activation="relu"))
    assert np.isnan(y[0]).all()
    assert np.isposinf(y[1]).all()


@pytest.mark.parametrize("transposes", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(device, rng, transposes, activation):
    ta, tb = transposes
    a = rng.standard_normal((5, 3) if ta else (3, 5))
    b = rng.standard_normal((4, 5) if tb else (5, 4))
    bias, residual = rng.standard_normal(4), rng.standard_normal((3, 4))

    def function(a, b, bias, residual):
        return ops.gemm(
            a, b, bias=bias, residual=residual, transpose_a=ta, transpose_b=tb, alpha=0.7, activation=activation
        )

    check_gradients(function, a, b, bias, residual, rng=rng)


@pytest.mark.parametrize(("left", "right"), [((2,), ()), ((), (2,)), ((2, 1), (3,)), ((2, 2), (1, 2))], ids=str)
def test_batched_gradients(device, rng, left, right):
    a, b = rng.standard_normal((*left, 3, 4)), rng.standard_normal((*right, 4, 2))
    check_gradients(lambda a, b, r: ops.gemm(a, b, residual=r), a, b, rng.standard_normal((3, 1)), rng=rng)


# Few rows, cut tiles and whole ones, a batch that is more rows, one that is not, and a hidden layer read as it came and
# transposed.
CHAINS = [((3,), 40, (70,)), ((15,), 5, (33,)), ((70,), 64, (130,)), ((2, 20), 40, (33,)), ((3, 20), 34, (3, 16))]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "transposed"])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_through_an_activation_between_products(backend, rng, name, chain, activation, turned):
    """The second product's gradient goes through the activation in its epilogue, which sums up the bias's too."""
    (*batch, M), H, (*second, E) = chain
    x, w = draw(rng, (*batch, M, 24), name), draw(rng, (24, H), name) / dtype(name).type(5)
    bias, v = draw(rng, H, name), draw(rng, (*second, M if turned else H, E), name) / dtype(name).type(6)
    dy = draw(rng, (*batch, H if turned else M, E), name)
    leaves = [drupe.tensor(array, requires_grad=True) for array in (x, w, bias, v)]
    hidden = ops.gemm(leaves[0], leaves[1], bias=leaves[2], activation=activation)
    ops.gemm(hidden, leaves[3], transpose_a=turned, alpha=0.5).backward(dy)

    f, step = ACTIVATIONS[activation], 1e-6
    before = f64(x) @ f64(w) + f64(bias)
    slope = (f(before + step) - f(before - step)) / (2 * step)
    dh = 0.5 * f64(dy) @ np.swapaxes(f64(v), -1, -2)
    h = f(before)
    if turned:
        dh, h = np.swapaxes(dh, -1, -2), np.swapaxes(h, -1, -2)
    dz = dh * slope
    dv = 0.5 * np.swapaxes(h, -1, -2) @ f64(dy)
    rows = (-1, H)
    expected = [
        dz @ f64(w).T,
        f64(x).reshape(-1, 24).T @ dz.reshape(rows),
        dz.reshape(rows).sum(0),
        dv if len(second) == len(batch) else dv.sum(0),
    ]
    for leaf, reference in zip(leaves, expected, strict=True):
        assert_close(leaf.grad.numpy(), reference, name, 24 + H, 4 * np.sqrt(M + H) + (1e6 if name == "float64" else 0))


def test_activations_between_products_cost_no_pass_of_their_own(isa, rng, monkeypatch):
    monkeypatch.setattr(_C, "activation_backward", None)
    monkeypatch.setattr(_C, "reduce", None)
    x, w, v = (draw(rng, shape, "float32") for shape in ((20, 9), (9, 30), (30, 8)))
    for hidden in (
        lambda x, w, bias: ops.gemm(x, w, bias=bias, activation="gelu"),
        lambda x, w, bias: ops.tanh(ops.gemm(x, w)),
    ):
        leaves = [drupe.tensor(array, requires_grad=True) for array in (x, w, np.zeros(30, np.float32))]
        ops.gemm(hidden(*leaves), v).backward(np.ones((20, 8), np.float32))
        assert leaves[1].grad is not None


def test_sums_of_many_rows_lose_little(isa):
    rows, ones = 1 << 17, np.ones((1, 3), np.float32)
    bias = drupe.tensor(np.zeros(3, np.float32), requires_grad=True)
    hidden = ops.gemm(np.ones((rows, 1), np.float32), drupe.tensor(ones), bias=bias, activation="relu")
    ops.gemm(hidden, ones.T).backward(np.full((rows, 1), 0.1, np.float32))
    np.testing.assert_allclose(bias.grad.numpy(), rows * f64(np.float32(0.1)), rtol=2e-6)


def test_same_bits_on_any_number_of_threads(backend, rng):
    M, N, K = (60, 70, 1040) if backend == "cuda" else (300, 270, 520)
    a, b = draw(rng, (M, K), "float32"), draw(rng, (K, N), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(array, requires_grad=True) for array in (a, np.zeros(K, np.float32), b)]
        y = ops.gemm(ops.gemm(leaves[0], np.eye(K, dtype=np.float32), bias=leaves[1], activation="relu"), leaves[2])
        y.backward(np.ones(y.shape, np.float32))
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        ((64, 32), (16, 8), {}, ValueError, r"\[gemm\] a is \(64, 32\), b is \(16, 8\): inner dimensions 32 and 16"),
        ((3,), (3, 4), {}, ValueError, r"a is \(3,\): expected at least 2"),
        ((3, 4), (4,), {}, ValueError, r"b is \(4,\): expected at least 2"),
        ((2, 3, 4), (3, 4, 5), {}, ValueError, r"shapes \(2,\) and \(3,\) do not broadcast"),
        ((3, 4), (4, 5), {"bias": np.ones(4)}, ValueError, r"bias is \(4,\): expected \(5,\)"),
        ((3, 4), (4, 5), {"bias": np.ones(5, np.float32)}, TypeError, r"bias is float32"),
        ((3, 4), (4, 5), {"residual": np.ones((2, 5))}, ValueError, r"residual|broadcast"),
        ((3, 4), (4, 5), {"residual": np.ones((2, 3, 5))}, ValueError, r"residual is \(2, 3, 5\)"),
        ((3, 4), (4, 5), {"alpha": float("nan")}, ValueError, r"alpha is nan"),
        ((3, 4), (4, 5), {"activation": "mish"}, ValueError, r'activation is "mish"'),
    ],
)
def test_errors_name_what_is_wrong(device, a, b, options, error, message):
    with pytest.raises(error, match=message):
        ops.gemm(np.ones(a), np.ones(b), **options)


def test_dtype_errors():
    with pytest.raises(TypeError, match=r"\[gemm\] a is int64"):
        ops.gemm(np.ones((2, 2), np.int64), np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"a is float64, b is float32"):
        ops.gemm(np.ones((2, 2)), np.ones((2, 2), np.float32))
    with pytest.raises(TypeError, match=r"\[gemm\] expected an array .* got list"):
        ops.gemm([[1.0]], np.ones((1, 1)))
    with pytest.raises(TypeError, match="complex128"):
        ops.gemm(np.ones((2, 2), complex), np.ones((2, 2)))
