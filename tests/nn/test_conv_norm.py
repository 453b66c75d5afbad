"""A convolution and its batch norm as one."""

import numpy as np
import pytest

import drupe
from drupe import nn


def block(rng, dtype="float32", bias=False):
    conv = nn.Conv2d(8, 32, 3, padding=1, bias=bias, layout="NHWC")
    norm = nn.BatchNorm2d(32, layout="NHWC")
    norm.running_mean.copy_from(rng.standard_normal(32, dtype=np.float32))
    norm.running_var.copy_from(rng.uniform(0.5, 2, 32).astype(np.float32))
    norm.weight.copy_from(rng.uniform(-2, 2, 32).astype(np.float32))
    norm.bias.copy_from(rng.standard_normal(32, dtype=np.float32))
    return nn.Sequential(conv, norm).astype(dtype).eval()


def run(layers, x, **options):
    with drupe.no_grad():
        return nn.conv_norm(x, layers[0], layers[1], **options).astype("float32").numpy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-6), ("bfloat16", 3e-2)])
def test_the_folded_convolution_gives_the_same(device, rng, dtype, tolerance, bias):
    layers = block(rng, dtype, bias)
    x = drupe.tensor(rng.standard_normal((2, 6, 7, 8))).astype(dtype)
    residual = drupe.tensor(rng.standard_normal((2, 6, 7, 32))).astype(dtype)
    names, expected = list(layers.state_dict()), run(layers, x, residual=residual, activation="relu")
    layers.pack_weights()
    folded = run(layers, x, residual=residual, activation="relu")
    np.testing.assert_allclose(folded, expected, atol=tolerance * np.abs(expected).max())
    assert list(layers.state_dict()) == names


@pytest.mark.parametrize(
    "change",
    [
        lambda conv, norm: norm.bias.copy_from(norm.bias.detach().numpy() + 1),
        lambda conv, norm: norm.running_mean.copy_from(norm.running_mean.numpy() + 1),
        lambda conv, norm: norm.load_state_dict({k: v.numpy() + 1 for k, v in norm.state_dict().items()}),
        lambda conv, norm: conv.load_state_dict({"weight": 2 * conv.weight.detach().numpy()}),
        lambda conv, norm: (norm.astype("float64").astype("float32"), norm.bias.copy_from(np.ones(32))),
    ],
    ids=["bias", "statistics", "norm loaded", "convolution loaded", "converted"],
)
def test_a_change_of_either_layer_is_seen(rng, change):
    layers = block(rng)
    x = drupe.tensor(rng.standard_normal((2, 6, 7, 8), dtype=np.float32))
    layers.pack_weights()
    before = run(layers, x)
    change(layers[0], layers[1])
    with drupe.no_grad():
        expected = layers[1](layers[0](x)).numpy()
    assert np.abs(expected - before).max() > 1e-2
    np.testing.assert_allclose(run(layers, x), expected, rtol=1e-4, atol=1e-4)


def test_a_recorded_pass_has_gradients(rng):
    layers = block(rng).pack_weights()
    y = nn.conv_norm(drupe.tensor(rng.standard_normal((1, 4, 4, 8), dtype=np.float32)), layers[0], layers[1])
    y.backward(np.ones(y.shape, np.float32))
    assert layers[0].weight.grad is not None
    assert layers[1].bias.grad is not None
