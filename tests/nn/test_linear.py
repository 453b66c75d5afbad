from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import nn, ops
from reference import ACTIVATIONS


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_matches_numpy(rng, activation, bias):
    layer = nn.Linear(5, 3, bias, activation=activation).astype("float64")
    assert layer.weight.shape == (3, 5)
    x, residual = rng.standard_normal((2, 4, 5)), rng.standard_normal((2, 4, 3))
    z = x @ layer.weight.detach().numpy().T + residual
    if bias:
        z = z + layer.bias.detach().numpy()
    y = layer(x, residual=residual)
    np.testing.assert_allclose(y.detach(), ACTIVATIONS[activation](z), rtol=1e-12, atol=1e-12)


def test_linear_gradients(rng):
    layer = nn.Linear(4, 3, activation="tanh").astype("float64")
    x = drupe.tensor(rng.standard_normal((2, 4)), requires_grad=True)
    dy = rng.standard_normal((2, 3))
    y = layer(x)
    y.backward(dy)
    dz = dy * (1 - y.detach().numpy() ** 2)
    np.testing.assert_allclose(layer.weight.grad, dz.T @ x.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(layer.bias.grad, dz.sum(0), rtol=1e-12)
    np.testing.assert_allclose(x.grad, dz @ layer.weight.detach().numpy(), rtol=1e-12)


def test_linear_starts_within_its_bound():
    layer = nn.Linear(100, 400)
    for tensor in (layer.weight, layer.bias):
        values = tensor.detach().numpy()
        assert np.abs(values).max() <= 0.1
        assert np.abs(values).max() > 0.09
        assert abs(values.mean()) < 0.02


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[gemm\].*inner dimensions 4 and 5 differ"):
        nn.Linear(5, 3)(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="negative"):
        nn.Linear(-1, 3)


def test_sequential_and_activations(rng):
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Tanh()).astype("float64")
    x = rng.standard_normal((3, 4))
    first, _, second, _ = network
    h = np.maximum(x @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    y = np.tanh(h @ second.weight.detach().numpy().T + second.bias.detach().numpy())
    np.testing.assert_allclose(network(x).detach(), y, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate=True), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.Identity(), None),
    ],
)
def test_activation_layers(rng, layer, name):
    x = rng.standard_normal((3, 4))
    np.testing.assert_allclose(layer(x), ACTIVATIONS[name](x), rtol=1e-12)


def test_packed_weights_give_the_same_and_are_not_saved(rng):
    layer = nn.Sequential(nn.Linear(40, 30, activation="gelu"), nn.Linear(30, 20)).eval()
    x = rng.standard_normal((25, 40), dtype=np.float32)
    names, expected = list(layer.state_dict()), layer(x).detach().numpy()
    assert layer.pack_weights() is layer
    with drupe.no_grad():
        np.testing.assert_array_equal(layer(x).numpy(), expected)
    assert list(layer.state_dict()) == names


def zeroed(layer):
    for parameter in layer.parameters():
        parameter.detach().numpy()[:] = 0


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict({name: np.zeros(p.shape) for name, p in layer.state_dict().items()}),
        lambda layer: (layer.train(), zeroed(layer), layer.eval()),
        lambda layer: (layer(np.ones((1, 40), np.float32)), zeroed(layer)),  # a step of training
        lambda layer: (zeroed(layer), layer.pack_weights()),
        lambda layer: [p.copy_from(np.zeros(p.shape)) for p in layer.parameters()],
        lambda layer: (layer.astype("float64"), zeroed(layer), layer.astype("float32")),
    ],
    ids=["loaded", "train()", "a recorded pass", "packed again", "copied into", "converted"],
)
@pytest.mark.parametrize("prepare", [nn.Module.pack_weights, nn.Module.quantize_weights])
def test_changed_weights_are_not_taken_from_the_copy(rng, change, prepare):
    layer = prepare(nn.Linear(40, 30).eval())
    x = rng.standard_normal((25, 40), dtype=np.float32)
    with drupe.no_grad():
        assert layer(x).numpy().any()
    change(layer)
    with drupe.no_grad():
        assert not layer(x).numpy().any()


@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int8", 16), ("int4", None), ("int4", 8)])
def test_quantized_weights_are_multiplied_and_not_saved(rng, kind, group):
    layer = nn.Linear(40, 30, activation="gelu").eval()
    state = {name: value.numpy().copy() for name, value in layer.state_dict().items()}
    x, residual = (rng.standard_normal(shape, dtype=np.float32) for shape in ((3, 40), (3, 30)))
    assert layer.quantize_weights(kind, group=group) is layer
    weight = ops.quantize_weight(layer.weight, kind, transpose_b=True, group=group)
    with drupe.no_grad():
        expected = ops.gemm_quantized(x, weight, layer.bias, residual=residual, activation="gelu")
        np.testing.assert_array_equal(layer(x, residual=residual).numpy(), expected.numpy())
        exact = ops.gemm(x, layer.weight, bias=layer.bias, transpose_b=True, residual=residual, activation="gelu")
    assert 0 < np.abs(expected.numpy() - exact.numpy()).max() < (0.02 if kind == "int8" else 0.3)
    assert list(layer.state_dict()) == list(state)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])


def test_quantized_weights_and_packed_ones_take_turns(rng):
    layer, x = nn.Linear(40, 30).eval(), rng.standard_normal((20, 40), dtype=np.float32)
    with drupe.no_grad():
        exact = layer(x).numpy()
        quantized = layer.quantize_weights()(x).numpy()
        assert (quantized != exact).any()
        np.testing.assert_array_equal(layer.pack_weights()(x).numpy(), exact)
        np.testing.assert_array_equal(layer.quantize_weights()(x).numpy(), quantized)
        np.testing.assert_array_equal(layer.train()(x).numpy(), exact)


def test_errors_of_quantize_weights():
    layer = nn.Linear(4, 3).eval()
    with pytest.raises(ValueError, match='dtype is "float8": expected int8 or int4'):
        layer.quantize_weights("float8")
    with pytest.raises(ValueError, match="group is 0: expected at least 1"):
        layer.quantize_weights(group=0)
    layer.quantize_weights().requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"\[gemm_quantized\] an input requires a gradient"):
        layer(drupe.tensor(np.ones((2, 4), np.float32), requires_grad=True))
