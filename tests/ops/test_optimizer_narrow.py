"""Optimizer states in bfloat16, and in 8 bits by blocks that share a scale."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import SparseRows, ops
from optimizer_cases import call
from reference import dtype, f64

NARROW = ("bfloat16", "uint8")
BLOCK = 256
SIZES = [1, 15, 255, 256, 257, 3000, 20000]
# Of the cases, those that have states, and whether each of these has signs.
RULES = {
    "sgd-momentum": (True,),
    "adam": (True, False),
    "adamw": (True, False),
    "rmsprop": (False,),
    "rmsprop-momentum": (False, True),
}


class States:
    """The states of some parameters, in one format, and the calls that change them."""

    def __init__(self, rule, kind, shapes):
        self.rule, self.signs = rule, RULES[rule]
        self.kind, self.step = kind, 0
        self.arrays = [[np.zeros(shape, dtype(kind)) for shape in shapes] for _ in self.signs]
        blocks = [-(-int(np.prod(shape)) // BLOCK) for shape in shapes]
        self.scales = [np.zeros((len(self.signs), count), np.float32) for count in blocks] if kind == "uint8" else None

    def __call__(self, params, grads, **changes):
        self.step += 1
        options = {"lr": 0.01, "seed": 3, "offset": self.step << 8, **changes}
        call(self.rule, params, grads, self.arrays, self.step, scales=self.scales, **options)

    def value(self, k, i):
        """State k of parameter i in float64, as core/narrow_state.h defines it."""
        stored = self.arrays[k][i]
        if self.kind != "uint8":
            return f64(stored)
        codes = stored.reshape(-1).astype(np.uint32)
        scale = np.repeat(f64(self.scales[i][k]), BLOCK)[: codes.size]
        bits, shift, slope = (codes & 127, 18, 2.0**22) if self.signs[k] else (codes, 17, 2.0**23)
        u = f64((np.uint32(0x40000000) + (bits << np.uint32(shift))).astype(np.uint32).view(np.float32))
        y = f64(np.rint(0x3F800000 - (u - 2) * slope).astype(np.uint32).view(np.float32))
        if self.signs[k]:
            y = np.where(codes & 128, -1, 1) * (y - 1.25 * 2.0**-15)
        return (y * scale).reshape(stored.shape)


def everything(states, params):
    arrays = [*params, *(x for state in states.arrays for x in state), *(states.scales or ())]
    return [np.asarray(x).tobytes() for x in arrays]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("rule", RULES)
def test_states_follow_the_exact_ones(isa, rng, rule, kind):
    start = [rng.standard_normal(size, dtype=np.float32) for size in SIZES]
    narrow, wide = (States(rule, k, [x.shape for x in start]) for k in (kind, "float32"))
    ours, exact = ([x.copy() for x in start] for _ in range(2))
    moved = [[np.zeros(size) for size in SIZES] for _ in narrow.signs]  # sums of magnitudes, each of which was rounded
    for _ in range(20):
        grads = [rng.standard_normal(size) * 10.0 ** rng.integers(-3, 2, size) for size in SIZES]
        grads = [g.astype(np.float32) for g in grads]
        narrow(ours, grads)
        wide(exact, grads)
        for sums, states in zip(moved, wide.arrays, strict=True):
            for total, state in zip(sums, states, strict=True):
                total += np.abs(state) + np.abs(state).max() * 2.0**-14
    unit = {"bfloat16": 2.0**-7, "uint8": 0.18}[kind]
    for k in range(len(narrow.signs)):
        for i, size in enumerate(SIZES):
            error = narrow.value(k, i) - f64(wide.arrays[k][i])
            assert (np.abs(error) <= unit * moved[k][i]).all()
            if size >= 3000:  # most errors cancel, and so do their means, since they are drawn
                assert np.sqrt(np.square(error).mean()) < unit * np.sqrt(np.square(wide.arrays[k][i]).mean())
                assert abs(error.mean()) < 0.1 * unit * np.abs(wide.arrays[k][i]).mean()


@pytest.mark.parametrize("kind", NARROW)
def test_a_mean_of_squares_does_not_stop(isa, kind):
    states = States("adamw", kind, [(4096,)])
    p, g = [np.zeros(4096, np.float32)], [np.full(4096, 0.5, np.float32)]
    for _ in range(1500):
        states(p, g)
    wanted = 0.25 * (1 - 0.999**1500)
    assert abs(states.value(1, 0).mean() / wanted - 1) < 0.01
    assert states.value(1, 0).std() < 0.25 * wanted
    g = [np.full(4096, 2.0**-10, np.float32)]
    for _ in range(1500):
        states(p, g)
    assert abs(states.value(1, 0).mean() / (wanted * 0.999**1500 + 2.0**-20 * (1 - 0.999**1500)) - 1) < 0.03


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("rule", RULES)
def test_small_gradients_beside_large_ones_make_no_large_steps(isa, rule, kind):
    states = States(rule, kind, [(512,)])
    p = [np.ones(512, np.float32)]
    g = np.full(512, 1e-12, np.float32)
    g[::64] = 100
    for _ in range(50):
        states(p, [g], weight_decay=0)
    assert np.isfinite(p[0]).all()
    assert np.abs(np.delete(p[0], np.s_[::64]) - 1).max() < 50 * 0.01 * 1.2


@pytest.mark.parametrize("kind", NARROW)
def test_zeros_stay_zeros(isa, kind):
    states = States("adamw", kind, [(300,)])
    p = [np.ones(300, np.float32)]
    for _ in range(3):
        states(p, [np.zeros(300, np.float32)], weight_decay=0)
    np.testing.assert_array_equal(p[0], 1)
    assert not states.value(0, 0).any()
    assert np.abs(states.value(1, 0)).max() < 1e-26  # the smallest that it divides by


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", NARROW)
def test_what_is_not_finite_stays_within_its_block(isa, kind, bad):
    states = States("adamw", kind, [(3 * BLOCK,)])
    p, g = [np.ones(3 * BLOCK, np.float32)], np.ones(3 * BLOCK, np.float32)
    g[BLOCK + 7] = bad
    states(p, [g])
    hurt = ~np.isfinite(states.value(1, 0))
    expected = np.zeros(3 * BLOCK, bool)
    expected[slice(BLOCK, 2 * BLOCK) if kind == "uint8" else BLOCK + 7] = True
    np.testing.assert_array_equal(hurt, expected)
    assert np.isfinite(p[0][~expected]).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000])
@pytest.mark.parametrize("kind", NARROW)
def test_a_nan_of_any_bits_stays_one(isa, kind, bits):
    states, p = States("adamw", kind, [(BLOCK,)]), [np.ones(BLOCK, np.float32)]
    states(p, [np.full(BLOCK, bits, np.uint32).view(np.float32)])
    assert np.isnan(states.value(0, 0)).all()
    assert np.isnan(states.value(1, 0)).all()


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("rule", RULES)
def test_every_machine_and_number_of_threads_gives_the_same_bits(rng, rule, kind, name):
    start = [rng.standard_normal(size).astype(dtype(name)) for size in SIZES]
    grads = [[rng.standard_normal(size).astype(dtype(name)) for size in SIZES] for _ in range(3)]
    isa, threads, found = drupe.cpu_isa(), drupe.num_threads(), {}
    try:
        for each in drupe.cpu_isas():
            for count in (1, 3):
                drupe.set_cpu_isa(each)
                drupe.set_num_threads(count)
                states, params = States(rule, kind, [x.shape for x in start]), [x.copy() for x in start]
                for g in grads:
                    states(params, g)
                found[each, count] = everything(states, params)
    finally:
        drupe.set_cpu_isa(isa)
        drupe.set_num_threads(threads)
    assert all(bits == found[drupe.cpu_isas()[0], 1] for bits in found.values())


@pytest.mark.parametrize("kind", NARROW)
def test_draws_follow_the_seed_and_the_offset(rng, kind):
    g = [rng.standard_normal(5000, dtype=np.float32)]

    def run(seed, offset):
        states, p = States("adamw", kind, [(5000,)]), [np.zeros(5000, np.float32)]
        for step in range(2):
            states(p, g, seed=seed, offset=offset + step)
        return everything(states, p)

    assert run(1, 0) == run(1, 0)
    assert len({tuple(run(*at)) for at in ((1, 0), (2, 0), (1, 9))}) == 3


@pytest.mark.parametrize("kind", NARROW)
def test_strides(isa, rng, kind):
    whole = rng.standard_normal((2, 60, 40), dtype=np.float32)
    states, other = States("adamw", kind, [(60, 20)]), States("adamw", kind, [(60, 20)])
    strided = [whole[0].copy()[:, ::2]]
    plain = [np.ascontiguousarray(strided[0])]
    for _ in range(2):
        states(strided, [whole[1][:, ::-2]])
        other(plain, [np.ascontiguousarray(whole[1][:, ::-2])])
    assert everything(states, strided) == everything(other, plain)


def test_errors():
    p, g = [np.zeros(300, np.float32)], [np.ones(300, np.float32)]
    m, v = ([np.zeros(300, np.uint8)] for _ in range(2))
    scales = [np.zeros((2, 2), np.float32)]
    with pytest.raises(ValueError, match=r"\[adamw\] exp_avgs\[0\] is uint8, but there is no scales\[0\]"):
        ops.adamw(p, g, m, v, step=1)
    with pytest.raises(ValueError, match=r"\[adamw\] exp_avgs\[0\] is float32, but there is scales\[0\]"):
        ops.adamw(p, g, [np.zeros(300, np.float32)], [np.zeros(300, np.float32)], step=1, scales=scales)
    with pytest.raises(ValueError, match=r"params\[0\] is \(300,\), scales\[0\] is \(2, 1\): expected \(2, 2\)"):
        ops.adamw(p, g, m, v, step=1, scales=[np.zeros((2, 1), np.float32)])
    with pytest.raises(TypeError, match=r"scales\[0\] is float64: expected float32"):
        ops.adamw(p, g, m, v, step=1, scales=[np.zeros((2, 2))])
    with pytest.raises(TypeError, match=r"exp_avg_sqs\[0\] is bfloat16: expected uint8"):
        ops.adamw(p, g, m, [np.zeros(300, dtype("bfloat16"))], step=1, scales=scales)
    with pytest.raises(TypeError, match=r"\[rmsprop\] square_avgs\[0\] is uint8: with centered=true states must be"):
        ops.rmsprop(p, g, m, v, [], lr=0.1, centered=True, scales=scales)
    rows = SparseRows(drupe.tensor(np.array([1])).raw, drupe.tensor(np.ones((1, 3), np.float32)).raw, (100, 3))
    narrow = [np.zeros((100, 3), dtype("bfloat16")) for _ in range(2)]
    with pytest.raises(ValueError, match=r"exp_avgs\[0\] is bfloat16, grads\[0\] has rows: a sparse gradient needs"):
        ops.adamw([np.zeros((100, 3), np.float32)], [rows], narrow[:1], narrow[1:], step=1)
    assert not any(x.any() for x in (*p, *m, *v, *scales))


@pytest.mark.skipif(not drupe.cuda_status()["available"], reason="no GPU, real or emulated")
def test_is_for_the_cpu_alone_cuda():
    p, g = (drupe.tensor(np.ones(300, np.float32)).to("cuda") for _ in range(2))
    m, v = (drupe.zeros((300,), "bfloat16", device="cuda") for _ in range(2))
    with pytest.raises(TypeError, match=r"\[adamw\] exp_avgs\[0\] is bfloat16: on a GPU states must be float32"):
        ops.adamw([p], [g], [m], [v], step=1)
