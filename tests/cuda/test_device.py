"""Tensors on a device: how they get there, what may not be mixed, and what happens when its memory is full."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import drupe
from drupe import ops
from interpreter import python

STATUS = drupe.cuda_status()
pytestmark = pytest.mark.skipif(not STATUS["available"], reason=STATUS["reason"])
emulated = pytest.mark.skipif(not STATUS["emulated"], reason="sets the size of the emulated device's memory")


# ---- there and back


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]
)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2), (4000,)], ids=str)
def test_to_and_back(rng, dtype, shape):
    host = drupe.tensor(rng.integers(0, 2, shape), dtype)
    t = host.to("cuda")
    assert t.device == "cuda:0"
    assert (t.shape, t.dtype) == (host.shape, host.dtype)
    back = t.to("cpu")
    assert back.device == "cpu"
    np.testing.assert_array_equal(back.numpy(), host.numpy())
    np.testing.assert_array_equal(t.numpy(), host.numpy())


def test_to_where_it_is():
    host = drupe.tensor([1.0])
    assert host.to("cpu") is host
    t = host.to("cuda")
    assert t.to("cuda") is t
    assert t.to("cuda:0") is t
    assert drupe.tensor([1.0], requires_grad=True).to("cuda").requires_grad


def test_dense_tensors_keep_their_memory_order(rng):
    array = rng.standard_normal((2, 3, 4, 5))
    last = drupe.as_tensor(array.transpose(0, 3, 1, 2))
    t = last.to("cuda")
    assert t.strides == last.strides
    np.testing.assert_array_equal(t.numpy(), last.numpy())
    for view in (array[:, ::2], array[::-1], np.broadcast_to(array[0, 0, 0], (3, 5))):
        t = drupe.as_tensor(view).to("cuda")
        assert t.raw.is_contiguous()
        np.testing.assert_array_equal(t.numpy(), view)


def test_python_numbers_and_text():
    t = drupe.tensor([1.5, -2.0]).to("cuda")
    assert t.tolist() == [1.5, -2]
    assert float(drupe.tensor(3.5).to("cuda")) == 3.5
    assert "1.5" in repr(t)


# ---- the default device


def test_default_device():
    before = drupe.zeros((1,)).device
    with drupe.default_device("cuda"):
        assert drupe.zeros((1,)).device == drupe.tensor([1.0]).device == drupe.empty((2,)).device == "cuda:0"
        assert drupe.empty((2,), device="cpu").device == "cpu"
        y = ops.square(np.arange(3.0))
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, [0, 1, 4])
        with drupe.default_device("cpu"):
            assert drupe.zeros((1,)).device == "cpu"
        assert drupe.zeros((1,)).device == "cuda:0"
    assert drupe.zeros((1,)).device == before
    with pytest.raises(KeyError), drupe.default_device("cuda"):
        raise KeyError
    assert drupe.zeros((1,)).device == before


def test_tensors_stay_where_they_are():
    host = drupe.tensor(np.arange(3.0))
    with drupe.default_device("cuda"):
        assert ops.square(host).device == "cpu"
    assert ops.square(host.to("cuda")).device == "cuda:0"


@pytest.mark.parametrize("name", ["cuda:7", "cuda:99"])
def test_a_device_that_is_not_there(name):
    message = rf"there is no {name}: the machine has \d+ device"
    before = drupe.zeros((1,)).device
    for ask in (
        lambda: drupe.empty((1,), device=name),
        lambda: drupe.tensor([1.0]).to(name),
        lambda: drupe.set_default_device(name),
        lambda: drupe.memory_stats(name),
    ):
        with pytest.raises(RuntimeError, match=message):
            ask()
    assert drupe.zeros((1,)).device == before


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1234", "cpu:0"])
def test_names_of_no_device(name):
    with pytest.raises(ValueError, match=r'expected "cpu", "cuda" or "cuda:<index>"'):
        drupe.tensor([1.0]).to(name)


def test_mixing_devices_names_both(rng):
    x, weight = rng.standard_normal((2, 4, 3)), np.ones(4)
    both = r"tensors lie on cuda:0 and on cpu: move them to one device"
    t = drupe.tensor(x).to("cuda")
    with pytest.raises(ValueError, match=rf"\[group_norm\] {both}"):
        ops.group_norm(t, drupe.tensor(weight), groups=2)
    with pytest.raises(ValueError, match=rf"\[batch_norm\] {both}"):
        ops.batch_norm(t, None, None, drupe.tensor(weight), drupe.tensor(weight), training=True)
    with pytest.raises(ValueError, match=r"lie on cpu and on cuda:0"):
        ops.batch_norm(drupe.tensor(x), drupe.tensor(weight).to("cuda"), training=True)
    # An array of the host that is no tensor follows the tensors beside it.
    assert ops.group_norm(t, weight, groups=2).device == "cuda:0"


def test_running_statistics_on_the_device(rng):
    x = rng.standard_normal((6, 4))
    mean, var = drupe.tensor(np.zeros(4)).to("cuda"), drupe.tensor(np.ones(4)).to("cuda")
    ops.batch_norm(drupe.tensor(x).to("cuda"), None, None, mean, var, training=True, momentum=1)
    np.testing.assert_allclose(mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), x.var(0, ddof=1), rtol=1e-12)


# ---- memory


def test_memory_stats():
    gc.collect()
    drupe.empty_cache()
    before = drupe.memory_stats("cuda")
    assert before["cached_bytes"] == 0
    host = drupe.memory_stats()["in_use_bytes"]
    t = drupe.empty((1000,), device="cuda")
    block = t.raw.data_ptr
    assert drupe.memory_stats("cuda:0")["in_use_bytes"] - before["in_use_bytes"] >= 4000
    assert drupe.memory_stats()["in_use_bytes"] == host
    del t
    after = drupe.memory_stats("cuda")
    assert after["in_use_bytes"] == before["in_use_bytes"]
    assert after["cached_bytes"] >= 4000
    assert drupe.empty((999,), device="cuda").raw.data_ptr == block
    drupe.empty_cache()
    assert drupe.memory_stats("cuda")["cached_bytes"] == 0


def test_ops_leave_nothing_behind(rng):
    x = drupe.tensor(rng.standard_normal((4, 8, 5, 5))).to("cuda")
    gc.collect()
    before = drupe.memory_stats("cuda")["in_use_bytes"]
    for _ in range(2):
        ops.batch_norm(ops.max_pool2d(x, 2), training=True)
        ops.group_norm(ops.avg_pool2d(x, 2), groups=2)
        with pytest.raises(ValueError, match="group_norm"):
            ops.group_norm(x, groups=3)
    assert drupe.memory_stats("cuda")["in_use_bytes"] == before


@emulated
def test_out_of_memory_says_what_was_asked_and_held():
    output = python(
        """
import numpy as np, drupe
held = drupe.empty((100_000,), "uint8", device="cuda")
before = drupe.memory_stats("cuda")
for attempt in range(2):
    try:
        drupe.empty((2_000_000,), "uint8", device="cuda")
    except MemoryError as error:
        print(error)
assert drupe.memory_stats("cuda") == before
x = drupe.tensor(np.arange(10.0)).to("cuda")
print(drupe.ops.square(x).tolist()[-1])
""",
        DRUPE_EMU_MEMORY_BYTES=str(2**20),
    )
    message = r"[cuda] out of memory on cuda:0: asked for 2000000 bytes while tensors hold 114688 of 1048576"
    assert output.splitlines() == [message, message, "81.0"]


@emulated
def test_what_the_pool_keeps_makes_room():
    output = python(
        """
import drupe
t = drupe.empty((600_000,), "uint8", device="cuda")
del t
assert drupe.memory_stats("cuda")["cached_bytes"] >= 600_000
t = drupe.empty((700_000,), "uint8", device="cuda")
print(drupe.memory_stats("cuda")["cached_bytes"])
""",
        DRUPE_EMU_MEMORY_BYTES=str(2**20),
    )
    assert output == "0\n"


@emulated
def test_an_op_that_runs_out_of_memory_leaves_nothing_behind():
    output = python(
        """
import numpy as np, drupe
from drupe import ops
x = drupe.tensor(np.ones((2, 64, 64, 8), np.float32)).to("cuda")
for op in (lambda: ops.batch_norm(x, training=True, layout="NHWC"), lambda: ops.group_norm(x, groups=2, layout="NHWC")):
    before = drupe.memory_stats("cuda")["in_use_bytes"]
    try:
        op()
    except MemoryError:
        print(drupe.memory_stats("cuda")["in_use_bytes"] - before)
print(ops.max_pool2d(x, 8, layout="NHWC").tolist()[0][0][0][0])
""",
        DRUPE_EMU_MEMORY_BYTES=str(400_000),
    )
    assert output.splitlines() == ["0", "0", "1.0"]


def test_tensors_that_outlive_the_interpreter():
    script = """
import drupe
keep = drupe.zeros((3,)).to("cuda")
class Holder:
    pass
Holder.cycle = Holder, keep
capsule = keep.__dlpack__()
print("done")
"""
    assert python(script) == "done\n"
