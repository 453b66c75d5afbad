from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops


def apart(x, queries, heads):
    """Return q, k and v (B, H, S, D) of (B, S, width)."""
    B, S, width = x.shape
    split = x.reshape(B, S, queries + 2 * heads, width // (queries + 2 * heads)).transpose(0, 2, 1, 3)
    return np.split(split, [queries, queries + heads], axis=1)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("starts", [0, 3, [2, 0, 4]])
@pytest.mark.parametrize(("queries", "heads", "S"), [(2, 2, 1), (4, 2, 3), (3, 1, 2)])
def test_is_what_its_parts_are(device, rng, name, starts, queries, heads, S):
    x = drupe.tensor(rng.standard_normal((3, S, (queries + 2 * heads) * 5)), name)
    keys, values, k2, v2 = (drupe.tensor(np.zeros((3, heads, 7, 5)), name) for _ in range(4))
    for cache, twin in ((keys, k2), (values, v2)):
        before = drupe.tensor(rng.standard_normal((3, heads, 4, 5)), name)
        ops.append_rows(cache, before, 0)
        ops.append_rows(twin, before, 0)
    ends = np.asarray(starts if isinstance(starts, list) else [starts] * 3) + S
    options = {"scale": 0.3, "causal": isinstance(starts, int)} | ({} if isinstance(starts, int) else {"lengths": ends})
    y = ops.cached_attention(x, keys, values, starts, **options)
    q, k, v = (drupe.tensor(np.ascontiguousarray(part), name) for part in apart(x.numpy(), queries, heads))
    expected = ops.attention(q, ops.append_rows(k2, k, starts), ops.append_rows(v2, v, starts), **options)
    assert y.shape == (3, S, queries * 5)
    np.testing.assert_array_equal(y.numpy(), ops.merge_heads(expected).numpy())
    np.testing.assert_array_equal(keys.numpy(), k2.numpy())
    np.testing.assert_array_equal(values.numpy(), v2.numpy())


def test_bias_and_part_of_a_batch(device, rng):
    wide = drupe.tensor(rng.standard_normal((2, 3, 24), dtype=np.float32))
    bias = rng.standard_normal((1, 2, 3, 3)).astype(np.float32)
    caches = [drupe.zeros((2, 2, 3, 2)) for _ in range(4)]
    y = ops.cached_attention(wide[..., ::2], *caches[:2], 0, bias=bias, query_lengths=np.array([1, 3]))
    expected = ops.cached_attention(drupe.tensor(wide.numpy()[..., ::2]), *caches[2:], 0, bias=bias)
    np.testing.assert_array_equal(y.numpy()[1], expected.numpy()[1])
    assert not y.numpy()[0, 1:].any()


def test_a_recorded_cache_is_not_overlooked(rng):
    keys, values = (drupe.tensor(rng.standard_normal((1, 1, 4, 2)), requires_grad=True) for _ in range(2))
    y = keys * values
    x = drupe.zeros((1, 1, 6), "float64")
    with pytest.raises(RuntimeError, match=r"\[cached_attention\] an input requires a gradient"):
        ops.cached_attention(x, keys, values, 0)
    with drupe.no_grad():
        ops.cached_attention(x, keys, values, 0)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(np.ones(y.shape))


@pytest.mark.parametrize(
    ("x", "keys", "values", "starts", "message"),
    [
        ((2, 3, 24), (2, 2, 4, 4), (2, 2, 4, 4), 2, r"rows 2 to 5 of a cache whose capacity is 4"),
        ((2, 1, 24), (2, 2, 4, 4), (2, 2, 4, 4), -1, r"rows -1 to 0 of a cache"),
        ((2, 1, 24), (2, 2, 4, 4), (2, 2, 4, 4), [0, 4], r"rows 0 to 5 of a cache"),
        ((1, 1, 24), (1, 2, 4, 4), (1, 2, 4, 4), 2**63 - 1, r"rows 9223372036854775807 to"),
        ((2, 1, 24), (2, 2, 4, 4), (2, 2, 4, 4), [0, 1, 2], r"3 starts for a batch of 2"),
        ((2, 1, 25), (2, 2, 4, 4), (2, 2, 4, 4), 0, r"x is \(2, 1, 25\): its width is not that of queries and of 2"),
        ((2, 1, 16), (2, 2, 4, 4), (2, 2, 4, 4), 0, r"x is \(2, 1, 16\): its width"),
        ((3, 1, 24), (2, 2, 4, 4), (2, 2, 4, 4), 0, r"x is \(3, 1, 24\), keys \(2, 2, 4, 4\): expected \(2, S, width"),
        ((2, 24), (2, 2, 4, 4), (2, 2, 4, 4), 0, r"x is \(2, 24\)"),
        ((2, 1, 24), (2, 4, 4), (2, 4, 4), 0, r"keys is \(2, 4, 4\): expected \(B, H, capacity, D\)"),
        ((2, 1, 24), (2, 2, 4, 4), (2, 2, 5, 4), 0, r"keys is \(2, 2, 4, 4\), values \(2, 2, 5, 4\): expected one"),
    ],
)
def test_errors(x, keys, values, starts, message):
    with pytest.raises(ValueError, match=rf"\[cached_attention\] {message}"):
        ops.cached_attention(drupe.zeros(x), drupe.zeros(keys), drupe.zeros(values), starts)


def test_causal_needs_one_start():
    x, cache = drupe.zeros((2, 3, 24)), drupe.zeros((2, 2, 8, 4))
    with pytest.raises(ValueError, match=r"\[cached_attention\] causal, 3 tokens, and starts are \[0, 2\]"):
        ops.cached_attention(x, cache, cache, [0, 2], causal=True)


def test_a_late_error_still_counts_as_a_change():
    cache = drupe.zeros((1, 1, 4, 2))
    before = cache.version
    with pytest.raises(ValueError, match="scale"):
        ops.cached_attention(drupe.zeros((1, 1, 6)), cache, drupe.zeros((1, 1, 4, 2)), 0, scale=float("nan"))
    assert cache.version > before


def test_errors_of_dtypes():
    with pytest.raises(TypeError, match=r"\[cached_attention\] x is float32, keys float64, values float32: expected"):
        ops.cached_attention(drupe.zeros((1, 1, 6)), drupe.zeros((1, 1, 2, 2), "float64"), drupe.zeros((1, 1, 2, 2)), 0)
