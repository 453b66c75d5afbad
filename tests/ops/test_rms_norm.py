from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

SIZES = [1, 2, 15, 16, 17, 63, 64, 65, 130, 768, 4103]


def reference(x, weight=None, *, residual=None, eps=1e-5, ndim=1):
    h = f64(x) if residual is None else f64(x) + f64(residual)
    axes = tuple(range(h.ndim - ndim, h.ndim))
    y = h / np.sqrt((h * h).mean(axes, keepdims=True) + eps)
    return y if weight is None else y * f64(weight)


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_matches_numpy(backend, rng, name, size):
    x, weight, residual = draw(rng, (5, size), name), draw(rng, size, name), draw(rng, (5, size), name)
    y = ops.rms_norm(x, weight)
    assert y.dtype == dtype(name)
    assert_close(y, reference(x, weight), name, size, 4)
    assert_close(ops.rms_norm(x, residual=residual), reference(x, residual=residual), name, size, 4)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_trailing_dimensions(backend, rng, ndim):
    x = rng.standard_normal((3, 5, 7))
    weight = rng.standard_normal(x.shape[-ndim:])
    y = ops.rms_norm(x, weight, ndim=ndim, eps=0.3)
    np.testing.assert_allclose(y, reference(x, weight, ndim=ndim, eps=0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(130, 96), (5, 1000), (3, 8208)], ids=str)
def test_gradients_of_every_dtype(backend, rng, name, shape):
    x, weight, dy = (draw(rng, s, name) for s in (shape, shape[1], shape))
    leaves = [drupe.tensor(a, requires_grad=True) for a in (x, weight)]
    ops.rms_norm(*leaves).backward(dy)
    h, w, d = f64(x), f64(weight), f64(dy)
    rstd = 1 / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)
    xhat = h * rstd
    g = d * w
    dx = rstd * (g - xhat * (g * xhat).mean(-1, keepdims=True))
    assert_close(leaves[0].grad, dx, name, shape[1], 8)
    assert_close(leaves[1].grad, (d * xhat).sum(0), name, 130, 12)


@pytest.mark.parametrize("rows", [1, 3, 4, 21])
def test_gradients(backend, rng, rows):
    x, weight, residual = rng.standard_normal((rows, 7)), rng.standard_normal(7), rng.standard_normal((rows, 7))
    check_gradients(lambda x, w, r: ops.rms_norm(x, w, residual=r, eps=0.1), x, weight, residual, rng=rng)
    check_gradients(lambda x: ops.rms_norm(x, ndim=2), x, rng=rng)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_no_elements(backend, shape):
    x = drupe.zeros(shape, "float64", requires_grad=True)
    y = ops.rms_norm(x)
    assert y.shape == shape
    y.backward(np.zeros(shape))
    assert x.grad.shape == shape


def test_strided_operands(backend, rng):
    x, residual = draw(rng, (40, 30), "float32").T[::2, ::-1], draw(rng, (15, 80), "float32")[:, ::2]
    y = ops.rms_norm(x, draw(rng, 40, "float32"), residual=residual)
    assert y.shape == (15, 40)
    assert_close(ops.rms_norm(x, residual=residual), reference(x, residual=residual), "float32", 40, 4)


def test_nan_stays_in_its_row_and_zero_stays_zero(backend):
    x = np.ones((3, 20), np.float32)
    x[1, 3] = np.nan
    x[2] = 0
    y = ops.rms_norm(x)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[0]).all()
    np.testing.assert_array_equal(y[2], 0)


def test_same_bits_on_any_number_of_threads(backend, rng):
    x, weight, dy = (draw(rng, s, "float32") for s in ((300, 130), 130, (300, 130)))
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(a, requires_grad=True) for a in (x, weight)]
        y = ops.rms_norm(*leaves)
        y.backward(dy)
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((3, 4), (3,)), {}, ValueError, r"\[rms_norm\] weight is \(3,\): expected \(4,\)"),
        (((3, 4),), {"residual": np.ones((4,))}, ValueError, r"x is \(3, 4\), residual is \(4,\)"),
        (((3, 4),), {"ndim": 3}, ValueError, r"ndim is 3"),
        (((3, 4),), {"eps": float("inf")}, ValueError, r"eps is inf"),
        (((3, 4),), {"weight": np.ones(4, np.float32)}, TypeError, r"x is float64, weight is float32"),
    ],
)
def test_errors_name_what_is_wrong(device, arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.rms_norm(*(np.ones(shape) for shape in arguments), **options)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"\[rms_norm\] x is int64"):
        ops.rms_norm(np.ones((2, 2), np.int64))
