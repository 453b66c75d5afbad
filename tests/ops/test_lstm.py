"""lstm; what it shares with gru is tested for both, here."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import _C, ops
from gradients import check_gradients
from recurrent_reference import GATES, Problem, call, joined, leaves_of, reference
from reference import FLOATS, assert_close, dtype, f64

KINDS = ("lstm", "gru")
# (T, B, I, H): below and above the blocks of units of every ISA, its panels of rows and its slices of the sum; single
# steps of few sequences and of more.
SHAPES = [(1, 1, 1, 1), (1, 9, 4, 37), (1, 17, 4, 9), (4, 3, 5, 7), (3, 15, 4, 33), (6, 2, 3, 64), (2, 5, 3, 600)]


def check(results, expected, name, length):
    """Errors pass from step to step, in 16-bit formats as roundings of h."""
    for actual, right in zip(results, expected, strict=True):
        assert actual.dtype == dtype(name)
        assert_close(actual, right, name, length, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(backend, rng, kind, directions, shape):
    problem = Problem(kind, rng, *shape, directions, "float32")
    results = problem.run()
    assert isinstance(results[0], np.ndarray)
    check(results, problem.expected(), "float32", shape[3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOATS)
def test_every_dtype(backend, rng, kind, name):
    problem = Problem(kind, rng, 5, 6, 8, 20, 2, name)
    lengths = np.array([5, 1, 0, 3, 4, 5], np.int32)
    check(problem.run(lengths=lengths), problem.expected(lengths=lengths), name, 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOATS)
def test_single_step(backend, rng, kind, name):
    problem = Problem(kind, rng, 1, 3, 8, 20, 2, name)
    lengths = np.array([1, 0, 1])
    check(problem.run(lengths=lengths), problem.expected(lengths=lengths), name, 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", [1, 2])
def test_lengths(backend, rng, kind, directions):
    T, B, H = 6, 5, 9
    problem = Problem(kind, rng, T, B, 4, H, directions)
    lengths = np.array([3, 6, 0, 1, 5])
    y, *states = problem.run(lengths=lengths)
    for actual, right in zip((y, *states), problem.expected(lengths=lengths), strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-12, atol=1e-12)
    for b, length in enumerate(lengths):
        np.testing.assert_array_equal(y[length:, b], 0)
    np.testing.assert_array_equal(states[0][:, 2], problem.states[0][:, 2])
    padded = problem.x.copy()
    padded[3:, 0] = np.nan  # not looked at
    again = call(kind, padded, problem.weights, problem.states, lengths.astype(np.int32))
    np.testing.assert_array_equal(again[0], y)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_zero(backend, rng, kind):
    problem = Problem(kind, rng, 3, 4, 5, 6, 2)
    for actual, right in zip(problem.run(with_states=False), problem.expected(with_states=False), strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-12, atol=1e-12)
    zeros = [np.zeros_like(s) for s in problem.states]
    np.testing.assert_array_equal(problem.run(with_states=False)[0], call(kind, problem.x, problem.weights, zeros)[0])
    for absent in ([2], [3], [2, 3]):
        weights = [[None if i in absent else w for i, w in enumerate(d)] for d in problem.weights]
        y = call(kind, problem.x, weights)[0]
        np.testing.assert_allclose(y, reference(kind, problem.x, weights)[0], rtol=1e-12, atol=1e-12)
    short = call(kind, problem.x, [d[:2] for d in problem.weights])[0]
    np.testing.assert_array_equal(short, y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0), (0, 0, 0, 0)], ids=str)
def test_no_elements(backend, rng, kind, shape):
    problem = Problem(kind, rng, *shape, 2)
    leaves = leaves_of(problem)
    results = problem.call_flat(leaves)
    for actual, right in zip(results, problem.expected(), strict=True):
        np.testing.assert_allclose(actual.detach().numpy(), right, rtol=1e-12, atol=1e-12)
    total = joined(results)
    total.backward(np.ones(total.shape))
    assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]
    if shape[0] == 0:
        for leaf in leaves[-len(problem.states) :]:
            np.testing.assert_array_equal(leaf.grad.numpy(), 1)
        for leaf in leaves[1 : -len(problem.states)]:
            np.testing.assert_array_equal(leaf.grad.numpy(), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_operands(backend, rng, kind):
    problem = Problem(kind, rng, 4, 3, 6, 5, 2, "float32")
    expected = problem.run()
    strided = [np.repeat(a, 2, -1)[..., ::2] for a in problem.arrays()]
    strided[0] = np.ascontiguousarray(problem.x.transpose(1, 0, 2)).transpose(1, 0, 2)
    strided[1] = np.asfortranarray(strided[1])
    for actual, right in zip(problem.call_flat(strided), expected, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_large_inputs_saturate(backend, kind):
    H = 3
    x = np.array([[[1e4]], [[-1e4]], [[3e38]]], np.float32)
    weights = [np.ones((GATES[kind] * H, 1), np.float32), np.zeros((GATES[kind] * H, H), np.float32)]
    y = call(kind, x, [weights])[0]
    assert np.isfinite(y).all()
    assert (np.abs(y) <= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_sequence(backend, rng, kind):
    problem = Problem(kind, rng, 4, 5, 3, 6, 2, "float32")
    problem.x[2, 3, 1] = np.nan
    y, *states = problem.run()
    assert np.isnan(y[2:, 3, :6]).all()
    assert np.isnan(y[:3, 3, 6:]).all()
    assert np.isfinite(np.delete(y, 3, 1)).all()
    assert all(np.isnan(s[:, 3]).all() for s in states)


# ---- backward


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("lengths", [None, [3, 0, 2]], ids=str)
def test_gradients(device, rng, kind, directions, lengths):
    shape = (3, 3, 2, 3) if device == "cpu" else (3, 3, 1, 1)  # an emulated GPU takes its time
    problem = Problem(kind, rng, *shape, directions)
    lengths = None if lengths is None else np.array(lengths)
    check_gradients(lambda *a: joined(problem.call_flat(a, lengths)), *problem.arrays(), rng=rng)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", [0, 1, -1])
def test_gradients_of_one_result(rng, kind, output):
    problem = Problem(kind, rng, 3, 2, 2, 3, 2)
    check_gradients(lambda *a: problem.call_flat(a)[output], *problem.arrays(), rng=rng)


def float64_gradients(problem, lengths, weights):
    wide = Problem.__new__(Problem)
    wide.kind, wide.x = problem.kind, f64(problem.x)
    wide.weights = [[f64(w) for w in direction] for direction in problem.weights]
    wide.states = [f64(s) for s in problem.states]
    with drupe.default_device("cpu"):
        leaves = leaves_of(wide)
        joined(wide.call_flat(leaves, lengths)).backward(f64(weights))
        return [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (4, 3, 5, 7), (3, 17, 8, 40), (2, 3, 4, 530)], ids=str)
def test_gradients_of_every_dtype(backend, rng, kind, name, shape):
    """Against those of float64 on the CPU, which differences have checked."""
    if backend == "cuda":
        shape = (*shape[:3], min(shape[3], 70))  # a CPU alone cuts longer sums
    problem = Problem(kind, rng, *shape, 2, name)
    lengths = rng.integers(0, shape[0] + 1, shape[1])
    leaves = leaves_of(problem)
    total = joined(problem.call_flat(leaves, lengths))
    weights = rng.standard_normal(total.shape).astype(dtype(name))
    total.backward(weights)
    for leaf, expected in zip(leaves, float64_gradients(problem, lengths, weights), strict=True):
        assert leaf.grad.dtype == dtype(name)
        scale = 4 * max(1, np.abs(expected).max(initial=0))
        assert_close(leaf.grad.numpy(), expected, name, shape[3], scale)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_where_they_are_wanted(device, rng, kind):
    problem = Problem(kind, rng, 3, 2, 4, 5, 1)
    problem.weights[0][2] = None
    weight = drupe.tensor(problem.weights[0][1], requires_grad=True)
    y = call(kind, problem.x, [[problem.weights[0][0], weight, None, problem.weights[0][3]]])[0]
    y.backward(np.ones(y.shape))
    leaves = [drupe.tensor(w, requires_grad=True) for i, w in enumerate(problem.weights[0]) if i != 2]
    z = call(kind, problem.x, [[leaves[0], leaves[1], None, leaves[2]]])[0]
    z.backward(np.ones(z.shape))
    np.testing.assert_array_equal(weight.grad.numpy(), leaves[1].grad.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_x_alone(device, rng, kind):
    problem = Problem(kind, rng, 3, 2, 4, 5, 2)
    x, other = (drupe.tensor(problem.x, requires_grad=True) for _ in range(2))
    y = call(kind, x, problem.weights)[0]
    y.backward(np.ones(y.shape))
    z = call(kind, other, [[drupe.tensor(w, requires_grad=True) for w in d] for d in problem.weights])[0]
    z.backward(np.ones(z.shape))
    np.testing.assert_array_equal(x.grad.numpy(), other.grad.numpy())


# ---- determinism


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 4, 5, 40), (3, 4, 5, 40), (3, 17, 8, 200)], ids=str)
@pytest.mark.parametrize("directions", [1, 2])
def test_same_bits_on_any_number_of_threads(isa, rng, kind, shape, directions):
    problem = Problem(kind, rng, *shape, directions, "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 3, 5):
        drupe.set_num_threads(threads)
        leaves = leaves_of(problem)
        total = joined(problem.call_flat(leaves))
        total.backward(np.ones(total.shape, np.float32))
        results.append([total.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- errors


def mutated(problem, index, array):
    arrays = problem.arrays()
    arrays[index] = array
    return arrays


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_do_not_fit(device, rng, kind):
    rows = GATES[kind] * 5
    problem = Problem(kind, rng, 3, 2, 4, 5, 2, "float32")
    zeros = np.zeros
    cases = [
        (0, zeros((3, 4)), r"x is \(3, 4\): expected 3 dimensions \(T, B, I\)"),
        (1, zeros((rows, 3)), rf"weight_ih is \({rows}, 3\): expected \({rows}, 4\)"),
        (2, zeros(5), rf"weight_hh is \(5,\): expected \({GATES[kind]} H, H\)"),
        (2, zeros((7, 5)), rf"weight_hh is \(7, 5\): expected \({GATES[kind]} H, H\)"),
        (3, zeros(4), rf"bias_ih is \(4,\): expected \({rows},\)"),
        (4, zeros((1, rows)), rf"bias_hh is \(1, {rows}\): expected \({rows},\)"),
        (6, zeros((rows, 4)), rf"weight_hh_reverse is \({rows}, 4\): expected \({rows}, 5\)"),
        (9, zeros((1, 2, 5)), r"h0 is \(1, 2, 5\): expected \(2, 2, 5\)"),
    ]
    if kind == "lstm":
        cases.append((10, zeros((2, 2, 4)), r"c0 is \(2, 2, 4\): expected \(2, 2, 5\)"))
    for index, array, message in cases:
        with pytest.raises(ValueError, match=rf"\[{kind}\] {message}"):
            problem.call_flat(mutated(problem, index, array.astype(np.float32)))


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_that_are_refused(device, rng, kind):
    problem = Problem(kind, rng, 3, 2, 4, 5, 1, "float32")
    with pytest.raises(TypeError, match=rf"\[{kind}\] x is int64: expected float32"):
        problem.call_flat(mutated(problem, 0, problem.x.astype(np.int64)))
    for index, name in [(1, "weight_ih"), (2, "weight_hh"), (3, "bias_ih"), (4, "bias_hh"), (5, "h0")]:
        wrong = problem.arrays()[index].astype(np.float64)
        with pytest.raises(TypeError, match=rf"\[{kind}\] x is float32, {name} is float64"):
            problem.call_flat(mutated(problem, index, wrong))
    with pytest.raises(TypeError, match=rf"\[{kind}\] lengths is float32: expected int32 or int64"):
        problem.run(lengths=np.ones(2, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_that_are_refused(device, rng, kind):
    problem = Problem(kind, rng, 3, 2, 4, 5, 1, "float32")
    with pytest.raises(ValueError, match=rf"\[{kind}\] lengths is \(3,\): expected \(2,\)"):
        problem.run(lengths=np.array([1, 2, 3]))
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"\[{kind}\] lengths\[1\] is {wrong}: expected 0 to 3"):
            problem.run(lengths=np.array([3, wrong]))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_refused(rng, kind):
    problem = Problem(kind, rng, 3, 2, 4, 5, 1, "float32")
    weights = problem.weights[0]
    with pytest.raises(ValueError, match=rf"\[{kind}\] weights has 3 arrays: expected weight_ih and weight_hh,"):
        call(kind, problem.x, [weights[:3]])
    with pytest.raises(ValueError, match=rf"\[{kind}\] reverse_weights has 1 arrays"):
        call(kind, problem.x, [weights, weights[:1]])


# ---- lstm's own


def test_open_gates_add_up_the_cell(backend):
    """With the gates open and g about 1, c counts the steps, as the constant error carousel does."""
    T, H = 5, 2
    weight_ih, weight_hh = np.zeros((4 * H, 1)), np.zeros((4 * H, H))
    bias = np.full(4 * H, 40.0)
    y, h, c = ops.lstm(np.zeros((T, 1, 1)), (weight_ih, weight_hh, bias, None))
    np.testing.assert_allclose(c, np.full((1, 1, H), T), rtol=1e-12)
    np.testing.assert_allclose(y[:, 0, 0], np.tanh(np.arange(1, T + 1)), rtol=1e-12)
    np.testing.assert_array_equal(h[0], y[-1])


def test_backward_refuses_what_forward_did_not_save(rng):
    x, weights = (
        (drupe.tensor(a).raw for a in (np.zeros((3, 2, 4)), np.zeros((20, 4)))),
        drupe.tensor(np.zeros((20, 5))),
    )
    (rx, first), y = x, drupe.tensor(np.zeros((3, 2, 5))).raw
    directions = [(first, weights.raw, None, None)]
    with pytest.raises(ValueError, match=r"\[lstm_backward\] saved has 0 tensors: expected 3"):
        _C.lstm_backward(y, None, None, rx, directions, None, [], True, [])
    with pytest.raises(ValueError, match=r"\[lstm_backward\] saved gates is \(3, 2, 5\): expected \(3, 2, 20\)"):
        _C.lstm_backward(y, None, None, rx, directions, None, [y, y, y], True, [])
