from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import nn
from drupe.nn import init

# (out, in, kernel): fan_in 64 * 9, fan_out 96 * 9.
SHAPE = (96, 64, 3, 3)
FAN_IN, FAN_OUT = 576, 864


def values(function, shape=SHAPE, **options):
    tensor = drupe.empty(shape)
    assert function(tensor, **options) is tensor
    return tensor.numpy()


@pytest.mark.parametrize(
    ("function", "options", "bound"),
    [
        (init.uniform, {"low": -2, "high": 2}, 2),
        (init.kaiming_uniform, {}, np.sqrt(1 / FAN_IN)),
        (init.kaiming_uniform, {"negative_slope": 0}, np.sqrt(6 / FAN_IN)),
        (init.kaiming_uniform, {"negative_slope": 1, "mode": "fan_out"}, np.sqrt(3 / FAN_OUT)),
        (init.xavier_uniform, {"gain": 2}, 2 * np.sqrt(6 / (FAN_IN + FAN_OUT))),
    ],
)
def test_uniform(function, options, bound):
    x = values(function, **options)
    assert 0.99 * bound < x.max() <= bound * (1 + 1e-6)
    assert -0.99 * bound > x.min() >= -bound * (1 + 1e-6)
    assert abs(x.mean()) < 0.02 * bound
    assert x.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("function", "options", "mean", "std"),
    [
        (init.normal, {}, 0, 1),
        (init.normal, {"mean": 3, "std": 0.5}, 3, 0.5),
        (init.kaiming_normal, {}, 0, np.sqrt(2 / FAN_IN)),
        (init.kaiming_normal, {"mode": "fan_out"}, 0, np.sqrt(2 / FAN_OUT)),
        (init.xavier_normal, {}, 0, np.sqrt(2 / (FAN_IN + FAN_OUT))),
    ],
)
def test_normal(function, options, mean, std):
    x = values(function, **options)
    assert x.mean() == pytest.approx(mean, abs=0.02 * std)
    assert x.std() == pytest.approx(std, rel=0.02)
    assert np.abs(x - mean).max() > 3.5 * std


@pytest.mark.parametrize("bound", [0.1, 1.0, 2.0])
def test_trunc_normal(bound):
    x = values(init.trunc_normal, mean=1, std=0.02, bound=bound)
    assert 0.95 * bound < np.abs((x - 1) / 0.02).max() <= bound * (1 + 1e-4)
    assert x.mean() == pytest.approx(1, abs=0.001)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"\[init\] bound is {bad}"):
            init.trunc_normal(drupe.empty((2,)), bound=bad)


def test_constants():
    assert not values(init.zeros).any()
    assert (values(init.ones) == 1).all()


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype):
    tensor = nn.Parameter(drupe.empty((50, 50), dtype))
    init.normal(tensor)
    assert tensor.raw.dtype == dtype
    assert 0.9 < tensor.detach().numpy().astype(np.float64).std() < 1.1


def test_empty_weights():
    for shape in [(0, 3), (3, 0), (0,)]:
        assert values(init.normal, shape).shape == shape
    assert nn.Linear(0, 3).bias.shape == (3,)


def test_what_has_no_fan():
    for function in (init.kaiming_uniform, init.kaiming_normal, init.xavier_uniform, init.xavier_normal):
        with pytest.raises(ValueError, match=r"\[init\] a weight of shape \(3,\) has no fan-in"):
            function(drupe.empty((3,)))
    with pytest.raises(ValueError, match=r'\[init\] mode is "fan": expected'):
        init.kaiming_uniform(drupe.empty((3, 3)), mode="fan")


def test_the_seed_decides():
    def draw(seed):
        drupe.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 2, 3), nn.Embedding(5, 2))
        init.trunc_normal(network[0].bias)
        return [p.detach().numpy().copy() for p in network.parameters()]

    first, second, other = draw(7), draw(7), draw(8)
    drupe.manual_seed(0)
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).all()


def test_integers_are_not_drawn():
    for function in (init.normal, init.uniform):
        with pytest.raises(TypeError, match="expected a float dtype"):
            function(drupe.empty((3,), "int64"))
