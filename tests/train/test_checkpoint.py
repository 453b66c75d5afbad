from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import io, nn, ops, optim
from drupe.train import load_checkpoint, save_checkpoint


def make(width=3):
    drupe.manual_seed(width)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    return model, optim.AdamW(list(model.parameters()), lr=0.1)


def step(model, optimizer):
    x = np.ones((4, 2), np.float32)
    ops.mse(model(x), np.zeros((4, 1), np.float32)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimizer, {"epoch": 7})
    return path, model, optimizer


def test_training_goes_on_as_if_it_had_not_stopped(saved):
    path, model, optimizer = saved
    other, other_optimizer = make()
    assert load_checkpoint(path, other, other_optimizer) == {"epoch": 7}
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), value.numpy())


def test_parameters_keep_their_names(saved):
    path, model, _ = saved
    names = set(io.load(path))
    assert set(model.state_dict()) == {name for name in names if not name.startswith("optimizer.")}
    assert "optimizer.0.exp_avg" in names


def test_a_model_alone(tmp_path):
    model, optimizer = make()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model)
    assert load_checkpoint(path, make()[0]) == {}
    with pytest.raises(ValueError, match="saved without an optimizer"):
        load_checkpoint(path, model, optimizer)


def test_another_model_or_optimizer_is_refused_and_left_alone(saved):
    path, _, _ = saved
    wide, wide_optimizer = make(5)
    with pytest.raises(ValueError, match=r"0\.weight: shape is \(3, 2\), expected \(5, 2\)"):
        load_checkpoint(path, wide, wide_optimizer)
    model, _ = make()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the optimizer"):
        load_checkpoint(path, model, optim.SGD(list(model.parameters()), lr=0.1))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_a_damaged_file_is_refused(saved):
    path, model, optimizer = saved
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors"):
        load_checkpoint(path, model, optimizer)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path.with_name("absent"), model, optimizer)
