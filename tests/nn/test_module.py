from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import drupe
from drupe import nn


class Block(nn.Module):
    def __init__(self):
        self.first = nn.Linear(4, 3)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.count = nn.Buffer(np.zeros((), np.int64))
        self.rest = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
        self.plain = drupe.tensor([1.0, 2.0])

    def forward(self, x):
        return self.rest(self.first(x))


NAMES = ["scale", "count", "first.weight", "first.bias", "rest.0.weight", "rest.0.bias", "rest.2.weight"]


def arrays(state):
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


def test_attributes_become_members():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == [name for name in NAMES if name != "count"]
    assert [name for name, _ in block.named_buffers()] == ["count"]
    assert list(block.state_dict()) == NAMES
    assert [name for name, _ in block.named_modules()] == ["", "first", "rest", "rest.0", "rest.1", "rest.2"]
    assert list(block.children()) == [block.first, block.rest]
    assert all(p.requires_grad for p in block.parameters())
    assert not any(b.requires_grad for b in block.buffers())


def test_lists_and_dicts_of_modules_count():
    class Network(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
            self.heads = {"a": nn.Linear(2, 1), "b": (nn.Parameter(np.ones(1, np.float32)),)}

    names = [name for name, _ in Network().named_parameters()]
    modules = ("layers.0", "layers.1", "heads.a")
    assert names == ["heads.b.0", *(f"{m}.{p}" for m in modules for p in ("weight", "bias"))]


def test_shared_members_are_listed_once_and_saved_under_each_name():
    class Tied(nn.Module):
        def __init__(self):
            self.encoder = nn.Linear(3, 3, bias=False)
            self.decoder = nn.Linear(3, 3, bias=False)
            self.decoder.weight = self.encoder.weight
            self.again = self.encoder

    tied = Tied()
    assert len(list(tied.parameters())) == 1
    assert len(list(tied.modules())) == 3
    assert list(tied.state_dict()) == ["encoder.weight", "decoder.weight", "again.weight"]
    state = tied.state_dict()
    tied.load_state_dict({name: np.full((3, 3), 7.0) for name in state})
    assert (state["decoder.weight"].numpy() == 7).all()


def test_a_parameter_is_not_replaced_by_a_plain_tensor():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"\[Linear\] weight is a Parameter"):
        layer.weight = drupe.tensor(np.ones((2, 2), np.float32))
    layer.weight = nn.Parameter(np.ones((2, 2), np.float32))
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_a_buffer_stays_one():
    block = Block()
    block.count = drupe.tensor(3)
    assert [name for name, _ in block.named_buffers()] == ["count"]
    assert block.state_dict()["count"].item() == 3


def test_state_dict_shares_memory_and_load_copies_in_place():
    source, target = Block(), Block()
    weight = target.first.weight
    memory = target.state_dict()["first.weight"].numpy()
    missing, unexpected = target.load_state_dict(source.state_dict())
    assert missing == unexpected == []
    assert target.first.weight is weight
    np.testing.assert_array_equal(memory, source.first.weight.detach().numpy())
    source.first.weight.detach().numpy()[...] = 5
    assert not (memory == 5).any()


def test_load_accepts_any_array_and_converts():
    block = Block()
    state = arrays(block.state_dict())
    state["first.weight"] = np.arange(12.0).reshape(4, 3).T  # float64, strided
    state["first.bias"] = drupe.tensor([1.0, 2.0, 3.0], "bfloat16")
    state["count"] = np.int32(4)
    block.load_state_dict(state)
    np.testing.assert_array_equal(block.first.weight.detach(), np.arange(12.0).reshape(4, 3).T)
    np.testing.assert_array_equal(block.first.bias.detach(), [1, 2, 3])
    assert block.first.bias.dtype == np.float32
    assert block.count.item() == 4


def test_load_lists_every_fault_and_changes_nothing():
    block = Block()
    before = arrays(block.state_dict())
    state = {name: array + 1 for name, array in before.items()}
    del state["scale"], state["rest.2.weight"]
    state["other"] = np.ones(1)
    state["first.weight"] = np.ones((4, 3))
    state["rest.0.bias"] = np.ones(())
    with pytest.raises(ValueError, match=r"\[load_state_dict\] Block does not fit") as error:
        block.load_state_dict(state)
    message = str(error.value)
    for line in (
        "missing: scale, rest.2.weight",
        "unexpected: other",
        "first.weight: shape is (4, 3), expected (3, 4)",
        "rest.0.bias: shape is (), expected (3,)",
    ):
        assert line in message
    for name, array in arrays(block.state_dict()).items():
        np.testing.assert_array_equal(array, before[name])


def test_load_what_is_there():
    block = Block()
    missing, unexpected = block.load_state_dict({"scale": np.full(3, 2.0), "x": np.ones(1)}, strict=False)
    assert missing == [name for name in NAMES if name != "scale"]
    assert unexpected == ["x"]
    np.testing.assert_array_equal(block.scale.detach(), [2, 2, 2])
    with pytest.raises(ValueError, match="scale: shape"):
        block.load_state_dict({"scale": np.ones(4)}, strict=False)


def test_load_refuses_dtypes_and_objects():
    block = Block()
    state = block.state_dict()
    before = arrays(state)
    with pytest.raises(TypeError, match=r"count is float32, expected int64"):
        block.load_state_dict({**state, "scale": np.zeros(3), "count": np.float32(1)})
    with pytest.raises(TypeError, match="expected an array"):
        block.load_state_dict({**state, "scale": "text"})
    for name, array in arrays(block.state_dict()).items():
        np.testing.assert_array_equal(array, before[name])


def test_load_refuses_read_only_memory():
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    block = Block()
    block.scale = nn.Parameter(frozen)
    with pytest.raises(ValueError, match="scale: shares read-only memory"):
        block.load_state_dict(Block().state_dict())


def test_backward_through_changed_parameters_is_an_error():
    layer = nn.Linear(3, 2)
    y = layer(drupe.tensor(np.ones((1, 3), np.float32)))
    layer.load_state_dict(nn.Linear(3, 2).state_dict())
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(np.ones((1, 2), np.float32))


def test_train_and_eval_reach_every_module():
    block = Block()
    assert all(m.training for m in block.modules())
    assert block.eval() is block
    assert not any(m.training for m in block.modules())
    block.train()
    assert all(m.training for m in block.modules())


def test_zero_grad_and_freezing():
    block = Block()
    x = drupe.tensor(np.ones((2, 4), np.float32))
    block(x).backward(np.ones((2, 2), np.float32))
    assert block.first.weight.grad.shape == (3, 4)
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())
    block.requires_grad_(False)
    assert not block(x).requires_grad
    assert len(list(block.parameters())) == 6


def test_astype_converts_floats_only_and_keeps_identity():
    block = Block()
    weight = block.first.weight
    assert block.astype("float64") is block
    assert block.first.weight is weight
    assert {p.dtype.name for p in block.parameters()} == {"float64"}
    assert block.count.dtype == np.int64
    assert block(drupe.tensor(np.ones((2, 4)))).dtype == np.float64
    assert {p.raw.dtype for p in block.astype("bfloat16").parameters()} == {"bfloat16"}
    with pytest.raises(TypeError, match="expected a float dtype"):
        block.astype("int32")
    assert {p.raw.dtype for p in block.parameters()} == {"bfloat16"}
    with pytest.raises(TypeError, match="not supported"):
        block.astype("complex64")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_module_can_be_copied(duplicate):
    block = Block()
    block.tied = block.scale
    block.eval()
    twin = duplicate(block)
    assert type(twin) is Block
    assert twin.tied is twin.scale
    assert not twin.rest.training
    assert list(twin.state_dict()) == list(block.state_dict())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in twin.parameters())
    before = arrays(block.state_dict())
    for tensor in twin.state_dict().values():
        tensor.numpy()[...] = 9
    for name, array in arrays(block.state_dict()).items():
        np.testing.assert_array_equal(array, before[name])


def test_apply_visits_children_first():
    block = Block()
    seen = []
    assert block.apply(seen.append) is block
    assert seen[-1] is block
    assert seen.index(block.rest[2]) < seen.index(block.rest)
    assert len(seen) == 6


def test_repr():
    text = """Block(
  first: Linear(4, 3)
  rest: Sequential(
    0: Linear(3, 3)
    1: ReLU()
    2: Linear(3, 2, bias=False)
  )
)"""
    assert repr(Block()) == text
    assert repr(nn.Linear(2, 3).weight) == "Parameter(float32 (3, 2))"
    assert repr(nn.Buffer(np.zeros(2))) == "Buffer(float64 (2,))"


def test_parameters_are_float():
    with pytest.raises(TypeError, match="only float tensors"):
        nn.Parameter(np.ones(3, np.int64))


def test_module_list():
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    layers.append(nn.ReLU())
    assert len(layers) == 4
    assert isinstance(layers[-1], nn.ReLU)
    assert [name for name, _ in layers.named_children()] == ["0", "1", "2", "3"]
    with pytest.raises(TypeError, match=r"\[ModuleList\] expected a Module, got str"):
        layers.append("relu")
    with pytest.raises(IndexError):
        layers[4]
