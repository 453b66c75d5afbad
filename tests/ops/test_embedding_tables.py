"""embedding_bag, its gradients and its fused step with many tables in one."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import SparseRows, ops
from gradients import check_gradients
from optimizer_cases import draw, lie
from reference import FLOATS, assert_close, f64
from row_step_cases import OPTIONS, RULES, formula, new_states
from table_cases import draw_lists, starts_of

TABLES = (5, 40, 1, 12)
KINDS = ("one", "rows", "lists")


def draw_bags(rng, kind, tables=TABLES, batch=9, length=3):
    """(indices, offsets), and of each index in order its row in the merged table and its bag's place in the results."""
    T = len(tables)
    if kind == "lists":
        flat, offsets, table = draw_lists(rng, tables, batch)
        bag = np.searchsorted(offsets.reshape(-1), np.arange(flat.size), side="right") - 1
        return flat, offsets, flat + starts_of(tables)[table], bag % batch * T + bag // batch
    shape = (batch, T) if kind == "one" else (batch, T, length)
    sizes = np.reshape(tables, (1, T, *[1] * (len(shape) - 2)))
    indices = (rng.random(shape) * sizes).astype(np.int64)
    rows = indices + starts_of(tables).reshape(sizes.shape)
    return indices, None, rows.reshape(-1), np.arange(indices.size) // (indices.size // (batch * T))


def reference(weight, rows, places, bags, mode, scale=None, dy=None):
    """The results (bags, D), or the gradients of the table and the factors; in float64."""
    factors = np.ones(rows.size) if scale is None else f64(scale).reshape(-1)
    if mode == "mean":
        factors = factors / np.bincount(places, minlength=bags)[places]
    if dy is None:
        y = np.zeros((bags, weight.shape[1]))
        np.add.at(y, places, factors[:, None] * f64(weight)[rows])
        return y
    upstream = f64(dy).reshape(bags, -1)[places]
    dweight = np.zeros(weight.shape)
    np.add.at(dweight, rows, factors[:, None] * upstream)
    return dweight, (f64(weight)[rows] * upstream).sum(1)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 7, 16, 40, 130])
def test_results_and_gradients_match_numpy(backend, rng, name, mode, kind, width):
    weight = draw(rng, (sum(TABLES), width), name)
    indices, offsets, rows, places = draw_bags(rng, kind)
    dy = draw(rng, (9, 4, width), name)
    grads = []
    for sparse, index in ((False, np.int32), (True, np.int64)):
        leaf = drupe.tensor(weight, requires_grad=True)
        starts = None if offsets is None else offsets.astype(index)
        y = ops.embedding_bag(leaf, indices.astype(index), starts, mode=mode, sparse=sparse, tables=TABLES)
        assert y.shape == (9, 4, width)
        assert_close(y.detach().numpy().reshape(36, width), reference(weight, rows, places, 36, mode), name, 3, 4)
        y.backward(dy)
        grads.append(leaf.grad)
    dense, rows_only = grads
    assert_close(dense.numpy(), reference(weight, rows, places, 36, mode, dy=dy)[0], name, 27, 8)
    assert isinstance(rows_only, SparseRows)
    np.testing.assert_array_equal(drupe.Tensor(rows_only.indices).numpy(), np.unique(rows))
    np.testing.assert_array_equal(rows_only.to_dense().numpy(), dense.numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_per_sample_weights(backend, rng, kind, name):
    weight = draw(rng, (sum(TABLES), 20), name)
    indices, offsets, rows, places = draw_bags(rng, kind)
    scale, dy = draw(rng, indices.shape, name), draw(rng, (9, 4, 20), name)
    w, s = drupe.tensor(weight, requires_grad=True), drupe.tensor(scale, requires_grad=True)
    y = ops.embedding_bag(w, indices, offsets, per_sample_weights=s, tables=TABLES)
    assert_close(y.detach().numpy().reshape(36, 20), reference(weight, rows, places, 36, "sum", scale), name, 3, 4)
    y.backward(dy)
    dweight, dscale = reference(weight, rows, places, 36, "sum", scale, dy)
    assert_close(w.grad.numpy(), dweight, name, 27, 8)
    assert_close(s.grad.numpy(), dscale.reshape(scale.shape), name, 20, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_differences(device, rng, kind):
    indices, offsets, *_ = draw_bags(rng, kind, (2, 3, 2), batch=4)
    given = [indices] if offsets is None else [indices, offsets]
    weight, scale = rng.standard_normal((7, 3)), rng.standard_normal(indices.shape)
    check_gradients(lambda w, *at: ops.embedding_bag(w, *at, mode="mean", tables=(2, 3, 2)), weight, *given, rng=rng)
    check_gradients(
        lambda w, s, *at: ops.embedding_bag(w, *at, per_sample_weights=s, tables=(2, 3, 2)),
        weight,
        scale,
        *given,
        rng=rng,
    )


@pytest.mark.parametrize("tables", [(3,), tuple(range(1, 27)), tuple(range(1, 600))], ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_tables_and_threads(backend, rng, tables, kind):
    # Across the kernels' tasks and launches, wherever a task's bags begin among the tables.
    weight = rng.integers(-8, 9, (sum(tables), 4)).astype(np.float32)
    batch = 3 if len(tables) > 100 else 700
    indices, offsets, rows, places = draw_bags(rng, kind, tables, batch)
    bags = batch * len(tables)
    dy = rng.integers(-8, 9, (batch, len(tables), 4)).astype(np.float32)
    before = drupe.num_threads()
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaf = drupe.tensor(weight, requires_grad=True)
        y = ops.embedding_bag(leaf, indices, offsets, tables=tables)
        y.backward(dy)
        np.testing.assert_array_equal(y.detach().numpy().reshape(bags, 4), reference(weight, rows, places, bags, "sum"))
        np.testing.assert_array_equal(leaf.grad.numpy(), reference(weight, rows, places, bags, "sum", dy=dy)[0])
    drupe.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_extent(backend, kind):
    weight = np.ones((4, 5))
    shapes = {"one": [(0, 2)], "rows": [(0, 2, 3), (3, 2, 0), (0, 2, 0)], "lists": [(0,), (0,)]}[kind]
    for shape, batch in zip(shapes, (0, 3, 0), strict=False):
        offsets = np.zeros((2, batch), np.int64) if kind == "lists" else None
        leaf = drupe.tensor(weight, requires_grad=True)
        y = ops.embedding_bag(leaf, np.zeros(shape, np.int64), offsets, mode="mean", tables=(0, 4))
        np.testing.assert_array_equal(y.detach().numpy(), np.zeros((batch, 2, 5)))
        y.backward(np.ones((batch, 2, 5)))
        np.testing.assert_array_equal(leaf.grad.numpy(), np.zeros((4, 5)))
    y = ops.embedding_bag(np.ones((4, 0)), np.zeros((3, 2), np.int64), tables=(2, 2))
    assert y.shape == (3, 2, 0)
    with pytest.raises(IndexError, match=r"indices\[0, 1\] is 2: table 1 has 2 rows"):
        ops.embedding_bag(np.ones((4, 0)), np.array([[0, 2]]), tables=(2, 2))


def test_strided_operands(backend, rng):
    table = rng.standard_normal((40, 24)).astype(np.float32)
    indices = rng.integers(0, 10, (12, 6))[::2, ::-3]
    rows = indices + np.array([0, 10])
    for view in np.s_[::2], np.s_[:20, 1:], np.s_[:20, 4:20], np.s_[:20, ::2]:
        for weight in (table[view], drupe.tensor(table)[view]):
            y = ops.embedding_bag(weight, indices, tables=(10, 10))
            np.testing.assert_array_equal(np.asarray(y), table[view][rows])
    offsets = np.array([[0, 9, 2, 9], [4, 9, 8, 9]], np.int32)[:, ::2]
    flat = rng.integers(0, 10, 18)[::2]
    expected = [
        [table[flat[a:b] + t * 10].sum(0) for t, (a, b) in enumerate(pair)]
        for pair in (((0, 2), (4, 8)), ((2, 4), (8, 9)))
    ]
    np.testing.assert_allclose(
        ops.embedding_bag(table[:20], flat, offsets, tables=(10, 10)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_the_formula(backend, rng, rule, mode, kind):
    weight = draw(rng, (sum(TABLES), 16), "float32")
    there, states = lie(weight.copy()), [lie(s) for s in new_states(rule, weight)]
    wanted, wanted_states = f64(weight), [f64(s) for s in new_states(rule, weight)]
    options = {"weight_decay": 0.1, "grad_scale": 0.5, **OPTIONS[rule]}
    for step in (1, 2):
        indices, offsets, rows, places = draw_bags(rng, kind)
        dy = draw(rng, (9, 4, 16), "float32")
        ops.embedding_bag_step(
            there, lie(dy), indices, offsets, states, optimizer=rule, mode=mode, tables=TABLES, step=step, **options
        )
        g = reference(weight, rows, places, 36, mode, dy=dy)[0]
        touched = np.isin(np.arange(len(weight)), rows)
        wanted = formula(rule, wanted, g, wanted_states, touched, step, options)
        np.testing.assert_allclose(np.asarray(there), wanted, rtol=2e-4, atol=2e-4)
        for state, expected in zip(states, wanted_states, strict=True):
            np.testing.assert_allclose(np.asarray(state), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_merged_rows(backend, rng, kind):
    weight, dy = draw(rng, (sum(TABLES), 16), "float32"), draw(rng, (9, 4, 16), "float32")
    indices, offsets, rows, places = draw_bags(rng, kind)
    order = np.argsort(places, kind="stable")
    begins = np.searchsorted(places[order], np.arange(36))
    results = []
    for given in ((dy, indices, offsets), (dy.reshape(36, 16), rows[order], begins)):
        there, sums = lie(weight.copy()), lie(np.zeros(len(weight), np.float32))
        tables = TABLES if given[0] is dy else ()
        ops.embedding_bag_step(there, lie(given[0]), *given[1:], [sums], tables=tables, lr=0.1)
        results.append((np.asarray(there), np.asarray(sums)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**63)])
@pytest.mark.parametrize("at", [0, 4501, 8999])
def test_bad_indices_are_found_wherever_they_are(backend, bad, at):
    # Each would be a row of a neighbour.
    tables, weight = (90, 5, 90), np.ones((185, 2), np.float32)
    indices = np.zeros((3000, 3), np.int64)
    place = (at // 3, 1)
    indices[place] = bad
    with pytest.raises(IndexError, match=rf"\[embedding_bag\] indices\[{place[0]}, 1\] is {bad}: table 1 has 5 rows"):
        ops.embedding_bag(weight, indices, tables=tables)
    with pytest.raises(
        IndexError, match=rf"indices\[{place[0] // 2}, 1, {place[0] % 2}\] is {bad}: table 1 has 5 rows"
    ):
        ops.embedding_bag(weight, indices.reshape(1500, 2, 3).transpose(0, 2, 1), tables=tables)
    flat = np.zeros(9000, np.int64)
    flat[at] = bad
    with pytest.raises(IndexError, match=rf"indices\[{at}\] is {bad}: table 1 has 5 rows"):
        ops.embedding_bag(weight, flat, np.array([[0, 0], [0, 40], [9000, 9000]]), tables=tables)
    there, sums = drupe.tensor(weight), drupe.zeros((185,))
    with pytest.raises(IndexError, match=rf"\[embedding_bag_step\] indices\[{place[0]}, 1\] is {bad}: table 1 has 5"):
        ops.embedding_bag_step(there, drupe.ones((3000, 3, 2)), indices, None, [sums], tables=tables, lr=0.1)
    np.testing.assert_array_equal(there.numpy(), 1)
    np.testing.assert_array_equal(sums.numpy(), 0)


@pytest.mark.parametrize("bad", [-1, 3, 2**40, -(2**63)])
@pytest.mark.parametrize("at", [1, 3000, 5999])
def test_bad_offsets_are_found_wherever_they_are(backend, bad, at):
    offsets, zeros = np.arange(6000), np.zeros(6000, np.int64)
    offsets[at] = bad if bad != 3 else 6001
    with pytest.raises(ValueError, match=r"offsets\[\d, \d+\] is -?\d+"):
        ops.embedding_bag(np.ones((9, 2)), zeros, offsets.reshape(3, 2000), tables=(3, 3, 3))


def test_indices_that_change_under_the_tape_are_found():
    indices = np.array([[0, 1]])
    leaf = drupe.tensor(np.ones((3, 2)), requires_grad=True)
    y = ops.embedding_bag(leaf, indices, tables=(1, 2))
    indices[0, 0] = 1
    with pytest.raises(IndexError, match=r"\[embedding_bag_backward\] indices\[0, 0\] is 1: table 0 has 1 rows"):
        y.backward(np.ones((1, 2, 2)))


W, AT = np.ones((5, 2)), np.zeros((4, 2), np.int64)


@pytest.mark.parametrize(
    ("indices", "offsets", "options", "error", "message"),
    [
        (AT, None, {"tables": (2, 2)}, ValueError, r"\[embedding_bag\] tables have 4 rows together, weight has 5"),
        (AT, None, {"tables": (6, -1)}, ValueError, r"tables\[1\] is -1"),
        (AT, None, {"tables": (1, 2, 2)}, ValueError, r"indices is \(4, 2\): expected \(B, 3\) or \(B, 3, L\)"),
        (AT[0], None, {}, ValueError, r"indices is \(2,\): expected \(B, 2\) or \(B, 2, L\), or \(N,\) and offsets"),
        (AT, AT[:2], {}, ValueError, r"indices is \(4, 2\): expected \(N,\) beside offsets"),
        (AT[0], AT[0], {}, ValueError, r"offsets is \(2,\): expected \(2, B\) for 2 tables"),
        (AT[0], AT[:2].astype(float), {}, TypeError, r"offsets is float64"),
        (AT.astype(float), None, {}, TypeError, r"indices is float64"),
        (AT, None, {"mode": "max"}, ValueError, r"mode max takes one table"),
        (AT, None, {"padding_idx": 1}, ValueError, r"padding_idx is a row of one table"),
        (AT, None, {"per_sample_weights": np.ones(8)}, ValueError, r"per_sample_weights is \(8,\)"),
    ],
)
def test_errors_name_what_is_wrong(device, indices, offsets, options, error, message):
    with pytest.raises(error, match=message):
        ops.embedding_bag(W, indices, offsets, **{"tables": (2, 3), **options})


def test_errors_of_gradients(device):
    step = {"tables": (2, 3), "optimizer": "sgd", "lr": 0.1}
    with pytest.raises(ValueError, match=r"dy is \(8, 2\): expected \(4, 2, D\)"):
        ops.embedding_bag_step(drupe.tensor(W), np.ones((8, 2)), AT, **step)
    with pytest.raises(ValueError, match=r"dy is \(4, 2, 3\): expected 2 columns"):
        ops.embedding_bag_step(drupe.tensor(W), np.ones((4, 2, 3)), AT, **step)
