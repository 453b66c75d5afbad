from __future__ import annotations

import warnings

import numpy as np
import pytest

import drupe
from drupe import CsrMatrix, ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


def entries(rng, rows, cols, count):
    """Sorted by row; rows without entries and places that come twice among them."""
    return np.sort(rng.integers(0, rows, count)), rng.integers(0, cols, count)


def dense_of(rows, cols, values, shape):
    dense = np.zeros(shape)
    np.add.at(dense, (rows, cols), f64(values))
    return dense


def matrix(indptr, indices, *values, shape):
    return CsrMatrix(np.array(indptr), np.array(indices), *values, shape=shape)


def random_matrix(rng, shape, count, name, index=np.int32):
    """A matrix, and the same in float64."""
    rows, cols = entries(rng, *shape, count)
    values = draw(rng, count, name)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    a = CsrMatrix(indptr.astype(index), cols.astype(index), values, shape=shape)
    return a, dense_of(rows, cols, values, shape)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("width", [1, 3, 16, 64, 100, 145, 300])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_matches_numpy(backend, rng, name, width, index):
    a, dense = random_matrix(rng, (23, 31), 90, name, index)
    x, z = draw(rng, (31, width), name), draw(rng, (23, width), name)
    y = ops.spmm(a, x)
    assert y.dtype == x.dtype
    assert_close(y, dense @ f64(x), name, 12, 6)
    assert_close(ops.spmm(a, x, alpha=0.5, z=z, beta=-2), 0.5 * dense @ f64(x) - 2 * f64(z), name, 12, 6)


def test_without_values_entries_are_one(backend, rng):
    rows, cols = entries(rng, 9, 7, 40)
    a = CsrMatrix.from_coo(rows, cols, shape=(9, 7))
    x = draw(rng, (7, 20), "float32")
    assert_close(a @ x, dense_of(rows, cols, np.ones(40), (9, 7)) @ x, "float32", 12, 4)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_operands_take_float32_values(backend, rng, name):
    a, dense = random_matrix(rng, (12, 15), 60, "float32")
    x = draw(rng, (15, 24), name)
    assert_close(ops.spmm(a, x), dense @ f64(x), name, 12, 4)


@pytest.mark.parametrize(("rows", "width"), [(1, 40), (3, 3), (3, 150)])
def test_long_rows_are_cut_in_segments(backend, rng, rows, width):
    counts = [5000, 0, 2049][:rows]
    if backend in ("cuda", "scalar"):
        counts = [count // 8 if backend == "cuda" else count for count in counts]
        width = min(width, 40)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    cols = rng.integers(0, 50, indptr[-1])
    values = draw(rng, indptr[-1], "float32")
    a = CsrMatrix(indptr, cols, values, shape=(rows, 50))
    x, z = draw(rng, (50, width), "float32"), draw(rng, (rows, width), "float32")
    dense = dense_of(np.repeat(np.arange(rows), counts), cols, values, (rows, 50))
    assert_close(ops.spmm(a, x, z=z, alpha=2), 2 * (dense @ f64(x)) + z, "float32", 5000, 16)  # partial sums grow


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 3)])
@pytest.mark.parametrize("width", [0, 5])
def test_zero_sizes(backend, rng, shape, width):
    a = CsrMatrix(np.zeros(shape[0] + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), shape=shape)
    x, z = draw(rng, (shape[1], width), "float32"), draw(rng, (shape[0], width), "float32")
    np.testing.assert_array_equal(ops.spmm(a, x), np.zeros((shape[0], width), np.float32))
    np.testing.assert_array_equal(ops.spmm(a, x, z=z, beta=2), 2 * z)


def test_non_finite_values_stay_where_they_are(backend):
    a = matrix([0, 1, 2, 3], [0, 1, 2], np.ones(3, np.float32), shape=(3, 3))
    x = np.array([[np.nan], [np.inf], [1]], np.float32)
    np.testing.assert_array_equal(a @ x, x)


def test_strided_operands(backend, rng):
    a, dense = random_matrix(rng, (11, 13), 50, "float32")
    wide = draw(rng, (26, 60), "float32")
    z = draw(rng, (11, 60), "float32")
    for rows in (slice(None, None, 2), slice(None, None, -2), slice(3, 16)):
        for cols in (slice(0, 32), slice(3, 36), slice(None, None, 3)):
            x = wide[rows, cols]
            assert_close(ops.spmm(a, x, z=z[:, cols]), dense @ f64(x) + z[:, cols], "float32", 12, 6)
    square, dense = random_matrix(rng, (26, 26), 90, "float32")
    assert_close(ops.spmm(square, wide, z=wide), dense @ f64(wide) + wide, "float32", 12, 6)


def test_the_same_bits_on_any_number_of_threads(isa, rng):
    counts = np.concatenate([rng.integers(0, 60, 300), [3000, 5000], rng.integers(0, 20, 100)])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    a = CsrMatrix(indptr, rng.integers(0, 200, indptr[-1]), draw(rng, indptr[-1], "float32"), shape=(len(counts), 200))
    x = draw(rng, (200, 24), "float32")
    before, results = drupe.num_threads(), []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(ops.spmm(a, x).tobytes())
    drupe.set_num_threads(before)
    assert len(set(results)) == 1


def test_gradients(device, rng):
    rows, cols = entries(rng, 6, 5, 14)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=6))])

    def product(values, x, z):
        return ops.spmm(CsrMatrix(indptr, cols, values, shape=(6, 5)), x, alpha=1.5, z=z, beta=0.5)

    arrays = rng.standard_normal(14), rng.standard_normal((5, 3)), rng.standard_normal((6, 3))
    check_gradients(product, *arrays, rng=rng)
    fixed = CsrMatrix(indptr, cols, arrays[0], shape=(6, 5))
    check_gradients(lambda x: ops.spmm(fixed, x), arrays[1], rng=rng)
    check_gradients(lambda x: ops.spmm(CsrMatrix(indptr, cols, shape=(6, 5)), x), arrays[1], rng=rng)


@pytest.mark.parametrize("name", FLOATS)
def test_gradients_match_numpy(backend, rng, name):
    a, dense = random_matrix(rng, (17, 12), 70, name)
    values = drupe.tensor(a.values, requires_grad=True)
    trained = CsrMatrix(a.indptr, a.indices, values, shape=a.shape)
    x, dy = draw(rng, (12, 33), name), draw(rng, (17, 33), name)
    leaf = drupe.tensor(x, requires_grad=True)
    ops.spmm(trained, leaf).backward(dy)
    assert_close(leaf.grad.numpy(), dense.T @ f64(dy), name, 12, 8)
    rows = np.repeat(np.arange(17), np.diff(a.indptr.numpy()))
    expected = (f64(dy)[rows] * f64(x)[a.indices.numpy()]).sum(1)
    assert_close(values.grad.numpy(), expected, name, 33, 6)


def test_half_operands_give_float32_values_their_gradient(device, rng):
    values = drupe.tensor(draw(rng, 3, "float32"), requires_grad=True)
    x = draw(rng, (2, 4), "bfloat16")
    ops.spmm(matrix([0, 1, 3], [1, 0, 1], values, shape=(2, 2)), x).backward(np.ones((2, 4), x.dtype))
    assert values.grad.dtype == np.float32
    assert_close(values.grad.numpy(), f64(x)[[1, 0, 1]].sum(1), "bfloat16", 4, 2)


def symmetric(rng, nodes=15, name="float64"):
    a = CsrMatrix.normalized_adjacency(*rng.integers(0, nodes, (2, 40)), nodes, dtype=name)
    return a, f64(a.to_dense().numpy())


@pytest.mark.parametrize("weights", [[0.5, 0.25], [1, 0.5, -2, 0.25]])
def test_propagate_sums_powers(backend, rng, weights):
    a, dense = symmetric(rng, name="float32")
    x = draw(rng, (15, 20), "float32")
    expected = sum(w * np.linalg.matrix_power(dense, k) @ x for k, w in enumerate(weights))
    assert_close(ops.propagate(a, x, weights), expected, "float32", 12, 4)


def test_gradients_of_propagate(device, rng):
    a, _ = symmetric(rng)
    x = rng.standard_normal((15, 3))
    check_gradients(lambda x: ops.propagate(a, x, (0.25, 0.5, 2)), x, rng=rng)
    b, _ = random_matrix(rng, (15, 15), 40, "float64")
    check_gradients(lambda x: ops.propagate(b, x, (0.25, 0.5, 2)), x, rng=rng)


@pytest.mark.parametrize("weights", [[0.5, 0.25], [1, 0.5, -2, 0.25]])
@pytest.mark.parametrize("width", [20, 64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_propagate_makes_the_rows_wanted(backend, rng, weights, width, index):
    a, _ = random_matrix(rng, (23, 23), 90, "float32")
    x, rows = draw(rng, (23, width), "float32"), rng.permutation(23)[:9].astype(index)
    leaf, other = drupe.tensor(x, requires_grad=True), drupe.tensor(x, requires_grad=True)
    whole, some = ops.propagate(a, leaf, weights), ops.propagate(a, other, weights, rows=rows)
    np.testing.assert_array_equal(some.detach().numpy(), whole.detach().numpy()[rows])
    dy = draw(rng, (9, width), "float32")
    spread = np.zeros((23, width), np.float32)
    spread[rows] = dy
    whole.backward(spread)
    some.backward(dy)
    np.testing.assert_array_equal(other.grad.numpy(), leaf.grad.numpy())


def test_rows_of_long_rows(backend, rng):
    counts = np.array([3, 2500, 0, 40, 2100, 5]) // (8 if backend == "cuda" else 1)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    a = CsrMatrix(indptr, rng.integers(0, 6, indptr[-1]), draw(rng, indptr[-1], "float32"), shape=(6, 6))
    x = draw(rng, (6, 40), "float32")
    whole = ops.propagate(a, x, (1, 0.5))
    for rows in ([4], [5, 1, 2], [2], [0, 3, 5]):
        np.testing.assert_array_equal(ops.propagate(a, x, (1, 0.5), rows=np.array(rows)), whole[rows])
    leaf = drupe.tensor(x, requires_grad=True)
    ops.propagate(a, leaf, (1, 0.5), rows=np.array([1, 3])).backward(x[:2])
    spread = np.zeros_like(x)
    spread[[1, 3]] = x[:2]
    assert_close(leaf.grad.numpy(), f64(a.to_dense().numpy()).T @ spread * 0.5 + spread, "float32", 5000, 16)


def test_rows_that_are_not_wanted_are_not_read(backend, rng):
    a, _ = random_matrix(rng, (12, 12), 40, "float32")
    leaf = drupe.tensor(draw(rng, (12, 8), "float32"), requires_grad=True)
    assert ops.propagate(a, leaf, (1, 2), rows=np.zeros(0, np.int64)).shape == (0, 8)
    ops.propagate(a, leaf, (1, 2), rows=np.array([7])).backward(np.full((1, 8), np.inf, np.float32))
    reached = a.to_dense().numpy()[7] != 0
    reached[7] = True
    np.testing.assert_array_equal(np.isfinite(leaf.grad.numpy()).all(1), ~reached)


def test_gradients_of_rows(device, rng):
    a, _ = random_matrix(rng, (15, 15), 40, "float64")
    rows = rng.permutation(15)[:4]
    check_gradients(lambda x: ops.propagate(a, x, (0.25, 0.5, 2), rows=rows), rng.standard_normal((15, 3)), rng=rng)


def test_matches_scipy(rng):
    sparse = pytest.importorskip("scipy.sparse")
    given = sparse.random(40, 30, 0.1, "csr", np.float32, rng=rng)
    x = draw(rng, (30, 17), "float32")
    np.testing.assert_allclose(ops.spmm(CsrMatrix.from_scipy(given), x), given @ x, rtol=1e-5, atol=1e-5)


def test_matches_torch(rng):
    torch = pytest.importorskip("torch")
    a, _ = random_matrix(rng, (20, 30), 90, "float32")
    x = draw(rng, (30, 17), "float32")
    parts = [torch.tensor(np.asarray(t)) for t in (a.indptr, a.indices.numpy().astype(np.int64), a.values)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        csr = torch.sparse_csr_tensor(*parts, a.shape)
    np.testing.assert_allclose(ops.spmm(a, x), csr @ torch.tensor(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((4, 2), np.float32)}, ValueError, r"\[spmm\] a is \(2, 3\), x is \(4, 2\): inner"),
        ({"x": np.zeros(3, np.float32)}, ValueError, "expected 2 dimensions"),
        ({"x": np.zeros((3, 2), np.int32)}, TypeError, "expected a float dtype"),
        ({"x": np.zeros((3, 2))}, TypeError, "a is float32, x is float64"),
        ({"z": np.zeros((3, 2), np.float32)}, ValueError, r"z is \(3, 2\): expected \(2, 2\)"),
        ({"z": np.zeros((2, 2))}, TypeError, "z is float64, x is float32"),
        ({"a": np.zeros((2, 3))}, TypeError, "a is ndarray: expected a drupe.CsrMatrix"),
    ],
)
def test_errors(device, change, error, message):
    a = matrix([0, 1, 2], [0, 2], np.ones(2, np.float32), shape=(2, 3))
    with pytest.raises(error, match=message):
        ops.spmm(**{"a": a, "x": np.zeros((3, 2), np.float32), **change})


def test_errors_of_propagate(device):
    a = matrix([0, 1, 2], [0, 2], shape=(2, 3))
    with pytest.raises(ValueError, match="expected a square matrix"):
        ops.propagate(a, np.zeros((3, 2), np.float32), (1, 2))
    square = matrix([0, 1], [0], shape=(1, 1))
    with pytest.raises(ValueError, match="expected 2 or more"):
        ops.propagate(square, np.zeros((1, 2), np.float32), (1,))
    for rows, error, message in [
        ([0, 1], IndexError, r"\[propagate\] rows\[1\] is 1: expected \[0, 1\)"),
        ([-1], IndexError, r"rows\[0\] is -1"),
        ([0, 0], ValueError, "rows holds 0 twice"),
        ([[0]], ValueError, r"rows is \(1, 1\): expected 1 dimension"),
        ([0.0], TypeError, "rows is float64: expected int32 or int64"),
    ]:
        with pytest.raises(error, match=message):
            ops.propagate(square, np.zeros((1, 2), np.float32), (1, 2), rows=np.array(rows))
    values = drupe.tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="require a gradient"):
        ops.propagate(matrix([0, 1], [0], values, shape=(1, 1)), np.zeros((1, 2), np.float32), (1, 2))
    with pytest.raises(TypeError, match=r"expected a drupe\.CsrMatrix"):
        ops.propagate(np.eye(2), np.zeros((2, 2)), (1, 2))
