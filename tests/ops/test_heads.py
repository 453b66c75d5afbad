from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients


def cut(x, heads, parts):
    B, S, width = x.shape
    return x.reshape((B, S, parts, heads, width // (parts * heads))).transpose(2, 0, 3, 1, 4)


@pytest.mark.parametrize(("shape", "heads", "parts"), [((2, 5, 24), 4, 3), ((1, 3, 7), 7, 1), ((0, 2, 12), 2, 2)])
def test_split_heads_are_views(device, rng, shape, heads, parts):
    x = drupe.tensor(rng.standard_normal(shape, dtype=np.float32))
    found = ops.split_heads(x, heads, parts)
    assert len(found) == parts
    for actual, expected in zip(found, cut(x.numpy(), heads, parts), strict=True):
        assert actual.raw.owner == x.raw.owner
        np.testing.assert_array_equal(actual.numpy(), expected)


def test_split_heads_of_a_part(device, rng):
    x = drupe.tensor(rng.standard_normal((3, 4, 12), dtype=np.float32))
    for part in (x[:, 1:3], x[:, :, ::-1], x.permute(1, 0, 2)):
        for actual, expected in zip(ops.split_heads(part, 2, 3), cut(part.numpy(), 2, 3), strict=True):
            np.testing.assert_array_equal(actual.numpy(), expected)


@pytest.mark.parametrize("used", [(0, 1, 2), (1,)])
def test_gradients_of_split_heads(device, rng, used):
    def function(x):
        parts = ops.split_heads(x, 2, 3)
        return ops.concat([parts[i] * (i + 1) for i in used])

    check_gradients(function, rng.standard_normal((2, 3, 12)), rng=rng)


def test_merge_heads(device, rng):
    x = drupe.tensor(rng.standard_normal((2, 3, 5, 4), dtype=np.float32))
    y = ops.merge_heads(x)
    np.testing.assert_array_equal(y.numpy(), x.numpy().transpose(0, 2, 1, 3).reshape(2, 5, 12))
    np.testing.assert_array_equal(ops.split_heads(y, 3)[0].numpy(), x.numpy())
    attended = ops.attention(x, x, x)
    assert ops.merge_heads(attended).raw.owner == attended.raw.owner
    with pytest.raises(ValueError, match=r"\[merge_heads\] x is \(2, 3, 5\)"):
        ops.merge_heads(x[..., 0])


def test_gradients_of_merge_heads(device, rng):
    check_gradients(ops.merge_heads, rng.standard_normal((2, 3, 2, 3)), rng=rng)


@pytest.mark.parametrize(("shape", "heads", "parts"), [((3, 12), 2, 3), ((1, 3, 12), 5, 1), ((1, 3, 12), 0, 1)])
def test_errors_of_split_heads(shape, heads, parts):
    with pytest.raises(ValueError, match=r"\[split_heads\] x is "):
        ops.split_heads(np.zeros(shape, np.float32), heads, parts)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("starts", [0, 2, [2, 0, 4]])
def test_append_rows(device, rng, name, starts):
    cache = drupe.tensor(rng.standard_normal((3, 2, 7, 5)), name)
    rows = drupe.tensor(rng.standard_normal((3, 3, 2, 5)), name).permute(0, 2, 1, 3)  # (B, H, S, D)
    expected = cache.numpy().copy()
    each = [starts] * 3 if isinstance(starts, int) else starts
    for b, start in enumerate(each):
        expected[b, :, start : start + 3] = rows.numpy()[b]
    y = ops.append_rows(cache, rows, starts)
    assert y.raw.owner == cache.raw.owner
    assert y.shape == (3, 2, max(each) + 3, 5)
    np.testing.assert_array_equal(cache.numpy(), expected)
    np.testing.assert_array_equal(y.numpy(), expected[:, :, : max(each) + 3])


def test_append_rows_to_a_cache_that_was_recorded(rng):
    cache = drupe.tensor(rng.standard_normal((1, 1, 4, 2)), requires_grad=True)
    y = cache * cache
    ops.append_rows(cache, drupe.zeros((1, 1, 1, 2), "float64"), 0)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(np.ones(y.shape))


@pytest.mark.parametrize(
    ("rows", "starts", "message"),
    [
        ((2, 2, 3, 4), 2, r"rows 2 to 5 of a cache whose capacity is 4"),
        ((2, 2, 1, 4), -1, r"rows -1 to 0"),
        ((2, 2, 1, 4), [0, 4], r"rows 0 to 5"),
        ((2, 2, 1, 4), [0], r"1 starts for a batch of 2"),
        ((2, 2, 1, 5), 0, r"rows is \(2, 2, 1, 5\), cache \(2, 2, 4, 4\)"),
        ((2, 2, 4), 0, r"rows is \(2, 2, 4\)"),
    ],
)
def test_errors_of_append_rows(rows, starts, message):
    with pytest.raises(ValueError, match=message):
        ops.append_rows(drupe.zeros((2, 2, 4, 4)), drupe.zeros(rows), starts)
