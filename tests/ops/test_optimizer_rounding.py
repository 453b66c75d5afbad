"""Optimizer steps of 16-bit parameters: float32 masters, and stochastic rounding."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import SparseRows, ops
from optimizer_cases import CASES, call, draw, lie, new_states
from reference import dtype, f64, philox4x32

HALVES = ("float16", "bfloat16")
SIZES = [1, 3, 4, 63, 64, 65, 129, 1000, 5000]
# The exponents of the smallest normal number, the bits after the point, the largest number.
FORMAT = {"float16": (-14, 10, 65504.0), "bfloat16": (-126, 7, float.fromhex("0x1.fep127"))}


def random24(size, tensor, seed, offset):
    """Bits 8 to 31 of the words that a tensor's elements draw."""
    blocks = np.arange((size + 3) // 4, dtype=np.uint64) + np.uint64(tensor << 40)
    high = np.full_like(blocks, offset >> 32)
    counter = (blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), np.full_like(blocks, offset & 0xFFFFFFFF), high)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return (words.reshape(-1)[:size] >> np.uint64(8)).astype(np.float64)


def rounded(x, random, name):
    """What float32 numbers become, by the definition, in float64."""
    lowest, bits, largest = FORMAT[name]
    magnitude = np.abs(f64(x))
    finite = np.where(np.isfinite(magnitude), magnitude, 0)
    exponent = np.frexp(finite)[1] - 1
    unit = np.ldexp(1.0, np.maximum(np.where(finite > 0, exponent, lowest), lowest) - bits)
    down = np.floor(finite / unit)
    steps = 2.0**24 if name == "float16" else 2.0**16
    drawn = random if name == "float16" else np.floor(random / 2**8)
    up = np.floor((finite / unit - down) * steps) + drawn >= steps
    result = np.minimum((down + up) * unit, largest)
    over = magnitude >= largest + np.ldexp(1.0, int(np.log2(largest)) - bits - 1)
    result = np.where(over, np.inf, result)
    return np.copysign(np.where(np.isnan(magnitude), np.nan, result), f64(x))


def hard_numbers(rng, size, name):
    """Of every exponent that the format has, and more; its limits; what is not finite; what needs no rounding."""
    lowest, bits, largest = FORMAT[name]
    x = rng.standard_normal(size) * 2.0 ** rng.integers(lowest - bits - 4, int(np.log2(largest)) + 1, size)
    unit = np.ldexp(1.0, int(np.log2(largest)) - bits)
    edge = [0.0, np.inf, -np.inf, np.nan, largest, -largest, largest + unit / 2, largest + unit * 0.499, 1e30]
    edge += [1e-30, 2.0**lowest, -(2.0**lowest) * (1 - 2.0**-20), 2.0 ** (lowest - bits), 1.5 * 2.0 ** (lowest - bits)]
    edge += [2.0 ** (lowest - bits - 2), 1.0, 1 + 2.0 ** (-bits - 1), 1 - 2.0**-24, -(2 - 2.0**-23)]
    x[: min(len(edge), size)] = edge[:size]
    with np.errstate(over="ignore"):
        return rng.permutation(x.astype(np.float32))


def store(numbers, name, **options):
    """Let sgd compute these float32 numbers, which it then has to store in 16-bit parameters."""
    params = [lie(np.zeros(x.shape, dtype(name))) for x in numbers]
    grads = [lie(np.zeros(x.shape, dtype(name))) for x in numbers]
    ops.sgd(params, grads, [lie(-x) for x in numbers], lr=1, momentum=1, stochastic_rounding=True, **options)
    return [np.asarray(p) for p in params]


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (2**64 - 1, 2**40 + 5)])
def test_follows_the_definition(backend, rng, name, seed, offset):
    numbers = [hard_numbers(rng, size, name) for size in SIZES]
    for i, (x, y) in enumerate(zip(numbers, store(numbers, name, seed=seed, offset=offset), strict=True)):
        assert y.dtype == dtype(name)
        expected = rounded(x, random24(x.size, i, seed, offset), name)
        np.testing.assert_array_equal(f64(y), expected)
        number = ~np.isnan(x)
        np.testing.assert_array_equal(np.signbit(f64(y))[number], np.signbit(expected)[number])


@pytest.mark.parametrize("name", HALVES)
def test_is_right_on_average(backend, name):
    lowest, bits, _ = FORMAT[name]
    count = 2**14
    for exponent in (0, 5, lowest, lowest - 3, lowest - bits):
        unit = np.ldexp(1.0, max(exponent, lowest) - bits)
        for part in (2.0**-7, 0.25, 0.5, 0.9):
            x = np.float32(np.ldexp(1.0, exponent) + part * unit)
            (y,) = store([np.full(count, x)], name, seed=exponent % 100)
            assert set(np.unique(f64(y))) <= {np.ldexp(1.0, exponent), np.ldexp(1.0, exponent) + unit}
            error = np.sqrt(part * (1 - part) / count)
            assert abs((f64(y) - f64(x)).mean() / unit) < 5 * error


def test_small_updates_are_not_lost(device):
    count = 2**12
    # An eighth of the last place, 64 times: 8 of them.
    drawn, nearest = (lie(np.ones(count, dtype("bfloat16"))) for _ in range(2))
    grad = lie(np.full(count, -(2.0**-10), dtype("bfloat16")))
    for step in range(64):
        ops.sgd([drawn], [grad], lr=1, stochastic_rounding=True, seed=7, offset=step)
        ops.sgd([nearest], [grad], lr=1)
    assert f64(np.asarray(nearest)).max() == 1
    assert f64(np.asarray(drawn)).mean() == pytest.approx(1 + 64 * 2.0**-10, abs=5e-4)


def everywhere():
    """Each instruction set, then the GPU."""
    before = drupe.cpu_isa()
    for isa in drupe.cpu_isas():
        drupe.set_cpu_isa(isa)
        yield isa
    drupe.set_cpu_isa(before)
    if drupe.cuda_status()["available"]:
        with drupe.default_device("cuda"):
            yield "cuda"


@pytest.mark.parametrize("name", [*HALVES, "float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_every_machine_gives_the_same_bits(rng, case, name):
    start = [draw(rng, shape, name) for shape in [(3,), (5, 13), (0,), (2100,)]]
    grads = [[draw(rng, p.shape, name) for p in start] for _ in range(2)]
    results = []
    for _ in everywhere():
        params = [p.copy() for p in start]
        states = new_states(case, params)
        for step, grad in enumerate(grads):
            call(case, params, grad, states, step + 1, stochastic_rounding=True, seed=3, offset=step)
        results.append([*params, *(s for state in states for s in state)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", HALVES)
def test_threads_and_places_leave_no_trace(backend, rng, name):
    size = 9001 if backend == "cuda" else 100_000
    param, grad = draw(rng, size, name), draw(rng, size, name)
    results = []
    before = drupe.num_threads()
    for threads, first in ((1, 0), (2, 0), (5, 1), (2, 4), (1, 7), (2, 8)):
        drupe.set_num_threads(threads)
        memory = lie(np.concatenate([np.zeros(first, param.dtype), param]))
        ops.adam(
            [memory[first:]],
            [lie(grad)],
            [lie(np.zeros(size, np.float32))],
            [lie(np.zeros(size, np.float32))],
            step=1,
            lr=0.1,
            stochastic_rounding=True,
            seed=1,
        )
        results.append(np.asarray(memory)[first:])
    drupe.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("layout", ["sliced", "reversed", "transposed"])
def test_draws_go_by_the_order_of_indices(backend, rng, layout):
    def lay(x):
        if layout == "transposed":
            return lie(np.ascontiguousarray(x.T)).T
        wide = np.zeros((2 * x.shape[0], 2 * x.shape[1]), x.dtype)
        view = wide[::2, ::2] if layout == "sliced" else wide[: x.shape[0]][::-1, : x.shape[1]]
        view[...] = x
        memory = lie(wide)
        return memory[::2, ::2] if layout == "sliced" else memory[: x.shape[0]][::-1, : x.shape[1]]

    start, grad = draw(rng, (9, 14), "bfloat16"), draw(rng, (9, 14), "bfloat16")
    plain, laid = lie(start.copy()), lay(start)
    ops.sgd([plain], [lie(grad)], lr=0.1, stochastic_rounding=True, seed=9)
    ops.sgd([laid], [lay(grad)], lr=0.1, stochastic_rounding=True, seed=9)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(laid))
    assert (f64(np.asarray(plain)) != f64(start)).any()


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("width", [1, 6, 16, 37, 200])
@pytest.mark.parametrize("keep", ["drawn", "masters"])
def test_sparse_gradients_are_the_dense_step_on_their_rows(backend, rng, name, width, keep):
    table, rows = draw(rng, (50, width), name), np.array([0, 3, 4, 49])
    values = draw(rng, (4, width), name)
    sparse, dense = lie(table.copy()), lie(table.copy())
    grad = SparseRows(drupe.tensor(rows).raw, drupe.tensor(values).raw, table.shape)
    exact = table.astype(np.float32) * np.float32(1.0001)
    masters = [lie(exact.copy()), lie(exact.copy())]
    for param, given, master in ((sparse, grad, masters[0]), (dense, grad.to_dense(), masters[1])):
        if keep == "drawn":
            ops.sgd([param], [given], lr=0.1, stochastic_rounding=True, seed=2)
        else:
            ops.sgd([param], [given], lr=0.1, masters=[master])
    np.testing.assert_array_equal(np.asarray(sparse)[rows], np.asarray(dense)[rows])
    rest = np.setdiff1d(np.arange(50), rows)
    np.testing.assert_array_equal(np.asarray(sparse)[rest], table[rest])
    np.testing.assert_array_equal(np.asarray(masters[0]), np.asarray(masters[1]))


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_masters_take_the_float32_step(backend, rng, case, name):
    shapes = [(3,), (65,), (0,), (), (33, 70)]
    exact = [np.asarray(rng.standard_normal(shape)).astype(np.float32) for shape in shapes]
    params, alone = [x.astype(dtype(name)) for x in exact], [x.copy() for x in exact]
    masters = [lie(x.copy()) for x in exact]
    states, float_states = new_states(case, params), new_states(case, exact)
    for step in (1, 2, 3):
        grads = [draw(rng, shape, name) for shape in shapes]
        call(case, params, grads, states, step, masters=masters)
        call(case, alone, [g.astype(np.float32) for g in grads], float_states, step)
        for p, master, x in zip(params, masters, alone, strict=True):
            np.testing.assert_array_equal(np.asarray(master), x)
            np.testing.assert_array_equal(p, x.astype(dtype(name)))
    for state, float_state in zip(states, float_states, strict=True):
        for s, t in zip(state, float_state, strict=True):
            np.testing.assert_array_equal(s, t)


def test_masters_of_some(backend, rng):
    names = ["bfloat16", "float32", "float16", "bfloat16"]
    params, grads = ([draw(rng, 90, name) for name in names] for _ in range(2))
    together = [lie(p.copy()) for p in params]
    exact = params[3].astype(np.float32) + np.float32(1e-4)
    masters = [None, None, None, lie(exact.copy())]
    ops.sgd(together, [lie(g) for g in grads], lr=0.1, masters=masters)
    plain = [lie(p.copy()) for p in params[:3]]
    ops.sgd(plain, [lie(g) for g in grads[:3]], lr=0.1)
    for a, b in zip(together[:3], plain, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert not np.array_equal(np.asarray(masters[3]), exact)
    np.testing.assert_array_equal(np.asarray(together[3]), np.asarray(masters[3]).astype(dtype("bfloat16")))


@pytest.mark.parametrize("firsts", [(0, 0, 1), (8, 0, 4), (1, 1, 1)], ids=str)
def test_masters_may_lie_anywhere(backend, rng, firsts):
    def placed(x, first):
        return lie(np.concatenate([np.zeros(first, x.dtype), x]))[first:]

    p, g = draw(rng, 4103, "float16"), draw(rng, 4103, "float16")
    x = p.astype(np.float32)
    param, master = placed(p, firsts[0]), placed(x, firsts[2])
    ops.sgd([param], [placed(g, firsts[1])], lr=0.1, masters=[master])
    strided, wide = lie(p.copy()), lie(np.repeat(x, 2))
    ops.sgd([strided], [lie(g)], lr=0.1, masters=[wide[::2]])
    expected = lie(x.copy())
    ops.sgd([expected], [lie(g.astype(np.float32))], lr=0.1)
    for one in (master, wide[::2]):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(param), np.asarray(strided))


def test_float32_parameters_are_not_drawn(backend, rng):
    for name in ("float32", "float64"):
        p, g = draw(rng, 70, name), draw(rng, 70, name)
        drawn, plain = lie(p.copy()), lie(p.copy())
        ops.sgd([drawn], [lie(g)], lr=0.1, stochastic_rounding=True, seed=1)
        ops.sgd([plain], [lie(g)], lr=0.1)
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(plain))


def test_streams_come_from_the_global_seed(rng):
    x = [rng.standard_normal(500).astype(np.float32)]
    with drupe.random.preserved():
        drupe.manual_seed(5)
        first, second = store(x, "bfloat16")[0], store(x, "bfloat16")[0]
        drupe.manual_seed(5)
        np.testing.assert_array_equal(store(x, "bfloat16")[0], first)
    assert (f64(first) != f64(second)).any()
    np.testing.assert_array_equal(store(x, "bfloat16", seed=5, offset=1)[0], second)


def test_masters_know_that_they_were_written(device):
    p, master = drupe.ones((3,), "bfloat16"), drupe.ones((3,))
    ops.sgd([p], [drupe.ones((3,), "bfloat16")], lr=0.1, masters=[master])
    assert (p.version, master.version) == (1, 1)


HALF, ONE = np.ones(4, np.float16), np.ones(4, np.float32)
LOCKED = ONE.copy()
LOCKED.flags.writeable = False


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        ([HALF], {"masters": [ONE, ONE]}, ValueError, r"\[sgd\] 1 params and 2 masters"),
        ([HALF], {"masters": [ONE.astype(float)]}, TypeError, r"masters\[0\] is float64: expected float32"),
        ([HALF], {"masters": [HALF.copy()]}, TypeError, r"masters\[0\] is float16: expected float32"),
        ([ONE], {"masters": [ONE.copy()]}, TypeError, r"masters\[0\] is given for a float32 parameter"),
        ([HALF], {"masters": [np.ones(5, "f")]}, ValueError, r"params\[0\] is \(4,\), masters\[0\] is \(5,\)"),
        ([HALF], {"masters": [LOCKED]}, ValueError, r"masters\[0\] is read-only"),
        ([HALF, HALF.copy()], {"masters": [ONE, ONE]}, ValueError, r"masters\[0\] and masters\[1\] overlap"),
        ([HALF], {"masters": [ONE], "stochastic_rounding": True}, ValueError, r"masters\[0\] and stochastic rounding"),
        ([HALF], {"masters": [[1.0] * 4]}, TypeError, r"\[sgd\] expected an array"),
        ([HALF], {"stochastic_rounding": True, "seed": -1}, ValueError, r"\[sgd\] seed is -1: expected 0 to 2\^64 - 1"),
        (
            [HALF],
            {"stochastic_rounding": True, "seed": 1, "offset": 2**64},
            ValueError,
            r"offset is 18446744073709551616",
        ),
    ],
)
def test_errors_name_what_is_wrong(params, options, error, message):
    with pytest.raises(error, match=message):
        ops.sgd(params, [p.copy() for p in params], lr=0.1, **options)
    np.testing.assert_array_equal(HALF, 1)
    np.testing.assert_array_equal(ONE, 1)
