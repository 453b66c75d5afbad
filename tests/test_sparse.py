from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import CsrMatrix


def matrix(indptr, indices, values=None, **options):
    return CsrMatrix(np.array(indptr), np.array(indices), values, **options)


def random_matrix(rng, shape=(7, 5), count=20):
    rows, cols = rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)
    values = rng.standard_normal(count).astype(np.float32)
    return rows, cols, values, CsrMatrix.from_coo(rows, cols, values, shape=shape)


def test_from_coo_keeps_the_order_within_rows(device):
    a = CsrMatrix.from_coo(
        np.array([1, 0, 1, 1]), np.array([2, 1, 0, 0]), np.array([1, 2, 3, 4], np.float32), shape=(3, 3)
    )
    assert a.indptr.numpy().tolist() == [0, 1, 4, 4]
    assert a.indices.numpy().tolist() == [1, 2, 0, 0]
    assert a.values.numpy().tolist() == [2, 1, 3, 4]
    assert a.to_dense().numpy().tolist() == [[0, 2, 0], [7, 0, 1], [0, 0, 0]]
    assert (a.shape, a.nnz) == ((3, 3), 4)
    assert repr(a) == "CsrMatrix(float32 (3, 3), 4 entries)"


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_the_transpose_is_sorted_and_kept(device, rng, index):
    rows, cols, values, _ = random_matrix(rng)
    a = CsrMatrix.from_coo(rows.astype(index), cols.astype(index), values, shape=(7, 5))
    b = a.transpose()
    assert a.T is b
    assert b.shape == (5, 7)
    np.testing.assert_allclose(b.to_dense().numpy(), a.to_dense().numpy().T, rtol=1e-6)
    starts, columns = b.indptr.numpy(), b.indices.numpy()
    assert columns.dtype == index
    assert all((np.diff(columns[starts[r] : starts[r + 1]]) >= 0).all() for r in range(5))


def test_the_transpose_of_trained_values_follows_them(device, rng):
    values = drupe.tensor(np.array([1, 2, 3], np.float32), requires_grad=True)
    a = matrix([0, 2, 3], [0, 1, 0], values, shape=(2, 2))
    assert a.T.values.detach().numpy().tolist() == [1, 3, 2]
    values.copy_from(np.array([4, 5, 6], np.float32))
    assert a.T.values.detach().numpy().tolist() == [4, 6, 5]
    (a.T.values * drupe.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert values.grad.numpy().tolist() == [1, 100, 10]


def test_it_owns_what_it_was_given():
    indptr, indices, values = np.array([0, 1, 2]), np.array([0, 1]), np.ones(2, np.float32)
    a = CsrMatrix(indptr, indices, values, shape=(2, 2))
    indptr[:], indices[:], values[:] = 99, 99, 99
    assert a.to_dense().numpy().tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        a.indices.numpy()[0] = 5


def test_symmetric_is_checked(device, rng):
    rows, cols = np.array([0, 1, 1, 2, 2]), np.array([1, 2, 0, 1, 2])
    values = np.array([1, 2, 1, 2, 3], np.float32)
    indptr = [0, 1, 3, 5]
    a = matrix(indptr, cols, values, shape=(3, 3), symmetric=True)
    assert a.transpose() is a
    with pytest.raises(ValueError, match="not symmetric"):
        matrix(indptr, cols, values + rows.astype(np.float32), shape=(3, 3), symmetric=True)
    with pytest.raises(ValueError, match="not symmetric"):
        matrix(indptr, [1, 2, 1, 1, 2], shape=(3, 3), symmetric=True)
    with pytest.raises(ValueError, match="is square"):
        matrix([0, 1], [1], shape=(1, 2), symmetric=True)
    with pytest.raises(ValueError, match="need not stay symmetric"):
        matrix([0, 1], [0], drupe.tensor([1.0], requires_grad=True), shape=(1, 1), symmetric=True)


def test_normalized_adjacency(device):
    a = CsrMatrix.normalized_adjacency([0, 1, 0, 2], [1, 0, 2, 2], 4, dtype="float64")
    half, third = 1 / 2, 1 / 2**0.5
    assert a.symmetric
    np.testing.assert_allclose(
        a.to_dense().numpy(), [[0, third, half, 0], [third, 0, 0, 0], [half, 0, half, 0], [0, 0, 0, 0]], rtol=1e-12
    )
    assert CsrMatrix.normalized_adjacency(np.zeros(0, int), np.zeros(0, int), 0).shape == (0, 0)
    assert CsrMatrix.normalized_adjacency([0], [1], 2).values.dtype == np.float32


def test_astype_and_device(device, rng):
    *_, a = random_matrix(rng)
    assert a.astype("float32") is a
    assert a.astype("bfloat16").values.raw.dtype == "bfloat16"
    assert a.to(device) is a
    there = a.to("cpu")
    assert there.device == "cpu"
    np.testing.assert_array_equal(there.to_dense().numpy(), a.to_dense().numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indptr": [1, 1, 2]}, ValueError, r"indptr\[0\] is 1: expected 0"),
        ({"indptr": [0, 3, 2]}, ValueError, r"indptr\[2\] is 2 after 3: expected no decrease"),
        ({"indptr": [0, 1, 3]}, ValueError, "indptr ends with 3: there are 2 indices"),
        ({"indptr": [0, 2]}, ValueError, r"indptr is \(2,\): expected \(3,\) for 2 rows"),
        ({"indptr": np.zeros((3, 1), int)}, ValueError, "expected 1 dimension"),
        ({"indptr": np.zeros(3)}, TypeError, "indptr is float64: expected int32 or int64"),
        ({"indices": [0, 2]}, IndexError, r"indices\[1\] is 2: expected \[0, 2\)"),
        ({"indices": [-1, 0]}, IndexError, r"indices\[0\] is -1: expected \[0, 2\)"),
        ({"indices": np.zeros(2)}, TypeError, "indices is float64"),
        ({"values": np.ones(3, np.float32)}, ValueError, r"values is \(3,\): expected \(2,\)"),
        ({"values": np.ones(2, int)}, TypeError, "values is int64: expected a float dtype"),
        ({"shape": (-1, 2)}, ValueError, "the shape is"),
    ],
)
def test_errors(device, change, error, message):
    arguments = {"indptr": [0, 1, 2], "indices": [0, 1], "values": np.ones(2, np.float32), "shape": (2, 2)} | change
    arrays = {name: np.asarray(arguments.pop(name)) for name in ("indptr", "indices", "values")}
    with pytest.raises(error, match=rf"\[csr\] .*{message}"):
        CsrMatrix(**arrays, **arguments)


def test_errors_of_the_constructors(device):
    with pytest.raises(IndexError, match=r"rows\[0\] is 2: expected \[0, 2\)"):
        CsrMatrix.from_coo(np.array([2]), np.array([0]), shape=(2, 2))
    with pytest.raises(IndexError, match=r"cols\[0\] is -1"):
        CsrMatrix.from_coo(np.array([0]), np.array([-1]), shape=(2, 2))
    with pytest.raises(ValueError, match=r"rows is \(1,\), cols is \(2,\)"):
        CsrMatrix.from_coo(np.array([0]), np.array([0, 1]), shape=(2, 2))
    with pytest.raises(IndexError, match=r"targets\[1\] is 2: expected \[0, 2\)"):
        CsrMatrix.normalized_adjacency([0, 1], [1, 2], 2)
    with pytest.raises(ValueError, match="sources is"):
        CsrMatrix.normalized_adjacency([0], [1, 1], 2)
    with pytest.raises(TypeError, match="expected a list of integers"):
        CsrMatrix.normalized_adjacency([0.5], [1], 2)
    with pytest.raises(TypeError, match=r"expected a matrix with tocsr\(\), got list"):
        CsrMatrix.from_scipy([1])
