"""Streams, events, and page-locked memory: what is ordered, what has happened, and what may come late."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import drupe
from drupe import _C, cuda, ops

STATUS = drupe.cuda_status()
pytestmark = pytest.mark.skipif(not STATUS["available"], reason=STATUS["reason"])
emulated = pytest.mark.skipif(not STATUS["emulated"], reason="a GPU's copies are too fast to be seen late")


def on_device(array):
    return drupe.tensor(array).to("cuda")


# ---- streams


def test_a_stream_is_current_in_its_block():
    default, stream, other = cuda.current_stream(), cuda.Stream(), cuda.Stream("cuda:0")
    assert default.handle == 0
    assert default.device == stream.device == "cuda:0"
    assert len({default, stream, other}) == 3
    with stream:
        assert cuda.current_stream() == stream
        assert _C.current_stream("cuda") == stream.handle
        with other, stream:
            assert cuda.current_stream("cuda:0") == stream
        assert cuda.current_stream() == stream
    assert cuda.current_stream() == default
    assert _C.current_stream("cuda") == 1
    with pytest.raises(KeyError), stream:
        raise KeyError
    assert cuda.current_stream() == default


def test_each_thread_has_its_own_current_stream():
    stream, seen = cuda.Stream(), []
    with stream:
        thread = threading.Thread(target=lambda: seen.append(cuda.current_stream().handle))
        thread.start()
        thread.join()
    assert seen == [0]


def test_work_on_streams(rng):
    array = rng.standard_normal(1000)
    x = on_device(array)
    first, second = cuda.Stream(), cuda.Stream()
    first.wait(cuda.current_stream())
    with first:
        y = ops.square(x)
        done = cuda.Event()
        done.record()
    second.wait(done)
    with second:
        z = ops.add(y, 1.0)
    cuda.current_stream().wait(second)
    np.testing.assert_array_equal(ops.mul(z, 2.0).numpy(), (array**2 + 1) * 2)
    first.synchronize()
    with second:
        np.testing.assert_array_equal(z.numpy(), array**2 + 1)


def test_memory_stays_with_its_stream():
    stream = cuda.Stream()
    with stream:
        t = drupe.empty((5000,), device="cuda")
    block = t.raw.data_ptr
    del t
    elsewhere = drupe.empty((5000,), device="cuda")
    assert elsewhere.raw.data_ptr != block
    with stream:
        assert drupe.empty((5000,), device="cuda").raw.data_ptr == block


def test_memory_that_another_stream_uses_waits_for_it():
    stream = cuda.Stream()
    t = drupe.zeros((7000,), device="cuda")
    block = t.raw.data_ptr
    t.record_stream(stream)
    in_use = cuda.memory_stats("cuda")["in_use_bytes"]
    del t
    assert cuda.memory_stats("cuda")["in_use_bytes"] < in_use
    stream.synchronize()
    assert drupe.empty((7000,), device="cuda").raw.data_ptr == block
    drupe.tensor([1.0]).record_stream(stream)  # the host's: nothing to do
    t = drupe.zeros((9000,), device="cuda")
    t.record_stream(stream)
    del t
    cuda.empty_cache()
    assert cuda.memory_stats("cuda")["cached_bytes"] == 0


def test_a_stream_outlives_its_object():
    t = cuda.Stream()
    with t:
        x = drupe.zeros((10,), device="cuda")
    del t
    gc.collect()
    again = cuda.Stream()
    with again:
        x = ops.add(x, 1.0)
    again.synchronize()
    assert x.tolist() == [1] * 10


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_streams_are_of_a_device(name):
    with pytest.raises(ValueError, match=r'expected .*"cuda"'):
        cuda.Stream(name)
    with pytest.raises(RuntimeError, match="there is no cuda:9"):
        cuda.Stream("cuda:9")


# ---- events


def test_events_time_what_lies_between_them():
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    x = drupe.zeros((1000,), device="cuda")
    start.record()
    ops.square(x)
    end.record()
    end.synchronize()
    assert start.query()
    assert end.query()
    assert 0 <= start.elapsed(end) < 60_000
    start.record(cuda.Stream())
    start.synchronize()


def test_events_that_cannot_tell_the_time():
    timed, silent, never = cuda.Event(enable_timing=True), cuda.Event(), cuda.Event(enable_timing=True)
    timed.record()
    silent.record()
    cuda.synchronize()
    with pytest.raises(RuntimeError, match="without enable_timing"):
        timed.elapsed(silent)
    with pytest.raises(RuntimeError, match="not been recorded"):
        timed.elapsed(never)
    assert never.query()
    never.synchronize()
    cuda.Stream().wait(never)


# ---- page-locked memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3, 5), (0, 2), (4000,)], ids=str)
def test_pin(rng, dtype, shape):
    host = drupe.tensor(rng.integers(0, 2, shape), dtype)
    pinned = cuda.pin(host)
    assert pinned.is_pinned
    assert not host.is_pinned
    assert cuda.pin(pinned) is pinned
    assert (pinned.device, pinned.shape, pinned.dtype) == ("cpu", host.shape, host.dtype)
    np.testing.assert_array_equal(pinned.numpy(), host.numpy())
    there = pinned.to("cuda", non_blocking=True)
    back = there.to("cpu", non_blocking=True)
    assert back.is_pinned
    assert not there.is_pinned
    cuda.synchronize()
    np.testing.assert_array_equal(back.numpy(), host.numpy())


def test_pin_keeps_the_memory_order(rng):
    array = rng.standard_normal((3, 4)).T
    pinned = cuda.pin(array)
    assert pinned.strides == (1, 4)
    np.testing.assert_array_equal(pinned.numpy(), array)
    np.testing.assert_array_equal(cuda.pin(array[::2]).numpy(), array[::2])


def test_what_lies_on_a_device_cannot_be_pinned():
    with pytest.raises(ValueError, match=r"\[pin\] the tensor lies on cuda:0"):
        cuda.pin(drupe.zeros((2,), device="cuda"))


def test_pinned_blocks_are_used_again():
    gc.collect()
    cuda.empty_cache()
    before = cuda.memory_stats("cuda")["pinned_bytes"]
    held = cuda.pin(np.zeros(3000))
    assert cuda.memory_stats("cuda")["pinned_bytes"] >= before + 24_000
    held.numpy()[...] = 1  # shares it
    assert held.tolist()[0] == 1
    block = held.raw.data_ptr
    del held
    assert cuda.pin(np.zeros(3000)).raw.data_ptr == block
    cuda.empty_cache()
    assert cuda.memory_stats("cuda")["pinned_bytes"] == before


def test_a_pinned_block_waits_for_its_copies(rng):
    arrays = rng.standard_normal((20, 500))
    stream = cuda.Stream()
    with stream:
        there = [cuda.pin(array).to("cuda", non_blocking=True) for array in arrays]
    stream.synchronize()
    for t, array in zip(there, arrays, strict=True):
        np.testing.assert_array_equal(t.numpy(), array)


def test_other_memory_has_been_read_on_return(rng):
    array = rng.standard_normal(100)
    expected = array.copy()
    t = drupe.as_tensor(array).to("cuda", non_blocking=True)
    array[...] = 0
    np.testing.assert_array_equal(t.numpy(), expected)
    x = drupe.zeros((100,), "float64", device="cuda")
    x.copy_from(expected, non_blocking=True)
    np.testing.assert_array_equal(x.numpy(), expected)


def test_copy_from_pinned_memory(rng):
    array = rng.standard_normal((5, 4))
    x = drupe.zeros((5, 4), "float64", device="cuda")
    x.copy_from(cuda.pin(array), non_blocking=True)
    np.testing.assert_array_equal(x.numpy(), array)
    host = drupe.zeros((5, 4), "float64")
    host.copy_from(x, non_blocking=True)  # the host's memory has it on return
    np.testing.assert_array_equal(host.numpy(), array)


@emulated
def test_a_copy_to_the_host_may_come_late():
    x = drupe.full((100,), 3.0, device="cuda")
    late = x.to("cpu", non_blocking=True)
    assert np.isnan(late.numpy()).all()
    done = cuda.Event()
    done.record()
    done.synchronize()
    assert late.tolist() == [3] * 100


@emulated
def test_a_copy_from_the_host_may_read_late():
    pinned = cuda.pin(np.zeros(100))
    t = pinned.to("cuda", non_blocking=True)
    pinned.numpy()[...] = 7  # too early
    cuda.synchronize()
    assert t.tolist() == [7] * 100
