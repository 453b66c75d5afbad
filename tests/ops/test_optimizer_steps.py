from __future__ import annotations

import math

import numpy as np
import pytest

import drupe
from drupe import SparseRows, ops
from optimizer_cases import CASES, call, draw, lie, new_states
from reference import EPSILON, FLOATS, dtype, f64

# Below, at and above the registers and the places of the sweep; one that crosses its chunks; nothing, and one number.
SHAPES = [(3,), (64,), (5, 13), (0,), (), (33000,), (7, 5000)]
STEPS = 4


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES)
def test_follows_the_formula_for_several_steps(backend, rng, case, name):
    _, formula, _, options = CASES[case]
    params = [draw(rng, shape, name) for shape in SHAPES]
    states = new_states(case, params)
    expected = [f64(p) for p in params]
    wanted = [[f64(s) for s in state] for state in zip(*states, strict=True)] or [[] for _ in params]
    half = name in ("float16", "bfloat16")
    for step in range(1, STEPS + 1):
        grads = [draw(rng, shape, name) for shape in SHAPES]
        call(case, params, grads, states, step)
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            expected[i] = formula(expected[i], f64(g), wanted[i], step, options)
            assert p.dtype == dtype(name)
            # States are float32 even for 16-bit parameters; what those round, the next step starts from.
            close = 3e-11 if name == "float64" else 3e-4
            rounding = 2 * EPSILON[name] if half else 0
            np.testing.assert_allclose(f64(p), expected[i], rtol=close + rounding, atol=close + rounding / 64)
            for k, state in enumerate(states):
                np.testing.assert_allclose(state[i], wanted[i][k], rtol=close, atol=close)
            if half:
                expected[i] = f64(p)


@pytest.mark.parametrize("case", CASES)
def test_lists_may_mix_dtypes(backend, rng, case):
    params = [draw(rng, (40,), name) for name in FLOATS]
    grads = [draw(rng, (40,), name) for name in FLOATS]
    together = [p.copy() for p in params]
    call(case, together, grads, new_states(case, params), 1)
    for p, g, mixed in zip(params, grads, together, strict=True):
        call(case, [p], [g], new_states(case, [p]), 1)
        np.testing.assert_array_equal(p, mixed)


@pytest.mark.parametrize("case", CASES)
def test_places_in_the_list_leave_no_trace(backend, rng, case):
    # The same numbers in one tensor, or cut into many, or on other threads.
    size = 20_000 if backend == "cuda" else 100_000
    whole, grad = draw(rng, size, "float32"), draw(rng, size, "float32")
    cuts, many = [1, 20, 5000, size * 7 // 10 + 1], list(range(5, 1600, 12))
    results = []
    before = drupe.num_threads()
    for threads, parts in ((1, []), (2, []), (5, cuts), (1, cuts), (2, many)):
        drupe.set_num_threads(threads)
        params, grads = [x.copy() for x in np.split(whole, parts)], np.split(grad, parts)
        states = new_states(case, params)
        for step in (1, 2):
            call(case, params, grads, states, step)
        results.append(np.concatenate(params))
    drupe.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("case", CASES)
def test_strided_arrays(backend, rng, case):
    def layouts(make):
        # Sliced, reversed, and transposed: dense, but in another order.
        return [make((12, 16))[::2, ::2], make((6, 8))[::-1], make((8, 6)).T, make((8, 6)).T, make((6, 8))]

    def fresh(shape):
        return lie(draw(rng, shape, "float32"))

    params, grads = layouts(fresh), layouts(fresh)
    grads[2], grads[4] = fresh((6, 8)), ops.broadcast_to(fresh((8,)), (6, 8))
    plain = [np.array(p) for p in params]
    plain_states = new_states(case, plain)
    states = [layouts(lambda shape: lie(np.zeros(shape, np.float32))) for _ in plain_states]
    for step in (1, 2):
        call(case, params, grads, states, step)
        call(case, plain, [np.array(g) for g in grads], plain_states, step)
    for one, other in zip([params, *states], [plain, *plain_states], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(np.asarray(a), b)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("firsts", [(0, 0, 0), (1, 1, 1), (7, 7, 3), (1, 2, 0)], ids=str)
def test_arrays_may_begin_anywhere(backend, rng, case, name, firsts):
    # Off the vectors' alignment: alike, so that they reach it together, or not.
    def placed(x, first):
        memory = lie(np.concatenate([np.zeros(first, x.dtype), x, np.zeros(3, x.dtype)]))
        return memory[first : first + len(x)]

    for size in (2, 33, 4103):
        param, grad = draw(rng, size, name), draw(rng, size, name)
        plain, plain_states = [param.copy()], new_states(case, [param])
        params, states = [placed(param, firsts[0])], [[placed(s[0], firsts[2])] for s in plain_states]
        call(case, plain, [grad], plain_states, 1)
        call(case, params, [placed(grad, firsts[1])], states, 1)
        for one, other in zip([params, *states], [plain, *plain_states], strict=True):
            np.testing.assert_array_equal(np.asarray(one[0]), other[0])


def test_misaligned_gradients_count_and_misaligned_parameters_are_refused(isa, rng):
    buffer = np.zeros(9 * 4 + 1, np.uint8)
    misaligned = buffer[1:].view(np.float32)
    misaligned[...] = rng.standard_normal(9)
    param = np.ones(9, np.float32)
    ops.sgd([param], [misaligned], lr=1)
    np.testing.assert_array_equal(param, 1 - misaligned)
    for array in (misaligned, np.ones(9, ">f4"), np.float32(1)):
        with pytest.raises(ValueError, match=r"\[sgd\] params\[1\] is misaligned, in foreign byte order or a scalar"):
            ops.sgd([param, array], [param, np.asarray(array)], lr=1)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [1, 16, 37])
def test_sparse_gradients_touch_their_rows_alone(backend, rng, case, name, width):
    rows = np.array([0, 3, 4, 199], np.int64)
    table = draw(rng, (200, width), name)
    other = draw(rng, (50,), name)
    params, states = [table.copy(), other.copy()], None
    states = new_states(case, params)
    for state in states:
        state[0][...] = np.abs(draw(rng, (200, width), "float32")) + 1
    dense = [table[rows].copy(), other.copy()]
    dense_states = [[state[0][rows].copy(), state[1].copy()] for state in states]
    kept = [state[0].copy() for state in states]
    for step in (1, 2):
        values, grad = draw(rng, (4, width), name), draw(rng, (50,), name)
        sparse = SparseRows(drupe.tensor(rows).raw, drupe.tensor(values).raw, table.shape)
        call(case, params, [sparse, grad], states, step)
        call(case, dense, [values, grad], dense_states, step)
    untouched = np.setdiff1d(np.arange(200), rows)
    np.testing.assert_array_equal(params[0][rows], dense[0])
    np.testing.assert_array_equal(params[0][untouched], table[untouched])
    np.testing.assert_array_equal(params[1], dense[1])
    for state, dense_state, before in zip(states, dense_states, kept, strict=True):
        np.testing.assert_array_equal(state[0][rows], dense_state[0])
        np.testing.assert_array_equal(state[0][untouched], before[untouched])


@pytest.mark.parametrize("width", [1, 3, 7, 16, 17])
def test_many_rows_of_a_sparse_gradient_get_the_bits_of_the_dense_step(backend, rng, width):
    """Rows that cross the chunks of the sweep, narrower than a register and wider."""
    rows = np.flatnonzero(rng.random(100_000 // width) < 0.5)
    params = [draw(rng, (100_000 // width, width), "float32")]
    states = new_states("adam", params)
    dense, dense_states = [params[0][rows]], new_states("adam", [params[0][rows]])
    for step in (1, 2):
        values = draw(rng, dense[0].shape, "float32")
        grad = SparseRows(drupe.tensor(rows).raw, drupe.tensor(values).raw, params[0].shape)
        call("adam", params, [grad], states, step)
        call("adam", dense, [values], dense_states, step)
    np.testing.assert_array_equal(params[0][rows], dense[0])
    for state, dense_state in zip(states, dense_states, strict=True):
        np.testing.assert_array_equal(state[0][rows], dense_state[0])


def test_sparse_sgd_is_the_dense_step(backend, rng):
    table, values = draw(rng, (30, 8), "float32"), draw(rng, (3, 8), "float32")
    grad = SparseRows(drupe.tensor(np.array([2, 7, 29])).raw, drupe.tensor(values).raw, (30, 8))
    sparse, dense = drupe.tensor(table), drupe.tensor(table)
    ops.sgd([sparse], [grad], lr=0.1)
    ops.sgd([dense], [grad.to_dense()], lr=0.1)
    np.testing.assert_array_equal(sparse.numpy(), dense.numpy())


def test_nan_and_infinity_stay_with_their_elements(backend):
    for case in CASES:
        params = [np.ones(40, np.float32)]
        grad = np.zeros(40, np.float32)
        grad[3], grad[17] = np.nan, np.inf
        call(case, params, [grad], new_states(case, params), 1)
        assert np.isnan(params[0][3])
        assert not np.isfinite(params[0][17])
        assert np.isfinite(np.delete(params[0], [3, 17])).all()


def test_tensors_know_that_they_were_written(device):
    p = drupe.tensor(np.ones((3, 2), np.float32), requires_grad=True)
    y = ops.embedding(p, np.array([0]))
    ops.sgd([p], [drupe.ones((3, 2))], lr=0.1)
    assert p.version == 1
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(np.ones((1, 2), np.float32))


def test_gradient_that_is_the_parameter_itself(backend):
    p = lie(np.arange(5, dtype=np.float32))
    ops.sgd([p], [p], lr=0.5)
    np.testing.assert_array_equal(np.asarray(p), np.arange(5) / 2)
    q = lie(np.arange(200, dtype=np.float32))
    ops.sgd([q[1:]], [q[:-1]], lr=1)  # each element's gradient is its neighbour before the step
    np.testing.assert_array_equal(np.asarray(q), np.r_[0.0, np.ones(199)])


def test_no_parameters_is_no_work(device):
    for case in CASES:
        call(case, [], [], [[] for _ in range(CASES[case][2])], 1)


ONE = np.ones(4, np.float32)
LOCKED = ONE.copy()
LOCKED.flags.writeable = False


@pytest.mark.parametrize(
    ("lists", "options", "error", "message"),
    [
        (([ONE], []), {}, ValueError, r"\[sgd\] 1 params and 0 grads"),
        (([ONE.copy(), ONE], [ONE, np.ones(5, "f")]), {}, ValueError, r"params\[1\] is \(4,\), grads\[1\] is \(5,\)"),
        (([ONE], [np.ones(4)]), {}, TypeError, r"params\[0\] is float32, grads\[0\] is float64"),
        (([np.ones(4, int)], [np.ones(4, int)]), {}, TypeError, r"params\[0\] is int64: expected a float dtype"),
        (([LOCKED], [ONE]), {}, ValueError, r"params\[0\] is read-only"),
        (([ONE, ONE], [ONE, ONE]), {}, ValueError, r"params\[0\] and params\[1\] overlap"),
        (([ONE[:3], ONE[2:]], [ONE[:3], ONE[2:]]), {}, ValueError, r"params\[0\] and params\[1\] overlap"),
        (([ONE], [ONE]), {"momentum": 0.9}, ValueError, r"1 params and 0 buffers"),
        (([ONE], [ONE], [ONE]), {"momentum": 0.9}, ValueError, r"params\[0\] and buffers\[0\] overlap"),
        (([ONE], [ONE], [np.ones(4)]), {"momentum": 0.9}, TypeError, r"buffers\[0\] is float64: expected float32"),
        (([ONE], [ONE], [np.ones(5, "f")]), {"momentum": 0.9}, ValueError, r"buffers\[0\] is \(5,\)"),
        (([ONE], [ONE], [LOCKED]), {"momentum": 0.9}, ValueError, r"buffers\[0\] is read-only"),
        (([ONE], [ONE]), {"nesterov": True}, ValueError, r"nesterov needs a momentum"),
        (([ONE], [ONE]), {"lr": math.nan}, ValueError, r"lr is nan: expected a finite number of at least 0"),
        (([ONE], [ONE]), {"lr": -1.0}, ValueError, r"lr is -1"),
        (([ONE], [ONE]), {"momentum": math.inf}, ValueError, r"momentum is inf"),
        (([ONE], [ONE]), {"weight_decay": math.nan}, ValueError, r"weight_decay is nan"),
        (([ONE], [ONE]), {"l1": -0.5}, ValueError, r"l1 is -0.5"),
        (([ONE], [ONE]), {"grad_scale": math.inf}, ValueError, r"grad_scale is inf"),
        (([[1.0]], [ONE]), {}, TypeError, r"\[sgd\] expected an array"),
    ],
)
def test_errors_name_what_is_wrong(lists, options, error, message):
    with pytest.raises(error, match=message):
        ops.sgd(*lists, **{"lr": 0.1, **options})
    np.testing.assert_array_equal(ONE, np.ones(4))


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("adam", {"lr": math.inf}, r"\[adam\] lr is inf"),
        ("adam", {"betas": (1.0, 0.9)}, r"beta1 is 1: expected a number in \[0, 1\)"),
        ("adam", {"betas": (0.9, -0.1)}, r"beta2 is -0.1"),
        ("adamw", {"eps": math.nan}, r"\[adamw\] eps is nan"),
        ("adamw", {"weight_decay": -1.0}, r"weight_decay is -1"),
        ("rmsprop", {"alpha": 1.0}, r"\[rmsprop\] alpha is 1: expected a number in \[0, 1\)"),
        ("rmsprop", {"eps": -1.0}, r"eps is -1"),
        ("rmsprop", {"grad_scale": math.nan}, r"grad_scale is nan"),
    ],
)
def test_hyperparameter_errors(case, changes, message):
    params = [ONE.copy()]
    with pytest.raises(ValueError, match=message):
        call(case, params, [ONE], new_states(case, params), 1, **changes)


def test_steps_count_from_one():
    with pytest.raises(ValueError, match=r"step is 0: expected at least 1"):
        call("adam", [ONE.copy()], [ONE], new_states("adam", [ONE]), 0)


def test_numbers_of_steps_may_be_numpys(backend, rng):
    start, grad = draw(rng, (5,), "float32"), draw(rng, (5,), "float32")
    results = []
    for step in (2, np.int64(2), np.array(2)):
        params = [start.copy()]
        call("adam", params, [grad], new_states("adam", params), step)
        results.append(params[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert (results[0] != start).any()


@pytest.mark.parametrize(
    ("param", "rows", "values", "error", "message"),
    [
        ((5, 2), [0, 5], (2, 2), IndexError, r"rows\[0\]\[1\] is 5: the table has 5 rows"),
        ((5, 2), [3, 1], (2, 2), ValueError, r"rows\[0\]\[1\] is 1 after 3: expected ascending"),
        ((5, 2), [1, 3], (2, 3), ValueError, r"params\[0\] is \(5, 2\), the 2 rows of grads\[0\] are \(2, 3\)"),
        ((5,), [1, 3], (2, 1), ValueError, r"params\[0\] is \(5,\): a gradient of rows needs 2 dimensions"),
    ],
)
def test_errors_of_sparse_gradients(device, param, rows, values, error, message):
    grad = SparseRows(drupe.tensor(np.array(rows)).raw, drupe.tensor(np.ones(values, "f")).raw, (5, 2))
    with pytest.raises(error, match=message):
        ops.sgd([drupe.ones(param)], [grad], lr=0.1)


@pytest.mark.parametrize("name", FLOATS)
def test_global_norm(backend, rng, name):
    arrays = [lie(draw(rng, shape, name)) for shape in [(3, 5), (), (0,), (40000,), (70, 9), *range(130)]]
    arrays += [lie(draw(rng, (30, 8), name))[::2, ::3], lie(draw(rng, 60, name))[1:50]]
    expected = math.sqrt(sum(float((f64(np.asarray(x)) ** 2).sum()) for x in arrays))
    assert ops.global_norm(arrays) == pytest.approx(expected, rel=1e-5)
    assert ops.global_norm([]) == 0


def test_global_norm_reaches_beyond_float32(backend):
    assert ops.global_norm([lie(np.full(100, 3e30, np.float32))]) == pytest.approx(3e31, rel=1e-6)
    assert ops.global_norm([lie(np.full(100, 3e-30, np.float32))]) == pytest.approx(3e-29, rel=1e-6)
    assert ops.global_norm([lie(np.array([1.0, np.inf], np.float32))]) == np.inf
    assert math.isnan(ops.global_norm([lie(np.array([1.0, np.nan], np.float32))]))
