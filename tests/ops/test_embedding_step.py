from __future__ import annotations

import math

import numpy as np
import pytest

import drupe
from drupe import ops
from optimizer_cases import draw, lie
from reference import EPSILON, FLOATS, dtype, f64
from row_step_cases import OPTIONS, RULES, formula, new_states


def gradient(shape, dy, indices, starts, factors, padding):
    """The rows' sums in float64, and which rows have one."""
    g, touched = np.zeros(shape), np.zeros(shape[0], bool)
    bag = np.searchsorted(starts, np.arange(indices.size), side="right") - 1
    counted = indices != padding
    np.add.at(g, indices[counted], (factors[:, None] * f64(dy)[bag])[counted])
    touched[indices[counted]] = True
    return g, touched


def draw_bags(rng, rows, size):
    """Indices of which some repeat often, and bags of which some are empty."""
    indices = rng.integers(0, rows, size)
    indices[rng.random(size) < 0.3] = rows // 2
    starts = np.sort(rng.integers(0, size + 1, 9))
    starts[0] = 0
    return indices, starts


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("width", [1, 5, 16, 37, 128, 300])
@pytest.mark.parametrize("rule", RULES)
def test_follows_the_formula(backend, rng, rule, width, name):
    rows, size = 40, 150
    weight = draw(rng, (rows, width), name)
    there, states = lie(weight.copy()), [lie(s) for s in new_states(rule, weight)]
    wanted, wanted_states = f64(weight), [f64(s) for s in new_states(rule, weight)]
    for step, extra in enumerate(({}, {"weight_decay": 0.3, "grad_scale": 0.5}), 1):
        indices, starts = draw_bags(rng, rows, size)
        dy = draw(rng, (9, width), name)
        factors = draw(rng, size, name)
        options = {**OPTIONS[rule], "weight_decay": 0.0, **extra}
        ops.embedding_bag_step(
            there,
            lie(dy),
            indices,
            starts,
            states,
            optimizer=rule,
            per_sample_weights=factors,
            padding_idx=3,
            step=step,
            **options,
        )
        g, touched = gradient(weight.shape, dy, indices, starts, f64(factors), 3)
        wanted = formula(rule, wanted, g, wanted_states, touched, step, options)
        close = 1e-10 if name == "float64" else 2e-4
        rounding = 2 * EPSILON[name] if name in ("float16", "bfloat16") else 0
        result = np.asarray(there)
        assert result.dtype == weight.dtype
        np.testing.assert_allclose(f64(result), wanted, rtol=close + rounding, atol=close + rounding / 16)
        for state, expected in zip(states, wanted_states, strict=True):
            np.testing.assert_allclose(np.asarray(state), expected, rtol=close, atol=close)
        wanted = f64(result)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["offsets", "rows"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_modes_and_kinds_of_bags(backend, rng, mode, kind, index):
    weight, dy = draw(rng, (30, 12), "float32"), draw(rng, (6, 12), "float32")
    indices = rng.integers(0, 30, 42).astype(index)
    starts = np.arange(0, 42, 7) if kind == "rows" else np.array([0, 0, 10, 11, 42, 42])
    there = lie(weight.copy())
    given = (indices.reshape(6, 7), None) if kind == "rows" else (indices, starts.astype(index))
    ops.embedding_bag_step(there, lie(dy), *given, optimizer="sgd", mode=mode, lr=0.5, padding_idx=-1)
    bag = np.searchsorted(starts, np.arange(42), side="right") - 1
    counts = np.bincount(bag[indices != 29], minlength=6)
    factors = np.where(mode == "mean", 1 / np.maximum(counts, 1)[bag], 1.0)
    g, touched = gradient(weight.shape, dy, indices, starts, factors, 29)
    assert not touched[29]
    np.testing.assert_allclose(np.asarray(there), f64(weight) - 0.5 * g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (3, 0)])
@pytest.mark.parametrize("rule", RULES)
def test_embedding_step_takes_any_shape(backend, rng, rule, shape):
    weight, indices = draw(rng, (9, 4), "float32"), rng.integers(0, 9, shape)
    dy = draw(rng, (*shape, 4), "float32")
    there, states = lie(weight.copy()), [lie(s) for s in new_states(rule, weight)]
    ops.embedding_step(there, lie(dy), indices, states, optimizer=rule, padding_idx=2, **OPTIONS[rule])
    flat = np.asarray(indices).reshape(-1)
    g, touched = gradient(weight.shape, dy.reshape(-1, 4), flat, np.arange(flat.size), np.ones(flat.size), 2)
    wanted_states = [f64(s) for s in new_states(rule, weight)]
    options = {"weight_decay": 0.0, **OPTIONS[rule]}
    wanted = formula(rule, f64(weight), g, wanted_states, touched, 1, options)
    np.testing.assert_allclose(np.asarray(there), wanted, rtol=1e-4, atol=1e-5)


def unfused(rule, table, dy, indices, starts, states, mode="sum", factors=None, **options):
    """The sparse gradient from the tape, then the optimizer's step on its rows."""
    leaf = drupe.tensor(np.asarray(table), requires_grad=True)
    ops.embedding_bag(leaf, indices, starts, mode=mode, per_sample_weights=factors, sparse=True).backward(dy)
    step = {"sgd": ops.sgd, "adam": ops.adam, "adamw": ops.adamw}[rule]
    step([table], [leaf.grad], *[[s] for s in states], **options)


@pytest.mark.parametrize("width", [3, 16, 200])
@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
def test_is_the_sparse_gradient_and_the_lazy_step(backend, rng, rule, width):
    rows, size = 300, 2500
    weight = draw(rng, (rows, width), "float32")
    indices, starts = draw_bags(rng, rows, size)
    dy, factors = lie(draw(rng, (9, width), "float32")), lie(draw(rng, size, "float32"))
    fused, apart = lie(weight.copy()), lie(weight.copy())
    states = [[lie(s) for s in new_states(rule, weight)] for _ in range(2)]
    options = {**OPTIONS[rule], **({} if rule == "sgd" else {"step": 3}), "weight_decay": 0.1}
    ops.embedding_bag_step(fused, dy, indices, starts, states[0], optimizer=rule, per_sample_weights=factors, **options)
    unfused(rule, apart, dy, lie(indices), lie(starts), states[1], factors=factors, **options)
    # The device cuts long rows into other parts.
    close = {"rtol": 1e-4, "atol": 1e-4} if backend == "cuda" else {"rtol": 0, "atol": 0}
    for a, b in zip([fused, *states[0]], [apart, *states[1]], strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **close)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [3, 16, 200])
def test_draws_are_those_of_the_lazy_step(backend, rng, name, width):
    weight = draw(rng, (50, width), name)
    indices, starts = draw_bags(rng, 50, 200)
    # Sums that both dtypes hold exactly.
    dy = rng.integers(0, 2, (9, width)).astype(dtype(name))
    indices[:] = np.where(rng.random(200) < 0.5, indices, 7)
    fused, apart = lie(weight.copy()), lie(weight.copy())
    options = {"lr": 2.0**-9, "stochastic_rounding": True, "seed": 11, "offset": 5}
    ops.embedding_bag_step(fused, lie(dy), indices, starts, optimizer="sgd", **options)
    unfused("sgd", apart, lie(dy), lie(indices), lie(starts), [], **options)
    np.testing.assert_array_equal(np.asarray(fused), np.asarray(apart))
    assert (f64(np.asarray(fused)) != f64(weight)).any()
    for rule in ("rowwise_adagrad", "adam"):
        results = []
        for seed in (1, 1, 2):
            there, states = lie(weight.copy()), [lie(s) for s in new_states(rule, weight)]
            ops.embedding_bag_step(
                there, lie(dy), indices, starts, states, optimizer=rule, lr=1e-3, stochastic_rounding=True, seed=seed
            )
            results.append(np.asarray(there))
        np.testing.assert_array_equal(results[0], results[1])
        assert (f64(results[0]) != f64(results[2])).any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [8, 260])
def test_rows_in_many_parts_are_the_same_on_any_threads(backend, rng, rule, width):
    rows, size = 20, 3000 if backend == "cuda" else 9000
    weight, dy = draw(rng, (rows, width), "float32"), draw(rng, (size // 3, width), "float32")
    indices, starts = np.sort(rng.integers(0, 3, size)) * 9, np.arange(0, size, 3)
    indices[rng.integers(0, size, 40)] = 5
    results = []
    before = drupe.num_threads()
    for threads in (1, 2, 3):
        drupe.set_num_threads(threads)
        there, states = lie(weight.copy()), [lie(s) for s in new_states(rule, weight)]
        ops.embedding_bag_step(there, lie(dy), indices, starts, states, optimizer=rule, **OPTIONS[rule])
        results.append([np.asarray(x) for x in (there, *states)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    g, touched = gradient(weight.shape, dy, indices, starts, np.ones(size), -1)
    wanted_states = [f64(s) for s in new_states(rule, weight)]
    options = {"weight_decay": 0.0, **OPTIONS[rule]}
    wanted = formula(rule, f64(weight), g, wanted_states, touched, 1, options)
    np.testing.assert_allclose(results[0][0], wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(results[0][0][~touched], weight[~touched])


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", RULES)
def test_rows_may_have_strides(backend, rng, rule, name):
    weight, dy = draw(rng, (20, 24), name), draw(rng, (30, 24), name)
    indices = rng.integers(0, 20, 30)
    for first, columns in ((0, 32), (1, 29), (0, 24)):
        wide = lie(np.zeros((20, columns), dtype(name)))
        view = wide[:, first : first + 24]
        if isinstance(view, drupe.Tensor):
            view.copy_from(weight)
        else:
            view[...] = weight
        plain = lie(weight.copy())
        for there in (view, plain):
            states = [lie(s) for s in new_states(rule, weight)]
            ops.embedding_step(there, lie(dy), indices, states, optimizer=rule, **OPTIONS[rule])
        # On a device, the mean over a row's columns is taken in the order that their alignment allows.
        apart = {"rtol": 1e-5, "atol": 1e-6} if (backend, rule) == ("cuda", "rowwise_adagrad") else {"rtol": 0}
        if name == "bfloat16" and apart["rtol"]:
            apart["rtol"] = EPSILON[name]
        np.testing.assert_allclose(f64(np.asarray(view)), f64(np.asarray(plain)), **apart)
        rest = np.delete(np.asarray(wide), np.s_[first : first + 24], axis=1)
        np.testing.assert_array_equal(f64(rest), 0)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_stays_in_its_row(backend, rule):
    weight = np.ones((6, 4), np.float32)
    dy = np.zeros((3, 4), np.float32)
    dy[0, 1], dy[1, 2] = np.nan, np.inf
    there, states = lie(weight), [lie(s) for s in new_states(rule, weight)]
    ops.embedding_step(there, lie(dy), np.array([4, 2, 0]), states, optimizer=rule, **OPTIONS[rule])
    result = np.asarray(there)
    assert np.isnan(result[4, 1])
    assert not np.isfinite(result[2, 2])
    assert np.isfinite(result[[0, 1, 3, 5]]).all()


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_no_work(backend, rule):
    for shape in ((3, 0), (0, 4)):
        weight = np.ones(shape, np.float32)
        states = [lie(s) for s in new_states(rule, weight)]
        there, none = lie(weight), np.zeros(0, np.int64)
        ops.embedding_bag_step(there, lie(np.ones((0, shape[1]), "f")), none, none, states, optimizer=rule, lr=1)
        if shape[0]:
            ops.embedding_step(there, lie(np.ones((2, 0), "f")), np.array([1, 1]), states, optimizer=rule, lr=1)
        assert all((np.asarray(s) == 0).all() for s in states)


def test_tensors_know_that_they_were_written(device):
    weight, sums = drupe.tensor(np.ones((3, 2), np.float32), requires_grad=True), drupe.zeros((3,))
    y = ops.embedding(weight, np.array([0]))
    ops.embedding_step(weight, np.ones((1, 2), np.float32), np.array([0]), [sums], lr=0.1)
    assert (weight.version, sums.version) == (1, 1)
    with pytest.raises(RuntimeError, match="changed in place"):
        ops.mul(y, ops.embedding(weight, np.array([0]))).backward(np.ones((1, 2), np.float32))


W, DY, AT, S = np.ones((5, 2), "f"), np.ones((3, 2), "f"), np.array([0, 4, 4]), np.zeros(5, "f")
LOCKED = W.copy()
LOCKED.flags.writeable = False


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (W, DY, np.array([0, 5, 1]), [S]),
            {},
            IndexError,
            r"\[embedding_step\] indices\[1\] is 5: the table has 5 rows",
        ),
        ((W, DY, np.array([0, 1, -1]), [S]), {}, IndexError, r"indices\[2\] is -1"),
        ((W, DY, AT, [S]), {"padding_idx": 5}, IndexError, r"padding_idx is 5: the table has 5 rows"),
        ((W, DY, AT.astype(float), [S]), {}, TypeError, r"indices is float64: expected int32 or int64"),
        ((W.astype(int), DY, AT, [S]), {}, TypeError, r"weight is int64: expected a float dtype"),
        ((W, DY.astype(float), AT, [S]), {}, TypeError, r"weight is float32, dy is float64: expected one dtype"),
        ((W[0], DY, AT, [S]), {}, ValueError, r"weight is \(2,\): expected 2 dimensions"),
        ((W, DY[:2], AT, [S]), {}, ValueError, r"dy is \(2, 2\), indices is \(3,\)"),
        ((W, np.ones((3, 3), "f"), AT, [S]), {}, ValueError, r"dy is \(3, 3\): expected 2 columns, as of weight"),
        ((LOCKED, DY, AT, [S]), {}, ValueError, r"weight is read-only"),
        ((np.ones((2, 5), "f").T, DY, AT, [S]), {}, ValueError, r"weight's columns are not adjacent"),
        ((W[::-1], DY, AT, [S]), {}, ValueError, r"weight's rows overlap or go backwards"),
        ((W, DY, AT), {}, ValueError, r"rowwise_adagrad has 1 states, got 0"),
        ((W, DY, AT, [S]), {"optimizer": "sgd"}, ValueError, r"sgd has 0 states, got 1"),
        ((W, DY, AT, [S, S]), {"optimizer": "adam"}, ValueError, r"states\[0\] is \(5,\): expected \(5, 2\)"),
        ((W, DY, AT, [W]), {}, ValueError, r"states\[0\] is \(5, 2\): expected \(5,\)"),
        (
            (W, DY, AT, [S.astype(float)]),
            {},
            TypeError,
            r"states\[0\] is float64: expected float32 for a float32 table",
        ),
        ((W, DY, AT, [LOCKED[:, 0].copy()[::1]]), {"optimizer": "rmsprop"}, ValueError, r'optimizer is "rmsprop"'),
        ((W, DY, AT, [np.zeros(10, "f")[::2]]), {}, ValueError, r"states\[0\] is not contiguous"),
        ((W, DY, AT, [W.reshape(-1)[:5]]), {}, ValueError, r"weight and states\[0\] overlap"),
        ((W, W[:3], AT, [S]), {}, ValueError, r"weight and dy overlap"),
        ((W, DY, AT, [S]), {"lr": -1.0}, ValueError, r"lr is -1"),
        ((W, DY, AT, [S]), {"eps": math.nan}, ValueError, r"eps is nan"),
        ((W, DY, AT, [S]), {"weight_decay": math.inf}, ValueError, r"weight_decay is inf"),
        ((W, DY, AT, [S]), {"grad_scale": -2.0}, ValueError, r"grad_scale is -2"),
        ((W, DY, AT, [S]), {"betas": (1.0, 0.9)}, ValueError, r"beta1 is 1"),
        ((W, DY, AT, [S]), {"step": 0}, ValueError, r"step is 0: expected at least 1"),
        ((W, DY, AT, [S]), {"stochastic_rounding": True, "seed": -1}, ValueError, r"seed is -1"),
        (([[1.0, 2.0]], DY, AT, [S]), {}, TypeError, r"expected an array"),
    ],
)
def test_errors_name_what_is_wrong(args, options, error, message):
    with pytest.raises(error, match=message):
        ops.embedding_step(*args, **{"lr": 0.1, **options})
    np.testing.assert_array_equal(W, 1)
    np.testing.assert_array_equal(S, 0)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (W, DY, np.array([0, 5]), np.array([0, 1, 1]), [S]),
            {},
            IndexError,
            r"\[embedding_bag_step\] indices\[1\] is 5",
        ),
        ((W, DY, AT, np.array([0, 2, 1]), [S]), {}, ValueError, r"offsets\[2\] is 1 after 2"),
        ((W, DY, AT, np.array([0, 1]), [S]), {}, ValueError, r"dy is \(3, 2\): expected \(2, D\)"),
        ((W, DY, AT, None, [S]), {}, ValueError, r"indices is \(3,\): expected \(B, L\), or \(N,\) and offsets"),
        ((W, DY, AT, np.arange(3), [S]), {"mode": "max"}, ValueError, r'mode is "max": expected sum or mean'),
        ((W, DY, AT, np.arange(3), [S]), {"mode": "most"}, ValueError, r'mode is "most"'),
        (
            (W, DY, AT, np.arange(3), [S]),
            {"per_sample_weights": np.ones(3, "f"), "mode": "mean"},
            ValueError,
            r"per_sample_weights need mode sum",
        ),
        (
            (W, DY, AT, np.arange(3), [S]),
            {"per_sample_weights": np.ones(3)},
            TypeError,
            r"per_sample_weights is float64: expected float32",
        ),
    ],
)
def test_errors_of_bags(args, options, error, message):
    with pytest.raises(error, match=message):
        ops.embedding_bag_step(*args, **{"lr": 0.1, **options})
    np.testing.assert_array_equal(W, 1)


def test_a_wrong_index_changes_nothing(device):
    weight, sums = drupe.ones((5, 2)), drupe.zeros((5,))
    with pytest.raises(IndexError, match=r"indices\[2\] is 9"):
        ops.embedding_step(weight, drupe.ones((3, 2)), drupe.tensor(np.array([0, 1, 9])), [sums], lr=0.1)
    np.testing.assert_array_equal(weight.numpy(), 1)
    np.testing.assert_array_equal(sums.numpy(), 0)
