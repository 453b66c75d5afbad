from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import ACTIVATIONS, FLOATS, assert_close, dtype, f64

OPS = {
    "relu": ops.relu,
    "gelu": ops.gelu,
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "silu": ops.silu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(), (1,), (15,), (33, 5), (9001,), (0, 4)], ids=str)
def test_matches_numpy(backend, rng, name, op, shape):
    x = np.asarray(3 * rng.standard_normal(shape)).astype(dtype(name))
    y = OPS[op](x)
    assert y.dtype == dtype(name)
    assert_close(y, np.asarray(ACTIVATIONS[op](f64(x))), name)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("op", OPS)
def test_far_from_zero(backend, name, op):
    x = np.array([0.0, 20, 100, 1000, 30000, np.inf, np.nan, -20, -100, -1000, -30000]).astype(dtype(name))
    limits = {"sigmoid": (1, 0), "tanh": (1, -1)}
    high, low = limits.get(op, (f64(x), 0))
    at_zero = 0.5 if op == "sigmoid" else 0
    expected = np.where(f64(x) > 0, high, np.where(f64(x) < 0, low, np.where(f64(x) == 0, at_zero, np.nan)))
    y = f64(OPS[op](x))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)
    if op in limits or op == "relu":
        assert OPS[op](np.array([-np.inf], dtype(name)))[0] == low


def test_gelu_keeps_the_sign_and_stays_below_x(isa):
    x = np.linspace(-7, 7, 1_000_001, dtype=np.float32)
    y = ops.gelu(x)
    assert (y[x <= 0] <= 0).all()
    assert (y <= np.maximum(x, 0)).all()
    assert (np.abs(y - ACTIVATIONS["gelu"](f64(x))) <= 3e-7 * np.abs(x)).all()
    for name in FLOATS:
        assert np.signbit(ops.gelu(np.array([-0.0], dtype(name))))[0]


def test_results_larger_than_the_caches(isa, rng):
    """They are written past the caches: the same bits as of a part of them."""
    x = np.tile(rng.standard_normal(1001).astype(np.float32), 8500)  # 34 MB
    leaf = drupe.tensor(x, requires_grad=True)
    y = ops.gelu(leaf)
    y.backward(x)
    part = drupe.tensor(x[:1001], requires_grad=True)
    z = ops.gelu(part)
    z.backward(x[:1001])
    for whole, small in ((y, z), (leaf.grad, part.grad)):
        rows = whole.detach().numpy().reshape(-1, 1001)
        np.testing.assert_array_equal(rows, np.broadcast_to(small.detach().numpy(), rows.shape))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_gradients_of_every_dtype(backend, rng, name, op):
    x = (2 * rng.standard_normal(1003)).astype(dtype(name))
    dy = rng.standard_normal(1003).astype(dtype(name))
    leaf = drupe.tensor(x, requires_grad=True)
    OPS[op](leaf).backward(dy)
    step = 1e-6
    slope = (ACTIVATIONS[op](f64(x) + step) - ACTIVATIONS[op](f64(x) - step)) / (2 * step)
    assert leaf.grad.dtype == dtype(name)
    # The slope of sigmoid and tanh comes from the rounded result.
    assert_close(leaf.grad, slope * f64(dy), name, scale=4)


@pytest.mark.parametrize("op", OPS)
def test_gradients(device, rng, op):
    x = rng.standard_normal((4, 5))
    check_gradients(OPS[op], x, rng=rng)
    check_gradients(lambda x: ops.transpose(OPS[op](ops.transpose(x))), x, rng=rng)
    leaf = drupe.tensor(x, requires_grad=True)
    y = OPS[op](leaf)
    dy = np.asfortranarray(rng.standard_normal((4, 5)))
    y.backward(dy)
    contiguous = drupe.tensor(x, requires_grad=True)
    OPS[op](contiguous).backward(np.ascontiguousarray(dy))
    np.testing.assert_array_equal(leaf.grad.numpy(), contiguous.grad.numpy())


def test_memory_order_is_kept_and_views_work(backend, rng):
    x = drupe.tensor(rng.standard_normal((2, 5, 6, 3)).astype(np.float32)).permute(0, 3, 1, 2)
    assert ops.relu(x).strides == x.strides
    a = rng.standard_normal((20, 30)).astype(np.float32)[::2, 1::3]
    np.testing.assert_array_equal(ops.relu(a), np.maximum(a, 0))


def test_relu_at_zero_and_nan(backend):
    leaf = drupe.tensor(np.array([0.0, -0.0, np.nan, 1.0, -1.0]), requires_grad=True)
    y = ops.relu(leaf)
    np.testing.assert_array_equal(y.detach().numpy(), [0, 0, np.nan, 1, 0])
    y.backward(np.ones(5))
    np.testing.assert_array_equal(leaf.grad.numpy()[[0, 1, 3, 4]], [0, 0, 1, 0])


def test_integers_are_refused(device):
    with pytest.raises(TypeError, match=r"\[relu\] x is int64"):
        ops.relu(np.ones(3, np.int64))
