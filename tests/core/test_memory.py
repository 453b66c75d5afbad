"""The caching pool under every tensor."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest

import drupe
from drupe import _C


@pytest.fixture(autouse=True)
def clean_pool():
    gc.collect()
    drupe.empty_cache()


def stats():
    return drupe.memory_stats()


@pytest.mark.parametrize("count", [1, 64, 65, 1000, 4096, 2**20, 3 * 2**20 + 1, 2**22])
def test_blocks_are_aligned_and_counted(count):
    before = stats()["in_use_bytes"]
    tensors = [drupe.empty((count,), "uint8") for _ in range(3)]
    for t in tensors:
        assert t.raw.data_ptr % 64 == 0
        assert count < 2**21 or t.raw.data_ptr % 2**21 == 0
        t.numpy()[...] = 255
    used = stats()["in_use_bytes"] - before
    assert 3 * count <= used <= 3 * max(64, count * 1.25 + 64)
    assert len({t.raw.data_ptr for t in tensors}) == 3
    del t, tensors
    assert stats()["in_use_bytes"] == before


def test_a_freed_block_is_used_again():
    t = drupe.empty((1000,))
    block = t.raw.data_ptr
    del t
    assert stats()["cached_bytes"] >= 4000
    t = drupe.empty((999,))
    assert t.raw.data_ptr == block
    other = drupe.empty((999,))
    assert other.raw.data_ptr != block


def test_zeros_are_zero_in_used_memory():
    t = drupe.empty((5000,), "uint8")
    t.numpy()[...] = 7
    block = t.raw.data_ptr
    del t
    t = drupe.zeros((5000,), "uint8")
    assert t.raw.data_ptr == block
    assert not t.numpy().any()


def test_empty_cache_gives_everything_back():
    del drupe.empty((2**20,)).raw
    kept = drupe.tensor([1.0, 2.0])
    assert stats()["cached_bytes"] >= 2**22
    drupe.empty_cache()
    assert stats()["cached_bytes"] == 0
    assert kept.tolist() == [1, 2]
    drupe.empty_cache()


def test_blocks_that_share_huge_pages():
    tensors = [drupe.empty((2**20,), "uint8") for _ in range(20)]
    for i, t in enumerate(tensors):
        t.numpy()[...] = i
    places = sorted(t.raw.data_ptr for t in tensors)
    assert all(b - a >= 2**20 for a, b in pairwise(places))
    assert sum(b - a == 2**20 for a, b in pairwise(places)) >= 15
    kept = tensors[3::7]
    del t, tensors
    drupe.empty_cache()
    assert stats()["cached_bytes"] == 0
    assert [int(t.numpy().max()) for t in kept] == [3, 10, 17]
    more = [drupe.zeros((2**20,), "uint8") for _ in range(30)]
    assert not any(t.numpy().any() for t in more)
    assert [int(t.numpy().min()) for t in kept] == [3, 10, 17]
    assert len({t.raw.data_ptr for t in (*kept, *more)}) == 33


def test_peak():
    _C.reset_peak_memory()
    start = stats()
    assert start["peak_bytes"] == start["in_use_bytes"]
    t = drupe.empty((2**18,))
    del t
    assert stats()["peak_bytes"] >= start["in_use_bytes"] + 2**20
    _C.reset_peak_memory()
    assert stats()["peak_bytes"] == stats()["in_use_bytes"]


def test_views_hold_the_block():
    before = stats()["in_use_bytes"]
    t = drupe.tensor(np.arange(10_000.0))
    row = drupe.Tensor(t.raw.slice(0, 5, 6, 1))
    del t
    assert stats()["in_use_bytes"] >= before + 80_000
    assert row.tolist() == [5]
    del row
    assert stats()["in_use_bytes"] == before


def test_shared_numpy_memory_is_not_counted():
    array = np.zeros(100_000)
    before = stats()["in_use_bytes"]
    t = drupe.as_tensor(array)
    assert stats()["in_use_bytes"] == before
    del t


def test_ops_leave_nothing_behind():
    a = np.ones((300, 300), np.float32)
    drupe.ops.gemm(a, a)
    before = stats()["in_use_bytes"]
    for _ in range(3):
        drupe.ops.gemm(a, a)
        with pytest.raises(ValueError, match="gemm"):
            drupe.ops.gemm(a, a[:5])
    gc.collect()
    assert stats()["in_use_bytes"] == before
