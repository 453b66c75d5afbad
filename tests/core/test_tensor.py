"""Shapes, views, and the memory shared with NumPy."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices

import drupe
from drupe import _C
from interpreter import python

DTYPES = [
    *("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"),
    pytest.param(ml_dtypes.bfloat16, id="bfloat16"),
]


# ---- making one


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (3, 0, 2), (1, 2, 1, 2, 1, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_properties(shape, dtype):
    array = np.ones(shape, dtype)
    t = drupe.tensor(array)
    assert (t.shape, t.ndim, t.size, t.nbytes, t.dtype) == (shape, array.ndim, array.size, array.nbytes, array.dtype)
    assert t.device == "cpu"
    assert t.strides == tuple(s // array.itemsize for s in np.ones(tuple(max(n, 1) for n in shape), dtype).strides)
    assert t.raw.data_ptr % 64 == 0
    np.testing.assert_array_equal(t.numpy(), array)
    assert np.asarray(t).dtype == array.dtype


def test_of_python_numbers():
    assert drupe.tensor(3).dtype == np.int64
    assert drupe.tensor(3.0).dtype == np.float32
    assert drupe.tensor([[True], [False]]).dtype == np.bool_
    assert drupe.tensor([1, 2.5]).tolist() == [1, 2.5]
    assert drupe.tensor([], "int32").shape == (0,)
    assert drupe.tensor(np.float64(1)).dtype == np.float64
    assert drupe.tensor([1.5, -1.5], "int8").tolist() == [1, -1]
    assert drupe.tensor(2.5).item() == 2.5
    assert float(drupe.tensor([2.5])) == 2.5
    assert int(drupe.tensor(7)) == 7
    assert bool(drupe.tensor(0.0)) is False


@pytest.mark.parametrize(
    ("x", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (1j, TypeError),
        ([2**63], TypeError),
        (np.datetime64("2020-01-01"), TypeError),
        (np.ones(2, [("a", "f4"), ("b", "f4")]), TypeError),
        (np.array([object()]), TypeError),
        (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError),
        ([[1, 2], [3]], ValueError),
    ],
    ids=["text", "None", "complex", "2**63", "date", "record", "object", "masked", "ragged"],
)
def test_what_is_no_tensor(x, error):
    with pytest.raises(error):
        drupe.tensor(x)


@pytest.mark.parametrize("make", [drupe.empty, drupe.zeros])
@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((-1,), "float32", r"shape is \(-1,\): extents must not be negative"),
        ((0, -1), "float32", "negative"),
        ((2**40, 2**40), "int8", r"shape is \(1099511627776, 1099511627776\): too many elements"),
        ((2**62,), "float32", "more bytes than 63 bits can count"),
        ((2**32, 2**31), "int8", "too many elements"),
        ((2**63,), "int8", "does not fit in 64 bits"),
        ((-(2**64),), "int8", "does not fit in 64 bits"),
        ((1,) * 9, "int8", "more than 8 dimensions"),
    ],
)
def test_shapes_that_cannot_be(make, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        make(shape, dtype)


def test_no_elements_in_huge_shapes():
    assert drupe.empty((2**40, 0, 2**20)).size == 0
    with pytest.raises(ValueError, match="too many"):
        drupe.empty((2**40, 0, 2**40))


@pytest.mark.parametrize("shape", [3, "ab", (1.5,), None, ("3",)])
def test_what_is_no_shape(shape):
    with pytest.raises(TypeError):
        drupe.empty(shape)


def test_unknown_dtypes_and_devices():
    with pytest.raises(TypeError, match=r"complex64 is not supported: expected one of float32"):
        drupe.empty((1,), "complex64")
    with pytest.raises(TypeError):
        drupe.empty((1,), "float31")
    with pytest.raises(ValueError, match=r'"tpu": expected "cpu", "cuda" or "cuda:<index>"'):
        drupe.empty((1,), device="tpu")


@pytest.mark.parametrize("power", [50, 55, 61])
def test_out_of_memory_is_an_exception(power):
    before = drupe.memory_stats()["in_use_bytes"]
    with pytest.raises(MemoryError):
        drupe.empty((2**power,), "int8")
    assert drupe.memory_stats()["in_use_bytes"] == before
    a = np.ones((64, 64), np.float32)
    np.testing.assert_array_equal(drupe.ops.gemm(a, a), a @ a)


def test_out_of_memory_under_a_limit_gives_the_cache_back_first():
    out = python("""
import resource, numpy as np, drupe
drupe.set_num_threads(1)
x = [drupe.empty((2**20,), "int8") for _ in range(64)]
del x
assert drupe.memory_stats()["cached_bytes"] >= 2**26
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.getrlimit(resource.RLIMIT_AS)[1]))
y = drupe.zeros((2**25 + 2**24,), "int8")   # fits only where the 64 blocks were
assert drupe.memory_stats()["cached_bytes"] < 2**26
try:
    drupe.empty((2**30,), "int8")
except MemoryError:
    print("MemoryError", drupe.ops.relu(np.ones(3)).sum())
""")
    assert out == "MemoryError 3.0\n"


def test_numbers_out_of_shapes():
    for bad in (drupe.tensor([1, 2]), drupe.empty((0,))):
        with pytest.raises(ValueError, match=r"\[item\].*not one"):
            bad.item()
    with pytest.raises(TypeError, match="no length"):
        len(drupe.tensor(1))
    assert len(drupe.empty((4, 0))) == 4


def test_repr():
    assert repr(drupe.tensor([1.0, 2.0])) == "Tensor([1., 2.], dtype=float32)"
    assert repr(drupe.tensor(1.0, requires_grad=True)) == "Tensor(1., dtype=float32, requires_grad=True)"
    assert "from=relu" in repr(drupe.ops.relu(drupe.tensor([1.0], requires_grad=True)))
    assert len(repr(drupe.zeros((1000, 1000)))) < 1000
    assert repr(drupe.tensor([1, 2], "bfloat16")) == "Tensor([1, 2], dtype=bfloat16)"


# ---- NumPy: no copies


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_shared_both_ways(dtype):
    array = np.zeros((3, 4), dtype)
    t = drupe.as_tensor(array)
    out = t.numpy()
    assert np.shares_memory(array, out)
    array[1, 2] = 1
    assert out[1, 2] == 1
    out[0, 0] = 1
    assert array[0, 0] == 1
    assert out.dtype == array.dtype


def test_tensor_copies():
    array = np.zeros(3)
    t = drupe.tensor(array)
    array[0] = 1
    assert t.tolist() == [0, 0, 0]
    u = drupe.tensor(t)
    t.numpy()[1] = 5
    assert u.tolist() == [0, 0, 0]


def test_the_source_lives_as_long_as_its_tensors():
    class Array(np.ndarray):
        pass

    source = np.arange(1000.0).view(Array)
    alive = weakref.ref(source)
    t = drupe.as_tensor(source)
    view = drupe.Tensor(t.raw.slice(0, 10, 20, 1))
    del source, t
    gc.collect()
    assert alive() is not None
    assert view.tolist() == list(range(10, 20))
    del view
    gc.collect()
    assert alive() is None


def test_the_tensor_lives_as_long_as_its_arrays():
    before = drupe.memory_stats()["in_use_bytes"]
    t = drupe.tensor(np.arange(1000.0))
    array = t.numpy()[5:10]
    del t
    gc.collect()
    assert drupe.memory_stats()["in_use_bytes"] > before
    np.testing.assert_array_equal(array, [5, 6, 7, 8, 9])
    del array
    gc.collect()
    assert drupe.memory_stats()["in_use_bytes"] == before


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::-1, ::-2],
        lambda x: x.T,
        lambda x: x[1:3, 2],
        lambda x: x[:, None, ::3],
        lambda x: np.broadcast_to(x, (2, *x.shape)),
        lambda x: np.lib.stride_tricks.sliding_window_view(x, 3, 1),
        lambda x: x[2:2],
        lambda x: x[3, 3, ...],
    ],
)
def test_strided_arrays_are_shared(view):
    array = np.arange(20.0).reshape(4, 5)
    v = view(array)
    t = drupe.as_tensor(v)
    assert t.shape == v.shape
    if v.size:
        assert np.shares_memory(t.numpy(), array)
        assert t.strides == tuple(s // 8 for s in v.strides)
    np.testing.assert_array_equal(t.numpy(), v)
    np.testing.assert_array_equal(drupe.tensor(v).numpy(), v)


def test_the_stride_of_one_element_does_not_count():
    array = np.arange(6.0)
    odd = np.lib.stride_tricks.as_strided(array, (1, 3), (3, 16))
    t = drupe.as_tensor(odd)
    assert np.shares_memory(t.numpy(), array)
    np.testing.assert_array_equal(t.numpy(), [[0, 2, 4]])


def misaligned(array):
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


@pytest.mark.parametrize(
    "view",
    [
        misaligned,
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        lambda x: np.rec.fromarrays([x, x.astype(np.int8)], names="a,b").a,
        lambda x: misaligned(x)[::-1, ::2],
    ],
    ids=["misaligned", "big-endian", "structured", "misaligned and strided"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "float16"])
def test_what_only_numpy_can_express_is_copied(view, dtype):
    array = view(np.arange(20).reshape(4, 5).astype(dtype))
    t = drupe.as_tensor(array)
    assert t.dtype == np.dtype(dtype)
    assert not np.shares_memory(t.numpy(), array)
    np.testing.assert_array_equal(t.numpy(), array)
    np.testing.assert_array_equal(drupe.tensor(array).numpy(), array)


@pytest.mark.parametrize("take", [drupe.tensor, drupe.as_tensor, drupe.from_dlpack])
def test_bytes_that_are_no_bool_are_true(take):
    numbers = np.array([[0, 1, 2, 255], [0, 0, 4, 1]], np.uint8)
    for view in (lambda x: x, lambda x: x.T, lambda x: x[:, ::2], lambda x: x[0, 2:3].reshape(())):
        t = take(view(numbers.view(bool)))
        np.testing.assert_array_equal(t.numpy().view(np.uint8), view(numbers) != 0)
        np.testing.assert_array_equal(drupe.tensor(t, "float32").numpy(), view(numbers) != 0)
    proper = numbers[:, :2].view(bool)
    assert np.shares_memory(take(np.broadcast_to(proper[:, 1:], (2, 1000))).numpy(), proper) or take is drupe.tensor
    assert drupe.as_tensor(np.broadcast_to(proper[:, 1:], (2, 2**40))).shape == (2, 2**40)


def test_read_only_arrays_stay_read_only():
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    t = drupe.as_tensor(array)
    assert np.shares_memory(t.numpy(), array)
    for out in (t.numpy(), np.asarray(t), drupe.Tensor(t.raw.transpose(0, 1)).numpy()):
        assert not out.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        t.copy_from(np.ones((2, 3)))
    assert drupe.tensor(array).numpy().flags.writeable
    np.testing.assert_array_equal(drupe.ops.relu(array), array)


def test_more_elements_than_memory_holds():
    huge = np.broadcast_to(np.float32(1), (2**40, 2**20))
    t = drupe.as_tensor(huge)
    assert (t.shape, t.size, t.nbytes) == (huge.shape, 2**60, 2**62)
    assert np.shares_memory(t.numpy(), huge)
    for use in (drupe.tensor, drupe.ops.relu, lambda x: drupe.as_tensor(x, "float16")):
        with pytest.raises(MemoryError):
            use(huge)
    with pytest.raises(ValueError, match="more bytes than 63 bits can count"):
        drupe.as_tensor(np.broadcast_to(np.float32(1), (2**40, 2**21 - 1)), "float64")


def test_nine_dimensions_are_an_error():
    with pytest.raises(ValueError, match="9 dimensions: at most 8"):
        drupe.as_tensor(np.ones((1,) * 9))


def test_array_protocol():
    array = np.arange(6.0)
    t = drupe.as_tensor(array)
    assert np.asarray(t, np.float32).dtype == np.float32
    assert np.shares_memory(np.array(t, copy=False), array)
    assert not np.shares_memory(np.array(t), array)
    with pytest.raises(ValueError, match="needs a copy"):
        t.__array__(np.dtype(np.int8), copy=False)

    class Interface:
        __array_interface__ = array.__array_interface__

    assert drupe.as_tensor(Interface()).tolist() == array.tolist()


def test_tensors_that_require_a_gradient_say_so():
    t = drupe.tensor([1.0], requires_grad=True)
    for export in (t.numpy, t.__dlpack__, lambda: np.asarray(t)):
        with pytest.raises((RuntimeError, BufferError), match="requires a gradient"):
            export()
    assert t.detach().numpy() == [1]
    with pytest.raises(TypeError, match="only float tensors can require a gradient"):
        drupe.tensor([1], requires_grad=True)


# ---- copy and pickle


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_are_independent(dtype, duplicate):
    t = drupe.Tensor(drupe.tensor(np.arange(6).reshape(2, 3).astype(dtype)).raw.transpose(0, 1))
    u = duplicate(t)
    assert u.dtype == t.dtype
    np.testing.assert_array_equal(u.numpy(), t.numpy())
    assert not np.shares_memory(u.numpy(), t.numpy())
    u.numpy()[...] = 0
    assert t.numpy()[2, 1] != 0


def test_a_shallow_copy_shares():
    t = drupe.tensor([1.0, 2.0])
    assert copy.copy(t).raw.data_ptr == t.raw.data_ptr


def test_copies_of_what_requires_a_gradient():
    x = drupe.tensor([1.0, 2.0], requires_grad=True)
    y = drupe.ops.tanh(x)
    y.backward(np.ones(2, np.float32))
    twin = copy.deepcopy(x)
    assert twin.requires_grad
    assert twin.grad is None
    with pytest.raises(TypeError, match="result of tanh on the tape has a history"):
        copy.deepcopy(y)
    assert copy.deepcopy(y.detach()).shape == (2,)


# ---- writing


def test_copy_from():
    t = drupe.zeros((2, 3))
    assert t.copy_from(np.arange(6).reshape(3, 2).T) is t
    np.testing.assert_array_equal(t.numpy(), [[0, 2, 4], [1, 3, 5]])
    with pytest.raises(ValueError, match=r"the source is \(3,\): expected \(2, 3\)"):
        t.copy_from(np.ones(3))
    with pytest.raises(TypeError, match="expected an array"):
        t.copy_from(3)


@pytest.mark.parametrize("shift", [-3, -1, 1, 3])
@pytest.mark.parametrize("size", [5, 100_003])
def test_copy_from_itself(shift, size):
    array = np.arange(float(size))
    t = drupe.as_tensor(array)
    target, source = (array[:-shift], array[shift:]) if shift > 0 else (array[-shift:], array[:shift])
    expected = source.copy()
    drupe.as_tensor(target).copy_from(source)
    np.testing.assert_array_equal(target, expected)
    expected = array[::-1].copy()
    t.copy_from(drupe.Tensor(t.raw.slice(0, size - 1, -1, -1)))
    np.testing.assert_array_equal(array, expected)


# ---- views, against NumPy


@st.composite
def view_chains(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        rank, extents = array.ndim, array.shape
        kinds = ["unsqueeze", "reshape"] if rank < 7 else []
        kinds += ["permute", "broadcast"] + (["slice", "select", "transpose"] if rank else [])
        kinds += ["squeeze"] if 1 in extents else []
        kind = draw(st.sampled_from(kinds))
        if kind == "permute":
            order = draw(st.permutations(range(rank)))
            step, array = ("permute", (order,)), array.transpose(order)
        elif kind == "transpose":
            a, b = draw(st.integers(-rank, rank - 1)), draw(st.integers(-rank, rank - 1))
            step, array = ("transpose", (a, b)), array.swapaxes(a, b)
        elif kind == "slice":
            dim = draw(st.integers(-rank, rank - 1))
            cut = draw(st.slices(extents[dim]))
            start, stop, step = cut.indices(extents[dim])
            step = ("slice", (dim, start, stop, max(-(2**63), min(step, 2**63 - 1))))
            array = np.moveaxis(np.moveaxis(array, dim, 0)[cut], 0, dim)
        elif kind == "select":
            choices = [d for d in range(rank) if extents[d]]
            if not choices:
                continue
            dim = draw(st.sampled_from(choices))
            index = draw(st.integers(-extents[dim], extents[dim] - 1))
            step, array = ("select", (dim, index)), np.moveaxis(array, dim, 0)[index]
        elif kind == "unsqueeze":
            dim = draw(st.integers(-rank - 1, rank))
            step, array = ("unsqueeze", (dim,)), np.expand_dims(array, dim)
        elif kind == "squeeze":
            dim = draw(st.sampled_from([d for d in range(rank) if extents[d] == 1]))
            step, array = ("squeeze", (dim,)), np.squeeze(array, dim)
        elif kind == "broadcast":
            new = [draw(st.integers(0, 3)) if n == 1 else n for n in extents]
            new = draw(st.lists(st.integers(0, 2), max_size=min(2, 8 - rank))) + new
            step, array = ("broadcast_to", (new,)), np.broadcast_to(array, new)
        else:
            new = draw(reshapes(array.size))
            step, array = ("reshape", (new,)), array.reshape(new)
        steps.append(step)
    return shape, steps, array


@st.composite
def reshapes(draw, size):
    if size == 0:
        new = draw(st.permutations([0, *draw(st.lists(st.integers(0, 3), max_size=3))]))
        return list(new)
    new, rest = [], size
    for _ in range(draw(st.integers(0, 4))):
        factor = draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        new.append(factor)
        rest //= factor
    return draw(st.permutations([*new, -1 if draw(st.booleans()) else rest]))


@given(view_chains())
@settings(max_examples=400, deadline=None)
def test_chains_of_views(chain):
    shape, steps, expected = chain
    raw = drupe.tensor(np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)).raw
    for kind, arguments in steps:
        raw = _C.reshape(raw, *arguments) if kind == "reshape" else getattr(raw, kind)(*arguments)
    t = drupe.Tensor(raw)
    assert t.shape == expected.shape
    np.testing.assert_array_equal(t.numpy(), expected)
    assert raw.is_contiguous() == t.numpy().flags.c_contiguous
    dense = _C.contiguous(raw)
    assert dense.is_contiguous()
    np.testing.assert_array_equal(drupe.Tensor(dense).numpy(), expected)
    halves = _C.cast(raw, "float16")
    np.testing.assert_array_equal(drupe.Tensor(halves).numpy(), expected)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_indexing_is_numpy_s(data):
    shape = data.draw(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    index = data.draw(basic_indices(shape, allow_newaxis=True, max_dims=4))
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    expected = array[index]
    t = drupe.as_tensor(array)[index]
    assert t.shape == np.shape(expected)
    np.testing.assert_array_equal(t.numpy(), expected)


def test_indices_beyond_64_bits():
    t = drupe.tensor([1.0, 2.0, 3.0])
    for far in (2**63, -(2**63) - 1, 2**70, 3, -4):
        with pytest.raises(IndexError, match=rf"index {far} is out of range for dimension 0 of shape \(3,\)"):
            t[far]
    assert t[:: 2**63].tolist() == [1]
    assert t[:: -(2**70)].tolist() == [3]
    assert t[-(2**70) : 2**70].tolist() == [1, 2, 3]


def test_reshape_copies_only_where_it_must():
    raw = drupe.tensor(np.arange(24.0).reshape(2, 3, 4)).raw
    assert _C.reshape(raw, (6, -1)).data_ptr == raw.data_ptr
    assert _C.reshape(raw.transpose(0, 1), (3, 2, 2, 2)).data_ptr == raw.data_ptr
    assert _C.reshape(raw.transpose(0, 1), (6, 4)).data_ptr != raw.data_ptr
    assert _C.reshape(raw.slice(2, 0, 4, 2), (3, 2, 2)).data_ptr == raw.data_ptr


TOO_FAR = [
    ("permute", ([0, 0, 1],), ValueError, "axis 0 is named twice"),
    ("permute", ([0, 1],), ValueError, r"axes are \(0, 1\) for a tensor of shape \(2, 3, 4\)"),
    ("permute", ([0, 1, 3],), IndexError, "dimension 3 is out of range for 3 dimensions"),
    ("transpose", (0, -4), IndexError, "dimension -4 is out of range"),
    ("select", (0, 2), IndexError, "index 2 is out of range for dimension 0"),
    ("select", (0, -(2**63)), IndexError, "out of range"),
    ("slice", (0, 0, 3, 1), ValueError, "leaves dimension 0"),
    ("slice", (0, -1, 2, 1), ValueError, "leaves dimension 0"),
    ("slice", (0, 0, 2, 0), ValueError, "step is 0"),
    ("slice", (0, -(2**63), 2**63 - 1, 1), ValueError, "leaves dimension 0"),
    ("slice", (0, 2**63 - 1, -(2**63), -(2**63)), ValueError, "leaves dimension 0"),
    ("squeeze", (0,), ValueError, "dimension 0 of shape .* is not 1"),
    ("unsqueeze", (4,), IndexError, "dimension 4 is out of range for 4"),
    ("broadcast_to", ((3, 4),), ValueError, "has more dimensions"),
    ("broadcast_to", ((2, 3, 5),), ValueError, "does not broadcast"),
    ("broadcast_to", ((-1, 2, 3, 4),), ValueError, "negative"),
    ("broadcast_to", ((2**61, 2, 3, 4),), ValueError, "too many elements"),
    ("broadcast_to", ((2**59, 2, 3, 4),), ValueError, "too many"),
    ("reshape", ((5, 5),), ValueError, r"cannot view shape \(2, 3, 4\) \(24 elements\) as \(5, 5\)"),
    ("reshape", ((-1, -1),), ValueError, "more than one extent is -1"),
    ("reshape", ((-1, 5),), ValueError, "cannot view"),
    ("reshape", ((-1, 0),), ValueError, "cannot view"),
    ("reshape", ((-2, 12),), ValueError, "negative"),
    ("reshape", ((2**40, 2**40),), ValueError, "too many"),
]


@pytest.mark.parametrize(("kind", "arguments", "error", "message"), TOO_FAR)
def test_views_that_do_not_exist(kind, arguments, error, message):
    raw = drupe.tensor(np.arange(24.0).reshape(2, 3, 4)).raw
    with pytest.raises(error, match=message):
        _C.reshape(raw, *arguments) if kind == "reshape" else getattr(raw, kind)(*arguments)


def test_slices_of_one_with_huge_steps():
    raw = drupe.tensor(np.arange(3.0)).raw
    for step in (2**62, -(2**62), -(2**63), 2**63 - 1):
        cut = slice(None, None, step)
        assert drupe.Tensor(raw.slice(0, *cut.indices(3), *())).tolist() == list(range(3))[cut]
