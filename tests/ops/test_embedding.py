from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import SparseRows, ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


def summed(indices, dy, rows):
    total = np.zeros((rows, dy.shape[-1]))
    np.add.at(total, np.asarray(indices).reshape(-1), f64(dy).reshape(-1, dy.shape[-1]))
    return total


def backward(weight, indices, dy, **options):
    leaf = drupe.tensor(weight, requires_grad=True)
    ops.embedding(leaf, indices, **options).backward(dy)
    return leaf.grad


@pytest.mark.parametrize("name", [*FLOATS, "int8", "int64"])
@pytest.mark.parametrize("width", [0, 1, 3, 8, 16, 17, 32, 64, 100, 300])
def test_gathers_rows(backend, rng, name, width):
    weight = (10 * rng.standard_normal((50, width))).astype(dtype(name))
    indices = rng.integers(0, 50, (7, 23))
    for kind in (np.int32, np.int64):
        y = ops.embedding(weight, indices.astype(kind))
        assert y.dtype == weight.dtype
        np.testing.assert_array_equal(y, weight[indices])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)], ids=str)
def test_any_shape_of_indices(backend, rng, shape):
    weight = rng.standard_normal((5, 6))
    indices = rng.integers(0, 5, shape)
    np.testing.assert_array_equal(ops.embedding(weight, indices), weight[indices])
    grad = backward(weight, indices, rng.standard_normal((*shape, 6)))
    assert grad.shape == (5, 6)


def test_strided_misaligned_and_read_only_operands(backend, rng):
    weight = rng.standard_normal((40, 12)).astype(np.float32)
    indices = rng.integers(0, 20, (9, 10))
    for table in (weight[::2], weight[::-2], weight[:20, 3:], weight[:20, ::2], weight.T[:10].T[:20]):
        np.testing.assert_array_equal(ops.embedding(table, indices[::3, ::-1]), table[indices[::3, ::-1]])
    for view in np.s_[::2], np.s_[:20, 3:], np.s_[:20, 4:], np.s_[:20, ::2]:  # which stay views on a GPU
        y = ops.embedding(drupe.tensor(weight)[view], indices)
        np.testing.assert_array_equal(y.numpy(), weight[view][indices])
    buffer = np.zeros(20 * 5 * 4 + 1, np.uint8)
    misaligned = buffer[1:].view(np.float32).reshape(20, 5)
    misaligned[...] = weight[:20, :5]
    misaligned.flags.writeable = False
    np.testing.assert_array_equal(ops.embedding(misaligned, indices), misaligned[indices])


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("width", [1, 5, 16, 40, 130])
@pytest.mark.parametrize("rows", [1, 9, 3000])
def test_gradient_sums_the_uses_of_each_row(backend, rng, name, width, rows):
    count = 700
    indices = rng.integers(0, rows, count)
    dy = draw(rng, (count, width), name)
    weight = np.zeros((rows, width), dtype(name))
    expected = summed(indices, dy, rows)
    uses = max(np.bincount(indices))
    dense = backward(weight, indices, dy)
    assert_close(dense.numpy(), expected, name, uses, np.sqrt(uses))
    sparse = backward(weight, indices, dy, sparse=True)
    assert isinstance(sparse, SparseRows)
    assert sparse.shape == (rows, width)
    np.testing.assert_array_equal(drupe.Tensor(sparse.indices).numpy(), np.unique(indices))
    np.testing.assert_array_equal(sparse.to_dense().numpy(), dense.numpy())


@pytest.mark.parametrize(
    ("count", "rows"),
    [(2047, 9), (4096, 1), (4097, 300), (16383, 300), (16384, 2**20), (70000, 5), (100000, 70000)],
    ids=str,
)
def test_long_lists_and_long_rows(backend, rng, count, rows):
    # Across the sort's blocks and digits, and rows whose uses cross many tasks.
    indices = np.minimum(rng.integers(0, rows, count), rng.integers(0, rows, count)).astype(np.int32)
    dy = rng.integers(-8, 9, (count, 3)).astype(np.float32)
    sparse = backward(np.zeros((rows, 3), np.float32), indices, dy, sparse=True)
    unique = np.unique(indices)
    np.testing.assert_array_equal(drupe.Tensor(sparse.indices).numpy(), unique)
    np.testing.assert_array_equal(drupe.Tensor(sparse.values).numpy(), summed(indices, dy, rows)[unique])


@pytest.mark.parametrize("width", [4, 6, 8])
def test_gradients_whose_memory_begins_anywhere(backend, rng, width):
    indices = rng.integers(0, 5, 40)
    dy = rng.integers(-8, 9, (40, width)).astype(np.float32)
    for first in (0, 1, 4):
        memory = drupe.tensor(np.concatenate([np.zeros(first, np.float32), dy.reshape(-1)]))
        grad = backward(np.zeros((5, width), np.float32), indices, memory[first:].reshape(40, width))
        np.testing.assert_array_equal(grad.numpy(), summed(indices, dy, 5))


def test_half_precision_sums_round_once(backend):
    # 4096 uses of one row: in bfloat16, a running sum of ones would stop at 256.
    for name in ("float16", "bfloat16"):
        grad = backward(np.zeros((2, 600), dtype(name)), np.ones(4096, np.int64), np.ones((4096, 600), dtype(name)))
        np.testing.assert_array_equal(f64(grad.numpy()), np.repeat([[0.0], [4096.0]], 600, axis=1))


def test_padding_row_gets_no_gradient(backend, rng):
    indices = rng.integers(0, 4, 100)
    dy = rng.standard_normal((100, 5))
    for padding in (0, 2, 3, -1):
        expected = summed(indices, dy, 4)
        expected[padding] = 0
        grad = backward(np.ones((4, 5)), indices, dy, padding_idx=padding)
        np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-12, atol=1e-12)
        sparse = backward(np.ones((4, 5)), indices, dy, padding_idx=padding, sparse=True)
        assert padding % 4 not in drupe.Tensor(sparse.indices).tolist()
        np.testing.assert_array_equal(sparse.to_dense().numpy(), grad.numpy())
    only_padding = backward(np.ones((4, 5)), np.full(9, 2), np.ones((9, 5)), padding_idx=2, sparse=True)
    assert drupe.Tensor(only_padding.indices).shape == (0,)


def test_broadcast_and_strided_gradients(backend, rng):
    indices = rng.integers(0, 6, (4, 7))
    dy = rng.standard_normal((7, 4, 3)).transpose(1, 0, 2)
    np.testing.assert_allclose(backward(np.ones((6, 3)), indices, dy).numpy(), summed(indices, dy, 6), atol=1e-12)
    dy = np.broadcast_to(rng.standard_normal(3), (4, 7, 3))
    np.testing.assert_allclose(backward(np.ones((6, 3)), indices, dy).numpy(), summed(indices, dy, 6), atol=1e-12)


def test_finite_differences(device, rng):
    indices = rng.integers(0, 5, (3, 4))
    check_gradients(lambda w, i: ops.embedding(w, i), rng.standard_normal((5, 3)), indices, rng=rng)


def test_gradients_of_two_uses_add_up(backend, rng):
    weight = rng.standard_normal((9, 4))
    first, second = np.array([1, 3, 3]), np.array([3, 8])
    expected = np.zeros((9, 4))
    np.add.at(expected, first, 1)
    np.add.at(expected, second, 1)
    for one, two in ((True, True), (True, False), (False, True)):
        leaf = drupe.tensor(weight, requires_grad=True)
        ops.embedding(leaf, first, sparse=one).backward(np.ones((3, 4)))
        ops.embedding(leaf, second, sparse=two).backward(np.ones((2, 4)))
        grad = leaf.grad.to_dense() if isinstance(leaf.grad, SparseRows) else leaf.grad
        assert isinstance(leaf.grad, SparseRows) == (one and two)
        np.testing.assert_array_equal(grad.numpy(), expected)


@pytest.mark.parametrize("count", [2048, 5000])
def test_merging_many_rows_of_huge_tables(backend, rng, count):
    rows = np.sort(rng.choice(2**12, count // 2, replace=False)) * 2**33
    values = rng.integers(-8, 9, (count, 2)).astype(np.float64)
    halves = [drupe.as_tensor(x).raw for x in (rows, rows + 2**33, *np.split(values, 2))]
    indices, merged = drupe._C.merge_rows(halves[:2], halves[2:])
    unique, place = np.unique(np.concatenate([rows, rows + 2**33]), return_inverse=True)
    np.testing.assert_array_equal(drupe.Tensor(indices).numpy(), unique)
    np.testing.assert_array_equal(drupe.Tensor(merged).numpy(), summed(place, values, len(unique)))


def test_merging_rows_of_huge_tables(backend, rng):
    # Rows beyond 2^32 take the sort's wide entries.
    rows = np.array([2**40, 5, 2**40 + 1, 5, 2**62])
    values = rng.standard_normal((5, 3))
    split = [drupe.as_tensor(x).raw for x in (rows[:2], rows[2:], values[:2], values[2:])]
    indices, merged = drupe._C.merge_rows(split[:2], split[2:])
    np.testing.assert_array_equal(drupe.Tensor(indices).numpy(), [5, 2**40, 2**40 + 1, 2**62])
    expected = np.stack([values[1] + values[3], values[0], values[2], values[4]])
    np.testing.assert_allclose(drupe.Tensor(merged).numpy(), expected, rtol=1e-15)


def test_same_bits_on_any_number_of_threads(backend, rng):
    indices = np.minimum(rng.integers(0, 5000, 50000), rng.integers(0, 5000, 50000))
    dy = draw(rng, (50000, 20), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(backward(np.zeros((5000, 20), np.float32), indices, dy).numpy().copy())
    drupe.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_nan_and_infinity_stay_in_their_rows(backend):
    dy = np.array([[np.nan], [1.0], [np.inf]])
    grad = backward(np.zeros((4, 1)), np.array([0, 1, 2]), dy).numpy()
    np.testing.assert_array_equal(grad, [[np.nan], [1], [np.inf], [0]])


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**63)])
@pytest.mark.parametrize("at", [0, 40000, 99999])
def test_bad_indices_are_found_wherever_they_are(backend, bad, at):
    indices = np.zeros(100000, np.int64)
    indices[at] = bad
    with pytest.raises(IndexError, match=rf"\[embedding\] indices\[{at}\] is {bad}: the table has 5 rows"):
        ops.embedding(np.ones((5, 2)), indices)


@pytest.mark.parametrize(
    ("weight", "indices", "options", "error", "message"),
    [
        (np.ones((5, 2)), np.array([[0, 1], [7, -2]]), {}, IndexError, r"indices\[1, 0\] is 7: the table has 5 rows"),
        (np.ones((5, 2)), np.array(5), {}, IndexError, r"indices is 5: the table has 5 rows"),
        (np.ones((0, 2)), np.array([0]), {}, IndexError, r"indices\[0\] is 0: the table has 0 rows"),
        (np.ones((5, 0)), np.array([5]), {}, IndexError, r"indices\[0\] is 5"),
        (np.ones((5, 2)), np.array([0]), {"padding_idx": 5}, IndexError, r"padding_idx is 5: the table has 5 rows"),
        (np.ones((5, 2)), np.array([0]), {"padding_idx": -6}, IndexError, r"padding_idx is -6"),
        (np.ones(5), np.array([0]), {}, ValueError, r"weight is \(5,\): expected 2 dimensions"),
        (np.ones((5, 2)), np.array([0.0]), {}, TypeError, r"indices is float64: expected int32 or int64"),
        (np.ones((5, 2)), np.array([True]), {}, TypeError, r"indices is bool"),
    ],
)
def test_errors_name_what_is_wrong(device, weight, indices, options, error, message):
    with pytest.raises(error, match=message):
        ops.embedding(weight, indices, **options)


def test_indices_that_change_under_the_tape_are_found():
    indices = np.array([0, 1])
    leaf = drupe.tensor(np.ones((3, 2)), requires_grad=True)
    y = ops.embedding(leaf, indices)
    indices[1] = 3
    with pytest.raises(IndexError, match=r"indices\[1\] is 3: the table has 3 rows"):
        y.backward(np.ones((2, 2)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 1], r"indices\[1\] is 1 after 1: expected ascending"),
        ([2, 1], r"indices\[1\] is 1 after 2"),
        ([0, 4], "the table has 4 rows"),
    ],
)
def test_rows_made_by_hand_are_checked(device, rows, message):
    grad = SparseRows(drupe.tensor(np.array(rows)).raw, drupe.tensor(np.ones((2, 3))).raw, (4, 3))
    with pytest.raises((ValueError, IndexError), match=message):
        grad.to_dense()
