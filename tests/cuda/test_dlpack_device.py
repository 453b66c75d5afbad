"""DLPack and the CUDA array interface for tensors on a device."""

from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import pytest

import drupe
from drupe import ops

pytestmark = pytest.mark.skipif(not drupe.cuda_status()["available"], reason=drupe.cuda_status()["reason"])

DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]
VIEWS = [
    lambda raw: raw,
    lambda raw: raw.transpose(0, 1),
    lambda raw: raw.slice(1, 1, 5, 3),
    lambda raw: raw.slice(0, 3, -1, -1),
    lambda raw: raw.select(0, 2),
    lambda raw: raw.slice(0, 0, 1, 1).broadcast_to((3, 5)),
]


def on_device(values, dtype=None):
    return drupe.tensor(values, dtype).to("cuda")


@pytest.fixture
def t():
    return on_device(np.arange(20.0, dtype=np.float32).reshape(4, 5))


class Producer:
    """Passes a tensor's capsules on, and remembers what it was asked for."""

    def __init__(self, tensor):
        self.tensor, self.asked = tensor, []

    def __dlpack__(self, **options):
        self.asked.append(options)
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class OldProducer(Producer):
    """From before DLPack 1.0."""

    def __dlpack__(self, stream=None):
        self.asked.append({"stream": stream})
        return self.tensor.__dlpack__(stream=stream)


class OnlyInterface:
    """An array that speaks the CUDA array interface and nothing else."""

    def __init__(self, tensor, **changes):
        self.tensor, self.changes = tensor, changes

    @property
    def __cuda_array_interface__(self):
        return {**self.tensor.__cuda_array_interface__, **self.changes}


def in_use():
    gc.collect()
    return drupe.memory_stats("cuda")["in_use_bytes"]


# ---- DLPack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)], ids=str)
def test_there_and_back(dtype, shape):
    t = on_device(np.ones(shape), dtype)
    u = drupe.from_dlpack(t)
    assert u.device == "cuda:0"
    assert (u.shape, u.dtype) == (shape, t.dtype)
    assert u.raw.data_ptr == t.raw.data_ptr
    np.testing.assert_array_equal(u.numpy(), t.numpy())


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
def test_strides_pass(t, view):
    seen = drupe.Tensor(view(t.raw))
    u = drupe.from_dlpack(seen)
    assert u.strides == seen.strides
    np.testing.assert_array_equal(u.numpy(), drupe.Tensor(view(t.to("cpu").raw)).numpy())


def test_device_of_the_capsule(t):
    assert t.__dlpack_device__() == (2, 0)
    t.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="names another device"):
        t.__dlpack__(dl_device=(2, 1))
    with pytest.raises((BufferError, RuntimeError, ValueError)):
        np.from_dlpack(t)


def test_a_consumer_may_ask_for_the_host(t):
    for options in ({}, {"copy": True}):
        u = drupe.from_dlpack(t.__dlpack__(max_version=(1, 0), dl_device=(1, 0), **options))
        assert u.device == "cpu"
        np.testing.assert_array_equal(u.numpy(), t.numpy())
    with pytest.raises(BufferError, match="copy=False forbids"):
        t.__dlpack__(dl_device=(1, 0), copy=False)


def test_copy(t):
    copied = drupe.from_dlpack(t.__dlpack__(copy=True))
    assert copied.device == "cuda:0"
    assert copied.raw.data_ptr != t.raw.data_ptr
    np.testing.assert_array_equal(copied.numpy(), t.numpy())


def test_memory_lives_as_long_as_anyone_holds_it():
    before = in_use()
    u = drupe.from_dlpack(on_device(np.arange(1000.0)))
    assert in_use() > before
    assert u.tolist()[-1] == 999
    del u
    assert in_use() == before
    capsule = on_device(np.arange(1000.0)).__dlpack__()
    assert in_use() > before
    del capsule
    assert in_use() == before


@pytest.mark.parametrize("stream", [None, -1, 1, 2])
def test_streams(t, stream):
    u = drupe.from_dlpack(t.__dlpack__(stream=stream, max_version=(1, 0)))
    assert u.raw.data_ptr == t.raw.data_ptr


@pytest.mark.skipif(not drupe.cuda_status()["emulated"], reason="no stream has this address")
def test_the_address_of_a_stream(t):
    t.__dlpack__(stream=0x7F0012345670)


@pytest.mark.parametrize("stream", [0, -2])
def test_streams_that_are_none(t, stream):
    with pytest.raises(ValueError, match=rf"\[__dlpack__\] stream is {stream}: expected None, 1, 2 or the address"):
        t.__dlpack__(stream=stream)
    with pytest.raises(TypeError):
        t.__dlpack__(stream="1")


def test_a_producer_is_told_our_stream(t):
    producer = Producer(t)
    np.testing.assert_array_equal(drupe.from_dlpack(producer).numpy(), t.numpy())
    assert producer.asked == [{"max_version": (1, 0), "stream": 1}]
    old = OldProducer(t)
    np.testing.assert_array_equal(drupe.from_dlpack(old).numpy(), t.numpy())
    assert old.asked == [{"stream": 1}]
    host = Producer(t.to("cpu"))
    drupe.from_dlpack(host)
    assert host.asked == [{"max_version": (1, 0)}]


def test_ops_take_producers_where_they_lie(t):
    y = ops.square(Producer(t))
    assert y.device == "cuda:0"
    np.testing.assert_array_equal(y.numpy(), t.numpy() ** 2)


def test_a_library_gets_its_array_back_where_it_was():
    class Host(Producer):
        def __array_namespace__(self):
            return Host

        @staticmethod
        def from_dlpack(x):
            return Host(drupe.from_dlpack(x))

    with drupe.default_device("cuda"):
        y = ops.square(Host(drupe.tensor(np.arange(3.0)).to("cpu")))
    assert isinstance(y, Host)
    assert y.tensor.device == "cpu"
    assert y.tensor.tolist() == [0, 1, 4]


def test_what_cannot_be_given(t):
    with pytest.raises(BufferError, match="requires a gradient"):
        drupe.Tensor(t.raw, requires_grad=True).__dlpack__()


# ---- __cuda_array_interface__


def test_interface_of_a_tensor(t):
    view = drupe.Tensor(t.raw.transpose(0, 1))
    assert view.__cuda_array_interface__ == {
        "shape": (5, 4),
        "typestr": "<f4",
        "strides": (4, 20),
        "data": (t.raw.data_ptr, False),
        "stream": 1,
        "version": 3,
    }
    assert on_device(np.ones((0, 2))).__cuda_array_interface__["data"] == (0, False)
    assert not hasattr(t.to("cpu"), "__cuda_array_interface__")
    assert not hasattr(on_device([1.0], ml_dtypes.bfloat16), "__cuda_array_interface__")
    with pytest.raises(RuntimeError, match="requires a gradient"):
        _ = drupe.Tensor(t.raw, requires_grad=True).__cuda_array_interface__


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bfloat16"])
def test_every_dtype_comes_in(dtype):
    t = on_device(np.ones((2, 3)), dtype)
    u = drupe.as_tensor(OnlyInterface(t))
    assert (u.device, u.dtype, u.raw.data_ptr) == ("cuda:0", t.dtype, t.raw.data_ptr)
    np.testing.assert_array_equal(u.numpy(), t.numpy())


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
def test_strides_come_in(t, view):
    seen = drupe.Tensor(view(t.raw))
    np.testing.assert_array_equal(drupe.as_tensor(OnlyInterface(seen)).numpy(), seen.numpy())


def test_what_may_be_left_out(t):
    u = drupe.as_tensor(OnlyInterface(t, strides=None, stream=None, version=2))
    np.testing.assert_array_equal(u.numpy(), t.numpy())
    assert drupe.as_tensor(OnlyInterface(on_device(np.ones((0, 3))))).shape == (0, 3)


def test_read_only_stays_so(t):
    u = drupe.as_tensor(OnlyInterface(t, data=(t.raw.data_ptr, True)))
    with pytest.raises(ValueError, match="read-only"):
        u.copy_from(np.zeros((4, 5), np.float32))


def test_the_object_lives_as_long_as_the_tensor():
    before = in_use()
    u = drupe.as_tensor(OnlyInterface(on_device(np.arange(1000.0))))
    assert in_use() > before
    assert u.tolist()[-1] == 999
    del u
    assert in_use() == before


def test_ops_take_interfaces(t):
    np.testing.assert_array_equal(ops.square(OnlyInterface(t)).numpy(), t.numpy() ** 2)
    np.testing.assert_array_equal(drupe.tensor(OnlyInterface(t)).numpy(), t.numpy())


HOST = np.zeros(20, np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask": HOST}, TypeError, "lose its mask"),
        ({"typestr": ">f4"}, TypeError, "the other byte order"),
        ({"typestr": "<c8"}, TypeError, "complex64 is not supported"),
        ({"strides": (20, 2)}, ValueError, r"strides are \(20, 2\), not of whole float32 elements"),
        ({"strides": (4,)}, ValueError, r"shape is \(4, 5\), strides are \(1,\)"),
        ({"shape": (-1, 5)}, ValueError, "must not be negative"),
        ({"stream": 0}, ValueError, "stream is 0"),
        ({"data": (HOST.ctypes.data, False)}, ValueError, "not in a device's memory"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_interfaces_that_drupe_refuses(t, changes, error, message):
    with pytest.raises(error, match=message):
        drupe.as_tensor(OnlyInterface(t, **changes))


def test_data_that_is_not_aligned(t):
    with pytest.raises(ValueError, match="not aligned to its elements of 4 bytes"):
        drupe.as_tensor(OnlyInterface(t, data=(t.raw.data_ptr + 2, False), shape=(2,), strides=None))
