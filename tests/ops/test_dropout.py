from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, philox4x32


def uniforms(size, seed, offset):
    blocks = np.arange((size + 3) // 4, dtype=np.uint64)
    low, high = offset & 0xFFFFFFFF, offset >> 32
    counter = (blocks, np.zeros_like(blocks), np.full_like(blocks, low), np.full_like(blocks, high))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return (words.reshape(-1)[:size] >> np.uint64(8)) * 2.0**-24


def reference(x, p, seed, offset=0):
    u = uniforms(x.size, seed, offset).reshape(x.shape)
    return np.where(u >= p, x.astype(np.float64) / (1 - p), 0)


# The published known answers of Random123 (kat_vectors, philox4x32-10): counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_reference_gives_the_known_answers(counter, key, words):
    np.testing.assert_array_equal(philox4x32(counter, key), words)


def test_kernel_gives_the_known_answer(backend):
    """Each of the first four uniforms is kept at p = u and dropped at the next multiple of 2^-24."""
    u = (np.array(KNOWN[0][2]) >> 8) * 2.0**-24
    x = np.ones(4)
    for i in range(4):
        assert ops.dropout(x, u[i], seed=0)[i] != 0
        assert ops.dropout(x, u[i] + 2.0**-24, seed=0)[i] == 0
        assert ops.dropout(x, u[i] + 2.0**-30, seed=0)[i] == 0


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 63, 64, 127, 128, 129, 1000, 16384, 16389, 40001])
def test_matches_the_documented_stream(backend, rng, name, size):
    x = rng.standard_normal(size).astype(dtype(name))
    y = ops.dropout(x, 0.3, seed=0x123456789ABCDEF0, offset=0xFEDCBA9876543210)
    assert y.dtype == dtype(name)
    expected = reference(x, 0.3, 0x123456789ABCDEF0, 0xFEDCBA9876543210)
    np.testing.assert_array_equal(y == 0, expected == 0)
    assert_close(y, expected, name)


@pytest.mark.parametrize("stream", [(0, 0), (1, 0), (0, 1), (2**32, 0), (0, 2**32), (2**64 - 1, 2**64 - 1)])
def test_every_bit_of_seed_and_offset_counts(backend, stream):
    x = np.ones(500)
    np.testing.assert_array_equal(ops.dropout(x, 0.5, seed=stream[0], offset=stream[1]), reference(x, 0.5, *stream))


def test_memory_order_does_not_matter(backend, rng):
    x = rng.standard_normal((5, 6, 7)).astype(np.float32)
    expected = ops.dropout(x, 0.4, seed=9)
    for view in (np.asfortranarray(x), np.ascontiguousarray(x[::-1])[::-1], np.repeat(x, 2, -1)[..., ::2]):
        np.testing.assert_array_equal(ops.dropout(view, 0.4, seed=9), expected)
    readonly = x.copy()
    readonly.flags.writeable = False
    np.testing.assert_array_equal(ops.dropout(readonly, 0.4, seed=9), expected)


@pytest.mark.parametrize("name", FLOATS)
def test_views_that_begin_anywhere(backend, rng, name):
    x = rng.standard_normal(1030).astype(dtype(name))
    for begin in (1, 2, 3, 7):
        y = ops.dropout(drupe.tensor(x)[begin:], 0.4, seed=9)
        np.testing.assert_array_equal(y.numpy(), ops.dropout(x[begin:].copy(), 0.4, seed=9))


@pytest.mark.parametrize("name", FLOATS)
def test_same_bits_on_every_device(device, rng, name):
    x = rng.standard_normal(3001).astype(dtype(name))
    y = ops.dropout(x, 0.3, seed=5, offset=6)
    with drupe.default_device("cpu"):
        np.testing.assert_array_equal(y, ops.dropout(x, 0.3, seed=5, offset=6))


def test_rate_and_scale(backend):
    y = ops.dropout(np.ones(200_000, np.float32), 0.25, seed=3)
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 200_000)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-7)


def test_p_0_and_1_and_inference(backend, rng):
    x = rng.standard_normal(100)
    np.testing.assert_array_equal(ops.dropout(x, 0, seed=1), x)
    np.testing.assert_array_equal(ops.dropout(x, 1, seed=1), np.zeros(100))
    assert ops.dropout(x, 0.5, training=False) is x


def test_dropped_nan_is_zero(backend):
    y = ops.dropout(np.full(1000, np.nan, np.float32), 0.5, seed=1)
    assert 300 < (y == 0).sum() < 700
    assert np.isnan(y[y != 0]).all()


def test_gradients(backend, rng):
    check_gradients(lambda x: ops.dropout(x, 0.3, seed=4, offset=5), rng.standard_normal((7, 11)), rng=rng)
    x = drupe.tensor(rng.standard_normal((30, 40)), requires_grad=True)
    y = ops.dropout(x, 0.5)
    dy = rng.standard_normal((40, 30)).T
    y.backward(dy)
    np.testing.assert_array_equal(x.grad.numpy(), np.where(y.detach().numpy() == 0, 0, 2 * dy))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [0, 1, 3, 7, 8, 9, 15, 16, 17, 63, 129, 16384, 16389, 40001])
def test_backward_is_the_op_on_dy_to_the_bit(backend, rng, name, size):
    x, dy = (rng.standard_normal(size).astype(dtype(name)) for _ in range(2))
    leaf = drupe.tensor(x, requires_grad=True)
    y = ops.dropout(leaf, 0.3, seed=11, offset=12)
    y.backward(dy)
    np.testing.assert_array_equal(y.detach().numpy(), ops.dropout(x, 0.3, seed=11, offset=12))
    np.testing.assert_array_equal(leaf.grad.numpy(), ops.dropout(dy, 0.3, seed=11, offset=12))


def test_backward_of_p_0_and_1_and_of_nan(backend):
    dy = np.array([1, np.nan, np.inf, -2.0] * 50)
    for p, expected in ((0, dy), (1, np.zeros(200))):
        x = drupe.tensor(np.ones(200), requires_grad=True)
        ops.dropout(x, p, seed=1).backward(dy)
        np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_backward_of_a_large_array(isa):
    """Larger than what is stored past the caches."""
    x = drupe.tensor(np.ones(2**23 + 3, np.float32), requires_grad=True)
    dy = np.arange(2**23 + 3, dtype=np.float32)
    y = ops.dropout(x, 0.5, seed=1)
    y.backward(dy)
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy() * dy)


def test_manual_seed_repeats_and_streams_differ(device):
    x = np.ones(1000)
    drupe.manual_seed(7)
    first, second = ops.dropout(x, 0.5), ops.dropout(x, 0.5)
    drupe.manual_seed(7)
    np.testing.assert_array_equal(ops.dropout(x, 0.5), first)
    np.testing.assert_array_equal(first, ops.dropout(x, 0.5, seed=7, offset=0))
    np.testing.assert_array_equal(second, ops.dropout(x, 0.5, seed=7, offset=1))
    assert (first != second).any()


def test_same_bits_on_any_number_of_threads(backend):
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(ops.dropout(np.ones(100_003, np.float32), 0.5, seed=1))
    drupe.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("p", "options", "message"),
    [
        (-0.1, {}, r"\[dropout\] p is -0.1: expected 0 to 1"),
        (1.01, {}, r"p is 1.01"),
        (float("nan"), {}, r"p is nan"),
        (2, {"training": False}, r"p is 2"),
        (0.5, {"seed": -1}, r"seed is -1: expected 0 to 2\^64 - 1"),
        (0.5, {"seed": 2**64}, r"seed is 18446744073709551616"),
        (0.5, {"seed": 0, "offset": -1}, r"offset is -1"),
    ],
)
def test_errors_name_what_is_wrong(device, p, options, message):
    with pytest.raises(ValueError, match=message):
        ops.dropout(np.ones(3), p, **options)


def test_integers_are_refused(device):
    with pytest.raises(TypeError, match=r"\[dropout\] x is int64"):
        ops.dropout(np.ones(3, np.int64), 0.5)
