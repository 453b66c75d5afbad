from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import nn
from recurrent_reference import reference
from reference import f64

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}


def directions_of(layer, index):
    suffixes = ["", "_reverse"][: layer.directions]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [[f64(getattr(layer, f"{name}_l{index}{suffix}").detach()) for name in names] for suffix in suffixes]


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 2, 0]], ids=str)
def test_stack_matches_numpy(device, rng, kind, bidirectional, batch_first, lengths):
    layer = LAYERS[kind](3, 5, 2, batch_first=batch_first, bidirectional=bidirectional).astype("float64").to(device)
    D = layer.directions
    x = rng.standard_normal((4, 3, 3))
    states = [rng.standard_normal((2 * D, 3, 5)) for _ in range(2 if kind == "lstm" else 1)]
    given = states[0] if kind == "gru" else tuple(states)
    y, after = layer(x.transpose(1, 0, 2) if batch_first else x, given, lengths=lengths and np.array(lengths))
    expected, last = x, []
    for index in range(2):
        own = [s[index * D : (index + 1) * D] for s in states]
        expected, *layer_last = reference(kind, expected, directions_of(layer, index), own, lengths)
        last.append(layer_last)
    y = y.detach().numpy()
    np.testing.assert_allclose(y.transpose(1, 0, 2) if batch_first else y, expected, rtol=1e-10, atol=1e-12)
    for actual, right in zip(as_tuple(after), zip(*last, strict=True), strict=True):
        np.testing.assert_allclose(actual.detach().numpy(), np.concatenate(right), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_parameter_learns(rng, kind):
    layer = LAYERS[kind](3, 4, 2, bidirectional=True)
    y, _ = layer(rng.standard_normal((5, 2, 3)).astype(np.float32))
    y.backward(np.ones(y.shape, np.float32))
    for name, parameter in layer.named_parameters():
        assert np.abs(parameter.grad.numpy()).max() > 0, name


@pytest.mark.parametrize("kind", LAYERS)
def test_names_and_shapes(kind):
    gates = 4 if kind == "lstm" else 3
    layer = LAYERS[kind](3, 5, 2, bidirectional=True)
    shapes = {}
    for index, width in ((0, 3), (1, 10)):
        for suffix in ("", "_reverse"):
            shapes[f"weight_ih_l{index}{suffix}"] = (gates * 5, width)
            shapes[f"weight_hh_l{index}{suffix}"] = (gates * 5, 5)
            shapes[f"bias_ih_l{index}{suffix}"] = (gates * 5,)
            shapes[f"bias_hh_l{index}{suffix}"] = (gates * 5,)
    assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == shapes
    assert list(layer.state_dict()) == list(shapes)
    assert list(LAYERS[kind](3, 5, bias=False).state_dict()) == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize("kind", LAYERS)
def test_starts_within_its_bound(kind):
    layer = LAYERS[kind](30, 100)
    for parameter in layer.parameters():
        assert 0.095 < np.abs(f64(parameter.detach())).max() <= 0.1


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_between_layers(rng, kind):
    layer = LAYERS[kind](3, 6, 2, dropout=0.5)
    x = rng.standard_normal((4, 2, 3)).astype(np.float32)
    drupe.manual_seed(1)
    first = layer(x)[0].detach().numpy()
    drupe.manual_seed(1)
    np.testing.assert_array_equal(layer(x)[0].detach().numpy(), first)
    assert np.abs(layer(x)[0].detach().numpy() - first).max() > 0
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0].detach().numpy(), layer(x)[0].detach().numpy())
    single = LAYERS[kind](3, 6, 1, dropout=0.5)
    np.testing.assert_array_equal(single(x)[0].detach().numpy(), single(x)[0].detach().numpy())
    layer = LAYERS[kind](3, 6, 2, dropout=1.0)
    expected = reference(kind, np.zeros((4, 2, 6)), directions_of(layer, 1))[0]
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_arguments_that_are_refused(kind):
    name = LAYERS[kind].__name__
    with pytest.raises(ValueError, match=rf"\[{name}\] layers is 0: expected at least 1"):
        LAYERS[kind](3, 4, 0)
    with pytest.raises(ValueError, match=rf"\[{name}\] dropout is 1.5: expected a probability"):
        LAYERS[kind](3, 4, dropout=1.5)
    x, layer = np.zeros((3, 2, 4), np.float32), LAYERS[kind](4, 5)
    for count in (3, 0):
        state = np.zeros((count, 2, 5), np.float32)
        with pytest.raises(ValueError, match=rf"\[{name}\] a state is \({count}, 2, 5\): expected \(1, B, 5\)"):
            layer(x, state if kind == "gru" else (state, state))
    if kind == "lstm":
        with pytest.raises(ValueError, match=r"\[LSTM\] the state has 1 parts: expected h0 and c0"):
            layer(x, (np.zeros((1, 2, 5), np.float32),))


def test_repr():
    assert repr(nn.LSTM(3, 4)) == "LSTM(3, 4)"
    layer = nn.GRU(3, 4, 2, False, batch_first=True, dropout=0.25, bidirectional=True)
    assert repr(layer) == "GRU(3, 4, layers=2, bias=False, batch_first=True, dropout=0.25, bidirectional=True)"


# ---- PyTorch's layers


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_agrees_with_torch(rng, kind, bidirectional, packed):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, kind.upper())(4, 6, 2, batch_first=True, bidirectional=bidirectional)
    ours = LAYERS[kind](4, 6, 2, batch_first=True, bidirectional=bidirectional)
    ours.load_state_dict(theirs.state_dict())
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    lengths = np.array([2, 5, 3]) if packed else None
    there = torch.tensor(x, requires_grad=True)
    utils = torch.nn.utils.rnn
    given = there
    if packed:
        given = utils.pack_padded_sequence(there, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    expected, expected_state = theirs(given)
    if packed:
        expected = utils.pad_packed_sequence(expected, batch_first=True)[0]
    here = drupe.tensor(x, requires_grad=True)
    y, state = ours(here, lengths=lengths)
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    for actual, right in zip(as_tuple(state), as_tuple(expected_state), strict=True):
        np.testing.assert_allclose(actual.detach().numpy(), right.detach().numpy(), rtol=1e-5, atol=1e-6)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    expected.backward(torch.tensor(dy))
    y.backward(dy)
    np.testing.assert_allclose(here.grad.numpy(), there.grad.numpy(), rtol=1e-4, atol=1e-5)
    for (name, parameter), right in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), right.grad.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
