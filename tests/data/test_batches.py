from __future__ import annotations

import numpy as np
import pytest

from drupe.data import batches, split
from drupe.tensor import Tensor


def test_every_row_comes_once_per_epoch_and_epochs_differ():
    x = np.arange(50, dtype=np.float32).reshape(25, 2)
    y = np.arange(25)
    data = batches(x, y, batch_size=4, shuffle=True, seed=3)
    assert len(data) == 7
    orders = []
    for _ in range(2):
        seen = []
        for inputs, target in data:
            assert isinstance(inputs, Tensor)
            np.testing.assert_array_equal(inputs.numpy(), x[target.numpy()])
            seen += target.tolist()
        assert sorted(seen) == list(range(25))
        orders.append(seen)
    assert orders[0] != orders[1] != list(range(25))
    again = batches(x, y, batch_size=4, shuffle=True, seed=3)
    assert [t for _, y in again for t in y.tolist()] == orders[0]


def test_without_shuffling_batches_share_the_memory():
    x = np.zeros((10, 3), np.float32)
    first = next(iter(batches(x, batch_size=4)))
    assert np.shares_memory(first.numpy(), x)


def test_the_last_batch_may_be_dropped():
    sizes = [len(b) for b in batches(np.zeros(10), batch_size=4, drop_last=True)]
    assert sizes == [4, 4]
    assert [len(b) for b in batches(np.zeros(10), batch_size=4)] == [4, 4, 2]


@pytest.mark.parametrize("kind", [tuple, dict])
def test_structures_are_kept(kind):
    a, b = np.arange(6.0), np.arange(12).reshape(6, 2)
    x = (a, b) if kind is tuple else {"a": a, "b": b}
    part = next(iter(batches(x, batch_size=4)))
    assert type(part) is kind
    values = list(part.values()) if kind is dict else part
    np.testing.assert_array_equal(values[0].numpy(), a[:4])
    np.testing.assert_array_equal(values[1].numpy(), b[:4])


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (np.zeros(3), np.zeros(4), {}, ValueError, r"lengths differ: x \(3,\), y \(4,\)"),
        (np.zeros((0, 2)), None, {}, ValueError, r"the data is empty: x has shape \(0, 2\)"),
        (np.zeros(3), None, {"batch_size": 0}, ValueError, "batch_size is 0"),
        (np.float32(3), None, {}, ValueError, "x is a scalar"),
        (np.array(["a", "b"]), None, {}, TypeError, "expected numbers, got an array of <U1"),
        ({}, None, {}, ValueError, "no arrays"),
    ],
)
def test_errors(x, y, options, error, message):
    with pytest.raises(error, match=message):
        batches(x, y, **options)


def test_split_keeps_groups_together():
    groups = [i // 3 for i in range(90)]
    train, held = split(90, fraction=0.2, seed=1, groups=groups)
    assert len(train) + len(held) == 90
    assert {groups[i] for i in train}.isdisjoint({groups[i] for i in held})
    assert len(held) == 18
    np.testing.assert_array_equal(held, split(90, fraction=0.2, seed=1, groups=groups)[1])
    assert not np.array_equal(held, split(90, fraction=0.2, seed=2, groups=groups)[1])


def test_split_leaves_neither_part_empty():
    for fraction in (0.01, 0.99):
        train, held = split(3, fraction=fraction)
        assert len(train)
        assert len(held)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (10, {"fraction": 0}, "fraction is 0"),
        (10, {"fraction": float("nan")}, "fraction is nan"),
        (1, {}, "cannot divide 1 group"),
        (4, {"groups": [1, 1, 1, 1]}, "cannot divide 1 group"),
        (4, {"groups": [1, 2]}, "2 groups for 4 rows"),
    ],
)
def test_split_errors(rows, options, message):
    with pytest.raises(ValueError, match=message):
        split(rows, **options)
