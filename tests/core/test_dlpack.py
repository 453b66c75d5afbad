"""DLPack: round trips, and every capsule that should not be taken."""

from __future__ import annotations

import ctypes
import gc

import ml_dtypes
import numpy as np
import pytest

import drupe
from interpreter import python

CPU, CUDA, CUDA_HOST = 1, 2, 3
INT, UINT, FLOAT, COMPLEX, BFLOAT, BOOL = 0, 1, 2, 5, 4, 6
READ_ONLY, COPIED = 1, 2


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype = ctypes.c_char_p
capsule_name.argtypes = (ctypes.py_object,)


class Producer:
    """A capsule made by hand: six float32 numbers as (2, 3), unless told otherwise."""

    def __init__(self, versioned=True, major=1, minor=0, flags=0, name=None, with_deleter=True, **fields):
        self.memory = np.arange(6, dtype=np.float32)
        self.deleted = 0

        def delete(_):
            self.deleted += 1

        self.deleter = DELETER(delete) if with_deleter else DELETER()
        values = {
            "data": self.memory.ctypes.data,
            "device_type": CPU,
            "device_id": 0,
            "ndim": 2,
            "code": FLOAT,
            "bits": 32,
            "lanes": 1,
            "shape": (2, 3),
            "strides": None,
            "byte_offset": 0,
            **fields,
        }
        for key in ("shape", "strides"):
            if values[key] is not None:
                values[key] = (ctypes.c_int64 * max(1, len(values[key])))(*values[key])
        tensor = DLTensor(**values)
        if versioned:
            self.managed = Versioned(major, minor, None, self.deleter, flags, tensor)
            self.name = b"dltensor_versioned"
        else:
            self.managed = Managed(tensor, None, self.deleter)
            self.name = b"dltensor"
        self.name = name or self.name
        self.capsule = new_capsule(ctypes.addressof(self.managed), self.name, None)

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return CPU, 0


VALUES = [[0, 1, 2], [3, 4, 5]]


# ---- round trips


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4), (1,) * 8], ids=str)
def test_numpy_and_back(dtype, shape):
    array = np.ones(shape, dtype)
    t = drupe.from_dlpack(array)
    assert t.shape == shape
    assert t.dtype == array.dtype
    back = np.from_dlpack(t)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    if array.size:
        assert np.shares_memory(back, array)


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::-1, ::2], lambda x: np.broadcast_to(x[0], (3, 5))])
def test_strides_pass(view):
    array = view(np.arange(20.0).reshape(4, 5))
    t = drupe.from_dlpack(array)
    np.testing.assert_array_equal(t.numpy(), array)
    np.testing.assert_array_equal(np.from_dlpack(t), array)


def test_bfloat16_between_tensors():
    t = drupe.tensor([1.5, 2.5], "bfloat16")
    u = drupe.from_dlpack(t)
    assert u.dtype == ml_dtypes.bfloat16
    assert u.raw.data_ptr == t.raw.data_ptr


def test_the_memory_lives_as_long_as_anyone_holds_it():
    before = drupe.memory_stats()["in_use_bytes"]
    t = drupe.tensor(np.arange(1000.0))
    array = np.from_dlpack(t)
    del t
    gc.collect()
    assert drupe.memory_stats()["in_use_bytes"] > before
    np.testing.assert_array_equal(array, np.arange(1000.0))
    del array
    gc.collect()
    assert drupe.memory_stats()["in_use_bytes"] == before


def test_a_capsule_that_nobody_takes_frees_its_tensor():
    before = drupe.memory_stats()["in_use_bytes"]
    for version in (None, (1, 0)):
        capsule = drupe.zeros((1000,)).__dlpack__(max_version=version)
        assert drupe.memory_stats()["in_use_bytes"] > before
        del capsule
        gc.collect()
        assert drupe.memory_stats()["in_use_bytes"] == before


def test_device():
    assert drupe.zeros((1,)).__dlpack_device__() == (CPU, 0)


# ---- what we give


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (None, b"dltensor"),
        ((0, 8), b"dltensor"),
        ((1, 0), b"dltensor_versioned"),
        ((1, 3), b"dltensor_versioned"),
        ((2, 0), b"dltensor_versioned"),
    ],
)
def test_version_of_the_capsule(version, name):
    capsule = drupe.zeros((1,)).__dlpack__(max_version=version)
    assert capsule_name(capsule) == name
    if name == b"dltensor_versioned":
        managed = Versioned.from_address(capsule_pointer(capsule, name))
        assert managed.major == 1


def flags(tensor, **options):
    capsule = tensor.__dlpack__(max_version=(1, 0), **options)
    return Versioned.from_address(capsule_pointer(capsule, b"dltensor_versioned")).flags


def test_read_only_tensors():
    array = np.ones(3)
    array.flags.writeable = False
    t = drupe.as_tensor(array)
    assert flags(t) == READ_ONLY
    for version in (None, (0, 8)):
        with pytest.raises(BufferError, match="read-only, which only DLPack 1"):
            t.__dlpack__(max_version=version)
    assert flags(t, copy=True) == COPIED
    t.__dlpack__(copy=True)
    assert not drupe.from_dlpack(t).numpy().flags.writeable


def test_copy():
    t = drupe.tensor([1.0, 2.0])
    assert flags(t) == flags(t, copy=False) == 0
    assert flags(t, copy=True) == COPIED
    copied = drupe.from_dlpack(t.__dlpack__(max_version=(1, 0), copy=True))
    assert copied.raw.data_ptr != t.raw.data_ptr
    assert copied.tolist() == [1, 2]
    assert drupe.from_dlpack(t.__dlpack__(copy=False)).raw.data_ptr == t.raw.data_ptr


def test_a_copy_of_a_view_is_dense():
    t = drupe.Tensor(drupe.tensor(np.arange(12.0).reshape(3, 4)).raw.transpose(0, 1).slice(0, 0, 4, 2))
    copied = drupe.from_dlpack(t.__dlpack__(copy=True))
    assert copied.raw.is_contiguous()
    np.testing.assert_array_equal(copied.numpy(), t.numpy())


def test_requests_that_cannot_be_met():
    t = drupe.zeros((2,))
    with pytest.raises(ValueError, match="stream must be None"):
        t.__dlpack__(stream=1)
    for device in ((CUDA, 0), (CPU, 1)):
        with pytest.raises(BufferError, match="another device"):
            t.__dlpack__(dl_device=device)
    t.__dlpack__(dl_device=(CPU, 0))
    for bad in ({"max_version": 1}, {"max_version": ()}, {"max_version": ("a", 0)}, {"dl_device": 1}):
        with pytest.raises(TypeError):
            t.__dlpack__(**bad)
    with pytest.raises(BufferError, match="requires a gradient"):
        drupe.zeros((2,), requires_grad=True).__dlpack__()


# ---- what we take


@pytest.mark.parametrize("versioned", [True, False])
def test_a_good_capsule_is_deleted_once(versioned):
    producer = Producer(versioned)
    t = drupe.from_dlpack(producer)
    assert capsule_name(producer.capsule) == b"used_" + producer.name
    np.testing.assert_array_equal(t.numpy(), VALUES)
    assert t.raw.data_ptr == producer.memory.ctypes.data
    view, array = drupe.Tensor(t.raw.select(0, 1)), t.numpy()
    del t
    gc.collect()
    assert producer.deleted == 0
    assert view.tolist() == [3, 4, 5]
    del view
    gc.collect()
    assert producer.deleted == 0
    del array
    gc.collect()
    assert producer.deleted == 1
    del producer.capsule
    assert producer.deleted == 1


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_without_deleter(versioned):
    producer = Producer(versioned, with_deleter=False)
    t = drupe.from_dlpack(producer)
    np.testing.assert_array_equal(t.numpy(), VALUES)
    del t


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_is_taken_once(versioned):
    producer = Producer(versioned)
    t = drupe.from_dlpack(producer)
    for again in (producer, producer.capsule):
        with pytest.raises(ValueError, match="consumed already"):
            drupe.from_dlpack(again)
    np.testing.assert_array_equal(t.numpy(), VALUES)
    del t
    gc.collect()
    assert producer.deleted == 1


def test_a_capsule_that_another_library_took():
    capsule = np.arange(3.0).__dlpack__()

    class Wrapper:
        def __dlpack__(self, **_):
            return capsule

        def __dlpack_device__(self):
            return CPU, 0

    assert np.from_dlpack(Wrapper()).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="consumed already"):
        drupe.from_dlpack(capsule)


def test_flags_and_strides_and_offset():
    read_only = drupe.from_dlpack(Producer(flags=READ_ONLY))
    assert not read_only.numpy().flags.writeable
    assert drupe.from_dlpack(Producer(flags=0)).numpy().flags.writeable
    assert drupe.from_dlpack(Producer(minor=7)).tolist() == VALUES
    assert drupe.from_dlpack(Producer(strides=(1, 2))).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert drupe.from_dlpack(Producer(strides=(0, 1))).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert drupe.from_dlpack(Producer(shape=(2,), ndim=1, byte_offset=16)).tolist() == [4, 5]
    assert drupe.from_dlpack(Producer(shape=(2,), ndim=1, byte_offset=20, strides=(-2,))).tolist() == [5, 3]
    assert drupe.from_dlpack(Producer(device_type=CUDA_HOST)).tolist() == VALUES
    assert drupe.from_dlpack(Producer(ndim=0, shape=None)).item() == 0
    assert drupe.from_dlpack(Producer(shape=(0, 3), data=None)).shape == (0, 3)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"ndim": -1}, ValueError, "has -1 dimensions: expected 0 to 8"),
        ({"ndim": 9, "shape": (1,) * 9}, ValueError, "has 9 dimensions"),
        ({"ndim": 65, "shape": (1,) * 65}, ValueError, "has 65 dimensions"),
        ({"ndim": 2**31 - 1}, ValueError, "dimensions: expected 0 to 8"),
        ({"shape": None}, ValueError, "has no shape"),
        ({"data": None}, ValueError, r"of shape \(2, 3\) has no data"),
        ({"shape": (-2, 3)}, ValueError, "must not be negative"),
        ({"shape": (2**62, 4)}, ValueError, "too many elements"),
        ({"shape": (2**61, 1)}, ValueError, "too many bytes"),
        ({"strides": (2**62, 1)}, ValueError, "strides"),
        ({"strides": (-(2**63), 1)}, ValueError, "strides"),
        ({"byte_offset": 2}, ValueError, "aligned"),
        ({"byte_offset": 2**64 - 2}, ValueError, "aligned"),
        ({"lanes": 4}, TypeError, r"dtype \(code 2, 32 bits, 4 lanes\) is not one of drupe's"),
        ({"lanes": 0}, TypeError, "0 lanes"),
        ({"code": COMPLEX, "bits": 64}, TypeError, "code 5, 64 bits"),
        ({"code": UINT, "bits": 16}, TypeError, "code 1, 16 bits"),
        ({"code": INT, "bits": 4}, TypeError, "code 0, 4 bits"),
        ({"code": FLOAT, "bits": 0}, TypeError, "0 bits"),
        ({"code": BFLOAT, "bits": 32}, TypeError, "code 4"),
        ({"code": BOOL, "bits": 1}, TypeError, "code 6"),
        ({"code": 99}, TypeError, "code 99"),
        ({"device_type": CUDA, "device_id": 99}, ValueError, r"device 2:99: drupe's are the CPU and \d+ CUDA device"),
        ({"device_type": CUDA, "device_id": -1}, ValueError, r"device 2:-1: drupe's are the CPU"),
        ({"device_type": 0}, ValueError, "device 0:0"),
        ({"device_type": -5}, ValueError, "device -5:0"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_capsules_that_drupe_refuses(versioned, fields, error, message):
    producer = Producer(versioned, **fields)
    with pytest.raises(error, match=message):
        drupe.from_dlpack(producer)
    gc.collect()
    assert producer.deleted == 0  # it was never ours
    assert capsule_name(producer.capsule) == producer.name
    np.testing.assert_array_equal(drupe.from_dlpack(Producer(versioned)).numpy(), VALUES)


@pytest.mark.parametrize("major", [0, 2, 2**32 - 1])
def test_other_major_versions(major):
    producer = Producer(major=major)
    with pytest.raises(BufferError, match=rf"DLPack version {major}\.0: expected 1\.x"):
        drupe.from_dlpack(producer)
    assert producer.deleted == 0


def test_what_is_no_capsule():
    class Wrong:
        def __init__(self, value):
            self.value = value

        def __dlpack__(self, **_):
            return self.value

        def __dlpack_device__(self):
            return CPU, 0

    other = new_capsule(1, b"something else", None)
    for bad in (Wrong(3), Wrong(None), Wrong(other), other, 3, None, "dltensor", [1.0]):
        with pytest.raises(TypeError, match="expected an object with __dlpack__ or a DLPack capsule"):
            drupe.from_dlpack(bad)


def test_errors_of_the_producer_pass():
    class Broken:
        def __dlpack__(self, **_):
            raise RuntimeError("the producer is broken")

        def __dlpack_device__(self):
            return CPU, 0

    with pytest.raises(RuntimeError, match="the producer is broken"):
        drupe.from_dlpack(Broken())
    with pytest.raises(RuntimeError, match="the producer is broken"):
        drupe.ops.relu(Broken())


def test_producers_that_know_no_versions():
    class Old:
        def __init__(self):
            self.array = np.arange(3.0)

        def __dlpack__(self, stream=None):
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return CPU, 0

    assert drupe.from_dlpack(Old()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "uint32", "uint64", "int16"])
def test_numpy_dtypes_that_drupe_has_not(dtype):
    with pytest.raises(TypeError, match="is not one of drupe's"):
        drupe.from_dlpack(np.ones(3, dtype))


def test_ops_take_producers():
    producer = Producer()
    y = drupe.ops.relu(producer)
    assert isinstance(y, drupe.Tensor)
    np.testing.assert_array_equal(y.numpy(), VALUES)
    del y
    gc.collect()
    assert producer.deleted == 1


def test_a_tensor_that_outlives_the_interpreter():
    assert (
        python("""
import numpy as np, drupe
keep = drupe.from_dlpack(np.arange(3.0)), drupe.as_tensor(np.arange(3.0)), np.from_dlpack(drupe.zeros((3,)))
class Holder:
    pass
Holder.cycle = Holder, keep
capsule = drupe.zeros((3,)).__dlpack__()
print("done")
""")
        == "done\n"
    )
