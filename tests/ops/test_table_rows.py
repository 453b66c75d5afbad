from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from table_cases import draw_lists, starts_of

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def splitmix64(state, output):
    """Output `output` of the generator, in Python's integers."""
    z = (state + (output + 1) * GAMMA) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def hashed(ids, rows, seed=0):
    """The formula, id by id; rows as numbers that broadcast to ids."""
    ids, rows = np.broadcast_arrays(ids, rows)
    values = [splitmix64(int(i) & MASK, seed) * int(n) >> 64 for i, n in zip(ids.flat, rows.flat, strict=True)]
    return np.array(values, np.int64).reshape(ids.shape)


def test_the_generator_is_the_published_one():
    # The first outputs from state 1234567, as the reference implementation prints them.
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [splitmix64(1234567, k) for k in range(5)] == first


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("tables", [(7,), (3, 1, 40), tuple(range(1, 27)), tuple(range(1, 1000))], ids=len)
@pytest.mark.parametrize("batch", [0, 1, 37])
def test_rows_of_columns(backend, rng, index, tables, batch):
    for shape in ((batch, len(tables)), (batch, len(tables), 3), (batch, len(tables), 11), (batch, len(tables), 0)):
        sizes = np.reshape(tables, (1, -1, *[1] * (len(shape) - 2)))
        starts = starts_of(tables).reshape(sizes.shape)
        ids = (rng.random(shape) * sizes).astype(index)
        rows = ops.table_rows(ids, tables)
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, ids + starts)
        any_ids = rng.integers(np.iinfo(index).min, np.iinfo(index).max, shape, index)
        np.testing.assert_array_equal(ops.table_rows(any_ids, tables, hash_seed=9), hashed(any_ids, sizes, 9) + starts)
        np.testing.assert_array_equal(ops.hash_ids(any_ids, tables), hashed(any_ids, sizes))


@pytest.mark.parametrize("tables", [(7,), (3, 1, 40), tuple(range(1, 600))], ids=len)
@pytest.mark.parametrize("bags", [0, 1, 23])
def test_rows_of_lists(backend, rng, tables, bags):
    ids, begins, table = draw_lists(rng, tables, bags)
    for index in (np.int32, np.int64):
        rows = ops.table_rows(ids.astype(index), tables, begins.astype(index))
        np.testing.assert_array_equal(rows, ids + starts_of(tables)[table])
    np.testing.assert_array_equal(ops.hash_ids(-ids, tables, begins, seed=3), hashed(-ids, np.array(tables)[table], 3))


@pytest.mark.parametrize("rows", [1, 2, 1000, 2**31 + 11, 2**32, 2**32 + 1, 10**12 + 7, 2**63 - 1])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_hashes_follow_the_formula(backend, rng, rows, seed):
    edges = [0, 1, -1, 2**31, 2**32, -(2**32), 2**63 - 1, -(2**63)]
    ids = np.concatenate([edges, rng.integers(-(2**63), 2**63 - 1, 45)])
    for size in (0, 1, 7, 8, 9, 31, ids.size):
        y = ops.hash_ids(ids[:size], rows, seed=seed)
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, hashed(ids[:size], rows, seed))


def test_any_shape_stride_and_width_of_ids(backend, rng):
    ids = rng.integers(-(2**31), 2**31 - 1, (6, 10))
    for view in (ids, ids[::2, ::-1], ids.T, ids[0, 0], ids[:0]):
        np.testing.assert_array_equal(ops.hash_ids(view, 100), hashed(view, 100))
        np.testing.assert_array_equal(ops.hash_ids(view.astype(np.int32), 100), hashed(view, 100))
    np.testing.assert_array_equal(ops.hash_ids(ids[::2, ::-1], range(1, 11)), hashed(ids[::2, ::-1], np.arange(1, 11)))


@pytest.mark.parametrize("kind", ["counted", "strided", "random"])
def test_hashes_are_spread_evenly(isa, rng, kind):
    n, rows = 200_000, 1009
    ids = {
        "counted": np.arange(n),
        "strided": np.arange(n) << 40,
        "random": rng.integers(-(2**63), 2**63 - 1, n),
    }[kind]
    for seed in (0, 5):
        y = ops.hash_ids(ids, rows, seed=seed)
        counts = np.bincount(y, minlength=rows)
        statistic = ((counts - n / rows) ** 2 / (n / rows)).sum()
        assert abs(statistic - (rows - 1)) < 5 * np.sqrt(2 * (rows - 1))  # chi-square, within 5 deviations
        # What follows from a pair of neighbours is spread as evenly.
        pairs = np.bincount(31 * (y[:-1] % 31) + y[1:] % 31, minlength=961)
        expected = np.outer(*[np.bincount(np.arange(rows) % 31) / rows] * 2).reshape(-1) * (n - 1)
        statistic = ((pairs - expected) ** 2 / expected).sum()
        assert abs(statistic - 960) < 5 * np.sqrt(2 * 960)
    assert (ops.hash_ids(ids, rows) != ops.hash_ids(ids, rows, seed=1)).mean() > 0.99


def test_same_rows_on_any_number_of_threads(isa, rng):
    ids = rng.integers(-(2**63), 2**63 - 1, (5000, 13))
    before, results = drupe.num_threads(), []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(ops.hash_ids(ids, range(100, 113)))
    drupe.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**63)])
@pytest.mark.parametrize("at", [0, 20000, 39999])
def test_ids_outside_are_found_wherever_they_are(backend, bad, at):
    tables, ids = (90, 5, 70, 5), np.zeros((10000, 4), np.int64)
    place = (at // 4, 2 * (at % 2) + 1)
    ids[place] = bad
    if place != (9999, 3):
        ids[-1, -1] = 99  # and only the first of all
    message = rf"\[table_rows\] ids\[{place[0]}, {place[1]}\] is {bad}: table {place[1]} has 5 rows"
    with pytest.raises(IndexError, match=message):
        ops.table_rows(ids, tables)
    flat = np.zeros(40000, np.int64)
    flat[at] = bad
    with pytest.raises(IndexError, match=rf"ids\[{at}\] is {bad}: table 1 has 5 rows"):
        ops.table_rows(flat, (3, 5, 3), np.array([[0], [0], [40000]]))


IDS = np.zeros((2, 3), np.int64)
N, AT = np.zeros(6, np.int64), np.zeros((3, 2), np.int64)


@pytest.mark.parametrize(
    ("ids", "tables", "offsets", "error", "message"),
    [
        (IDS, (2, 0, 1), None, IndexError, r"\[table_rows\] ids\[0, 1\] is 0: table 1 has 0 rows"),
        (IDS, (2, 2), None, ValueError, r"ids is \(2, 3\): expected \(B, 2\) or \(B, 2, L\), or \(N,\) and offsets"),
        (N, (2, 2), None, ValueError, r"ids is \(6,\): expected \(B, 2\)"),
        (IDS, (), None, ValueError, r"tables is empty"),
        (IDS, (2, -1, 2), None, ValueError, r"tables\[1\] is -1"),
        (IDS, (2**62, 2**62, 2), None, ValueError, r"tables have more than 2\^63 rows"),
        (IDS.astype(float), (2, 2, 2), None, TypeError, r"ids is float64: expected int32 or int64"),
        (IDS, (2, 2, 2), AT, ValueError, r"ids is \(2, 3\): expected \(N,\) beside offsets"),
        (N, (2, 2), AT, ValueError, r"offsets is \(3, 2\): expected \(2, B\) for 2 tables"),
        (N, (2, 2, 2), AT[0], ValueError, r"offsets is \(2,\): expected \(3, B\)"),
        (N, (2, 2, 2), AT.astype(float), TypeError, r"offsets is float64"),
        (N, (2, 2, 2), AT + 1, ValueError, r"offsets\[0, 0\] is 1: expected 0"),
        (N, (2, 2, 2), np.array([[0, 4], [3, 4], [5, 6]]), ValueError, r"offsets\[1, 0\] is 3 after 4"),
        (N, (2, 2, 2), np.array([[0, 4], [4, 4], [5, 7]]), ValueError, r"offsets\[2, 1\] is 7: there are only 6"),
        (N, (2, 2, 2), AT[:, :0], ValueError, r"offsets is empty, but there are 6 indices"),
    ],
)
def test_errors_name_what_is_wrong(device, ids, tables, offsets, error, message):
    with pytest.raises(error, match=message):
        ops.table_rows(ids, tables, offsets)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (0, {}, IndexError, r"\[hash_ids\] table 0 has 0 rows"),
        ((3, 0, 2), {}, IndexError, r"\[hash_ids\] table 1 has 0 rows"),
        (-1, {}, ValueError, r"rows is -1"),
        (3, {"seed": -1}, ValueError, r"\[hash_ids\] seed is -1: expected 0 to 2\^64 - 1"),
        (3, {"seed": 2**64}, ValueError, r"seed is 18446744073709551616"),
        (3, {"offsets": AT}, ValueError, r"offsets are for many tables"),
    ],
)
def test_errors_of_hashes(device, rows, options, error, message):
    with pytest.raises(error, match=message):
        ops.hash_ids(IDS, rows, **options)
    with pytest.raises(TypeError, match=r"\[hash_ids\] ids is float32"):
        ops.hash_ids(IDS.astype(np.float32), 3)
    with pytest.raises(ValueError, match=r"\[table_rows\] hash_seed is -1"):
        ops.table_rows(IDS, (2, 2, 2), hash_seed=-1)
