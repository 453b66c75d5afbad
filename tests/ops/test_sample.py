from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from ops.test_dropout import philox4x32
from reference import dtype

NAMES = ("float32", "float16", "bfloat16")


def uniforms(rows, seed, offset=0):
    block = (np.arange(rows, dtype=np.uint64) + np.uint64(offset)) & np.uint64(2**64 - 1)
    zero = np.zeros_like(block)
    counter = (block & np.uint64(0xFFFFFFFF), block >> np.uint64(32), zero, zero)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)) >> np.uint64(8)
    return words[:, 0] * 2.0**-24 + words[:, 1] * 2.0**-48


def ranked_weights(logits, temperature):
    """The order of the tokens and, in that order, their weights."""
    x = logits.astype(np.float64)
    order = np.argsort(-x, kind="stable")
    return order, np.exp((x - x.max()) / temperature)[order]


def kept(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, slack=0.0):
    """Which tokens are left; `slack` moves the bounds of top_p and min_p by a relative error."""
    order, w = ranked_weights(logits, temperature)
    count = len(w) if top_k is None else min(top_k, len(w))
    if top_p is not None:
        mass = np.cumsum(w[:count])
        count = min(count, 1 + int(np.searchsorted(mass, top_p * (1 + slack) * mass[-1] * (1 - 1e-15))))
    if min_p is not None:
        count = min(count, max(1, int((w >= min_p * (1 - slack)).sum())))
    mask = np.zeros(len(w), bool)
    mask[order[:count]] = True
    return mask


def assert_drawn(index, logits, u, temperature=1.0, **filters):
    """Check that u falls in the chosen token's interval, within what float32 logarithms of weights are worth."""
    slack = 3e-6
    fewest, most = (kept(logits, temperature, **filters, slack=s) for s in (-slack, slack))
    order, w = ranked_weights(logits, temperature)
    weights = np.empty_like(w)
    weights[order] = w
    assert most[index] or fewest[index]
    assert logits[index] > -np.inf
    fits = []
    for mask in (fewest, most, kept(logits, temperature, **filters)):
        mass = np.cumsum(np.where(mask, weights, 0)) / weights[mask].sum()
        low = mass[index - 1] if index > 0 else 0.0
        fits.append(low - slack <= u <= mass[index] + slack and mask[index])
    assert any(fits), (index, u)


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 5.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 1.0},
    {"top_p": 1 - 1e-9},
    {"temperature": 1e30, "top_p": 0.3},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.0},
    {"top_k": 40, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 30, "top_p": 0.95, "min_p": 0.1},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_matches_reference(backend, rng, name, filters):
    logits = (3 * rng.standard_normal((4, 1037))).astype(dtype(name))
    y = ops.sample(logits, seed=0x123456789ABCDEF0, offset=5, **filters)
    assert y.shape == (4,)
    assert y.dtype == np.int64
    for index, row, u in zip(y, logits.astype(np.float32), uniforms(4, 0x123456789ABCDEF0, 5), strict=True):
        assert_drawn(index, row, u, **filters)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 255, 256, 257, 1023, 1024, 1025, 4095, 8191, 8193, 20011])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5, "top_p": 0.7}], ids=str)
def test_every_size(backend, rng, size, filters):
    logits = rng.standard_normal((2, size)).astype(np.float32)
    y = ops.sample(logits, seed=3, **filters)
    for index, row, u in zip(y, logits, uniforms(2, 3), strict=True):
        assert_drawn(index, row, u, **filters)


def test_large_vocabulary(backend, rng):
    """Several narrowings on the GPU."""
    logits = rng.standard_normal((1, 70_001)).astype(dtype("bfloat16"))
    for filters in ({}, {"top_p": 0.5}, {"top_k": 20_000}):
        y = ops.sample(logits, seed=1, **filters)
        assert_drawn(y[0], logits[0].astype(np.float32), uniforms(1, 1)[0], **filters)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_same_tokens_everywhere(backend, rng, name, filters):
    logits = (4 * rng.standard_normal((24, 301))).astype(dtype(name))
    y = ops.sample(logits, seed=2, **filters)
    with drupe.default_device("cpu"):
        chosen = drupe.cpu_isa()
        drupe.set_cpu_isa("scalar")
        expected = ops.sample(logits, seed=2, **filters)
        drupe.set_cpu_isa(chosen)
    np.testing.assert_array_equal(y, expected)


def test_same_tokens_on_any_number_of_threads(isa, rng):
    logits = rng.standard_normal((50, 5000)).astype(np.float32)
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(ops.sample(logits, seed=1, top_p=0.9))
    drupe.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("filters", "probabilities"),
    [
        ({}, [0.4, 0.05, 0.25, 0.2, 0.1]),
        ({"top_k": 2}, [0.4, 0, 0.25, 0, 0]),
        ({"top_p": 0.84}, [0.4, 0, 0.25, 0.2, 0]),
        ({"top_p": 0.86}, [0.4, 0, 0.25, 0.2, 0.1]),
        ({"min_p": 0.45}, [0.4, 0, 0.25, 0.2, 0]),
        ({"temperature": 0.5}, [0.16, 0.0025, 0.0625, 0.04, 0.01]),
        ({"top_k": 3, "top_p": 0.7}, [0.4, 0, 0.25, 0, 0]),
    ],
    ids=str,
)
def test_frequencies(backend, filters, probabilities):
    rows = 200 if backend == "cuda" else 20_000
    logits = np.broadcast_to(np.log(np.array([0.4, 0.05, 0.25, 0.2, 0.1], np.float32)), (rows, 5))
    counts = np.bincount(ops.sample(logits, seed=11, **filters), minlength=5)
    expected = rows * np.array(probabilities) / np.sum(probabilities)
    np.testing.assert_array_equal(counts[expected == 0], 0)
    chosen = expected > 0
    chi_square = ((counts[chosen] - expected[chosen]) ** 2 / expected[chosen]).sum()
    assert chi_square < 25  # 4 degrees of freedom: one in 20 000 exceeds it


@pytest.mark.parametrize("name", NAMES)
def test_temperature_0_is_argmax(backend, rng, name):
    logits = np.round(rng.standard_normal((9, 1000)) * 2).astype(dtype(name))
    y = ops.sample(logits, temperature=0, seed=0, top_k=3)
    np.testing.assert_array_equal(y, logits.astype(np.float32).argmax(-1))
    zeros = np.array([[-1.0, -0.0, 0.0], [-1.0, 0.0, -0.0]], np.float32)
    np.testing.assert_array_equal(ops.sample(zeros, temperature=0, seed=0), [1, 1])


@pytest.mark.parametrize("size", [3, 900])
def test_ties_go_to_the_lower_index(backend, size):
    """All logits equal: top_k and top_p leave the first ones."""
    rows = 60 if backend == "cuda" else 300
    logits = np.zeros((rows, size), np.float32)
    for filters in ({"top_k": 2}, {"top_p": 1.5 / size}):
        y = ops.sample(logits, seed=4, **filters)
        np.testing.assert_array_equal(y, uniforms(rows, 4) >= 0.5)
    logits[:, 0] = -1
    np.testing.assert_array_equal(ops.sample(logits, seed=4, top_k=2), 1 + (uniforms(rows, 4) >= 0.5))


def test_ties_beyond_the_first_warps(backend):
    logits = np.full((8, 12_000), -1.0, np.float32)
    logits[:, ::3] = 2
    for index, u in zip(ops.sample(logits, seed=4, top_k=3500), uniforms(8, 4), strict=True):
        assert index == 3 * int(u * 3500)


def test_offset_counts_rows(backend, rng):
    logits = rng.standard_normal((10, 200)).astype(np.float32)
    whole = ops.sample(logits, seed=8, offset=2**64 - 3)
    np.testing.assert_array_equal(ops.sample(logits[4:], seed=8, offset=1), whole[4:])
    other = ops.sample(np.repeat(logits[:1], 50, 0), seed=8)
    assert len(np.unique(other)) > 5


def test_masked_and_far_tokens(backend):
    logits = np.full((40, 50), -np.inf, np.float32)
    logits[:, [7, 30]] = [[-3e38, -3e38]]
    assert set(ops.sample(logits, seed=1)) == {7, 30}
    assert set(ops.sample(logits, seed=1, top_k=49)) == {7, 30}
    assert set(ops.sample(logits, seed=1, top_p=0.4)) == {7}
    logits[:, 30] = 3e38
    for temperature in (1e-300, 1e-3, 1.0, 1e30):
        assert set(ops.sample(logits, seed=1, temperature=temperature)) == {30}
    spread = np.array([[-np.inf, 1.0, -5.0]] * 40, np.float32)
    assert set(ops.sample(spread, seed=1, temperature=1e300)) == {1, 2}


def test_rare_tokens_are_drawn_at_their_rate(isa):
    """So many tokens that together they weigh as much as the likeliest, which comes first."""
    logits = np.full((64, 2**18), -18 * np.log(2), np.float32)
    logits[:, 0] = 0
    y = ops.sample(logits, seed=5)
    for index, u in zip(y, uniforms(64, 5), strict=True):
        assert abs(index - max(0.0, 2 * u - 1) * 2**18) < 4


def test_shapes_and_layouts(backend, rng):
    logits = rng.standard_normal((3, 4, 65)).astype(np.float32)
    y = ops.sample(logits, seed=6)
    assert y.shape == (3, 4)
    for view in (np.asfortranarray(logits), np.repeat(logits, 2, -1)[..., ::2], logits[::-1][::-1]):
        np.testing.assert_array_equal(ops.sample(view, seed=6), y)
    np.testing.assert_array_equal(ops.sample(logits.reshape(12, 65), seed=6), y.reshape(12))
    assert ops.sample(logits[0, 0], seed=6).shape == ()
    assert ops.sample(np.zeros((0, 5), np.float32), seed=6).shape == (0,)
    assert ops.sample(np.zeros((2, 0, 0), np.float32), seed=6).shape == (2, 0)
    drawn = ops.sample(drupe.tensor(logits)[1:, 1:], seed=6)
    np.testing.assert_array_equal(drawn.numpy(), ops.sample(logits[1:, 1:].copy(), seed=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"\[sample\] temperature is -1: expected a finite number that is not negative"),
        ({"temperature": np.inf}, "temperature is inf"),
        ({"temperature": np.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0: expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0: expected above 0, at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": np.nan}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1: expected 0 to 1"),
        ({"min_p": np.nan}, "min_p is nan"),
        ({"seed": -1}, r"\[sample\] seed is -1: expected 0 to 2\^64 - 1"),
        ({"offset": 2**64}, "offset is 18446744073709551616"),
    ],
)
def test_errors_name_what_is_wrong(device, options, message):
    with pytest.raises(ValueError, match=message):
        ops.sample(np.zeros((2, 3), np.float32), **{"seed": 0, **options})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "has NaN"), (np.inf, "has infinity"), (-np.inf, "is all -infinity")]
)
def test_rows_without_a_distribution(backend, value, message, temperature):
    logits = np.zeros((7, 130), np.float32)
    logits[3, 100] = value
    if value == -np.inf:
        logits[3] = value
    with pytest.raises(ValueError, match=rf"\[sample\] row 3 of logits {message}: no token to draw"):
        ops.sample(logits, seed=0, temperature=temperature)


def test_shapes_and_dtypes_that_are_refused(device):
    with pytest.raises(ValueError, match=r"logits are \(2, 0\): no token to draw"):
        ops.sample(np.zeros((2, 0), np.float32), seed=0)
    with pytest.raises(ValueError, match="at least 1 dimension"):
        ops.sample(np.float32(1), seed=0)
    for wrong in (np.int64, np.float64):
        with pytest.raises(TypeError, match="expected float32, float16 or bfloat16"):
            ops.sample(np.zeros((2, 3), wrong), seed=0)
