from __future__ import annotations

import math

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

# Channels below and above a vector, four vectors and a chunk of 256; few rows of many channels; rows across a block.
SHAPES = [(2, 1), (7, 3), (5, 16), (3, 296), (3, 17, 2), (2, 65, 3, 5), (2, 130, 4, 4), (3, 300, 5)]
SHAPES += [(40, 70, 5, 5), (9, 64, 8, 9), (5, 33, 30, 30)]


def per_channel(values, ndim):
    return f64(values).reshape(1, -1, *([1] * (ndim - 2)))


def reference(x, weight, bias, mean=None, var=None, eps=1e-5):
    x = f64(x)
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axes) if mean is None else mean
    var = x.var(axes) if var is None else var
    y = (x - per_channel(mean, x.ndim)) / np.sqrt(per_channel(var, x.ndim) + eps)
    return y * per_channel(weight, x.ndim) + per_channel(bias, x.ndim)


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


def statistic(name):
    return dtype("float64" if name == "float64" else "float32")


def to_nhwc(x):
    return np.moveaxis(x, 1, -1)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_matches_numpy(backend, rng, name, shape):
    C = shape[1]
    x, weight, bias = draw(rng, shape, name) + dtype(name).type(2), draw(rng, C, name), draw(rng, C, name)
    mean, var = np.zeros(C, statistic(name)), np.ones(C, statistic(name))
    y = ops.batch_norm(x, weight, bias, mean, var, training=True, momentum=0.3)
    assert y.dtype == dtype(name)
    assert y.shape == shape
    count = x.size // C
    assert_close(y, reference(x, weight, bias), name, count, 6)
    axes = (0, *range(2, x.ndim))
    assert_close(mean, 0.3 * f64(x).mean(axes), "float32", 1, 2)
    assert_close(var, 0.7 + 0.3 * f64(x).var(axes, ddof=1), "float32", count, 2)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inference_matches_numpy(backend, rng, name, shape):
    C = shape[1]
    x, weight, bias = draw(rng, shape, name), draw(rng, C, name), draw(rng, C, name)
    mean, var = rng.standard_normal(C).astype(statistic(name)), rng.uniform(0.5, 2, C).astype(statistic(name))
    kept = mean.copy(), var.copy()
    y = ops.batch_norm(x, weight, bias, mean, var, training=False)
    assert_close(y, reference(x, weight, bias, mean, var), name, 4, 4)
    np.testing.assert_array_equal(mean, kept[0])
    np.testing.assert_array_equal(var, kept[1])


@pytest.mark.parametrize("training", [True, False])
def test_layouts_agree_and_channels_stay_last(backend, rng, training):
    x = draw(rng, (2, 20, 3, 4), "float32")
    statistics = [np.full(20, 0.5, np.float32), np.full(20, 1.5, np.float32)]
    results = []
    for array, layout in [(x, "NCHW"), (to_nhwc(x), "NHWC"), (np.ascontiguousarray(to_nhwc(x)), "NHWC")]:
        y = ops.batch_norm(array, None, None, *[s.copy() for s in statistics], training=training, layout=layout)
        if layout == "NHWC":
            assert y.flags.c_contiguous
            y = np.moveaxis(y, -1, 1)
        else:
            assert to_nhwc(y).flags.c_contiguous
        results.append(y)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    channels_last = np.moveaxis(np.ascontiguousarray(to_nhwc(x)), -1, 1)
    before = drupe.memory_stats()["in_use_bytes"]
    y = ops.batch_norm(channels_last, None, None, *statistics, training=training)
    assert drupe.memory_stats()["in_use_bytes"] - before < 2 * x.nbytes
    np.testing.assert_array_equal(y, results[0])


@pytest.mark.parametrize("rows", [100, 5000])
def test_large_mean_does_not_cancel(backend, rng, rows):
    x = (rng.standard_normal((rows, 5)) + 1e4).astype(np.float32)
    y = ops.batch_norm(x, training=True)
    np.testing.assert_allclose(y, reference(x, np.ones(5), np.zeros(5)), rtol=1e-6, atol=2e-6)


def test_momentum_0_and_1(backend, rng):
    x = rng.standard_normal((8, 3))
    mean, var = np.full(3, 5.0), np.full(3, 6.0)
    ops.batch_norm(x, None, None, mean, var, training=True, momentum=0)
    np.testing.assert_array_equal([mean, var], [[5] * 3, [6] * 3])
    ops.batch_norm(x, None, None, mean, var, training=True, momentum=1)
    np.testing.assert_allclose([mean, var], [x.mean(0), x.var(0, ddof=1)], rtol=1e-12)


def test_strided_operands(backend, rng):
    x = rng.standard_normal((12, 5, 8))[::2, ::-1, ::3]
    statistics = rng.uniform(1, 2, (2, 10))
    mean, var = statistics[0, ::2], statistics[1, ::-2]
    expected = reference(x, np.ones(5), np.zeros(5), mean.copy(), var.copy())
    np.testing.assert_allclose(ops.batch_norm(x, None, None, mean, var, training=False), expected, rtol=1e-12)
    ops.batch_norm(x, None, None, mean, var, training=True, momentum=1)
    np.testing.assert_allclose(mean, x.mean((0, 2)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(var, x.var((0, 2), ddof=1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 0, 3), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_no_elements(backend, shape, training):
    C = shape[1]
    x, weight = drupe.zeros(shape, "float64", requires_grad=True), drupe.zeros((C,), "float64", requires_grad=True)
    mean, var = np.zeros(C), np.ones(C)
    y = ops.batch_norm(x, weight, None, mean, var, training=training)
    assert y.shape == shape
    y.backward(np.zeros(shape))
    assert x.grad.shape == shape
    np.testing.assert_array_equal(weight.grad.numpy(), np.zeros(C))
    np.testing.assert_array_equal([mean, var], [np.zeros(C), np.ones(C)])


def test_nan_stays_in_its_channel(backend, rng):
    x = rng.standard_normal((6, 20))
    x[2, 7] = np.nan
    y = ops.batch_norm(x, training=True)
    np.testing.assert_array_equal(np.isnan(y).any(0), np.arange(20) == 7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3, 2)], ids=str)
def test_gradients(device, rng, training, layout, shape):
    x = rng.standard_normal(shape)
    C = shape[1] if layout == "NCHW" else shape[-1]
    mean, var = rng.standard_normal(C), rng.uniform(1, 2, C)

    def function(x, weight, bias):
        return ops.batch_norm(x, weight, bias, mean.copy(), var.copy(), training=training, layout=layout)

    check_gradients(function, x, rng.standard_normal(C), rng.standard_normal(C), rng=rng, tolerance=1e-5)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(30, 70, 5, 5), (5, 33, 30, 30)], ids=str)
def test_gradients_of_every_dtype(backend, rng, name, shape):
    C = shape[1]
    rows = math.prod(shape) // C
    x, weight, dy = draw(rng, shape, name), draw(rng, C, name), draw(rng, shape, name)
    leaves = [drupe.tensor(a, requires_grad=True) for a in (x, weight, weight)]
    ops.batch_norm(*leaves, training=True).backward(dy)
    axes, h, d = (0, 2, 3), f64(x), f64(dy)
    rstd = 1 / np.sqrt(h.var(axes, keepdims=True) + 1e-5)
    xhat = (h - h.mean(axes, keepdims=True)) * rstd
    g = d * per_channel(weight, 4)
    dx = rstd * (g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True))
    assert_close(leaves[0].grad, dx, name, rows, 2)
    assert_close(leaves[1].grad, (d * xhat).sum(axes), name, rows, math.sqrt(rows))
    assert_close(leaves[2].grad, d.sum(axes), name, rows, math.sqrt(rows))


def test_two_forwards_before_backward(device, rng):
    x = drupe.tensor(rng.standard_normal((4, 3)), requires_grad=True)
    mean, var = drupe.tensor(np.zeros(3)), drupe.tensor(np.ones(3))
    options = {"training": True, "momentum": 0.5}
    first = ops.batch_norm(x, None, None, mean, var, **options)
    ops.batch_norm(x, None, None, mean, var, **options)
    assert mean.version == 2
    first.backward(np.ones(x.shape))
    np.testing.assert_allclose(x.grad.numpy(), 0, atol=1e-12)


def test_same_bits_on_any_number_of_threads(backend, rng):
    x, dy = draw(rng, (20, 300, 7, 7), "float32"), draw(rng, (20, 300, 7, 7), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(a, requires_grad=True) for a in (x, np.ones(300, np.float32))]
        y = ops.batch_norm(*leaves, training=True)
        y.backward(dy)
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((3,), {}, ValueError, r"\[batch_norm\] x is \(3,\): expected at least 2 dimensions"),
        ((4, 3), {"weight": np.ones(4)}, ValueError, r"weight is \(4,\): expected \(3,\)"),
        ((4, 3), {"bias": np.ones((1, 3))}, ValueError, r"bias is \(1, 3\): expected \(3,\)"),
        ((4, 3), {"weight": np.ones(3, np.float32)}, TypeError, r"x is float64, weight is float32"),
        ((4, 3), {"training": False}, ValueError, r"running_mean and running_var are missing"),
        ((4, 3), {"running_mean": np.ones(3)}, ValueError, r"one of running_mean and running_var is missing"),
        ((4, 3), {"running_mean": np.ones(2), "running_var": np.ones(3)}, ValueError, r"running_mean is \(2,\)"),
        ((4, 3), {"running_mean": np.ones(3), "running_var": np.ones(3, "f")}, TypeError, r"running_var is float32"),
        (
            (4, 3),
            {"running_mean": frozen(np.ones(3)), "running_var": np.ones(3)},
            ValueError,
            "running_mean is read-only",
        ),
        (
            (4, 3),
            {"running_mean": np.ones(3), "running_var": np.ones(3).astype(">f8")},
            ValueError,
            "running_var is misaligned, in foreign byte order or a scalar",
        ),
        ((4, 3), {"eps": -1.0}, ValueError, r"eps is -1"),
        ((4, 3), {"momentum": 1.5}, ValueError, r"momentum is 1.5: expected 0 to 1"),
        ((4, 3), {"momentum": float("nan")}, ValueError, r"momentum is nan"),
        ((4, 3), {"layout": "CHW"}, ValueError, r'layout is "CHW": expected NCHW or NHWC'),
        ((1, 3), {}, ValueError, r"x is \(1, 3\): training needs more than one value per channel"),
        ((1, 3, 1, 1), {}, ValueError, r"training needs more than one value"),
    ],
)
def test_errors_name_what_is_wrong(device, shape, options, error, message):
    with pytest.raises(error, match=message):
        ops.batch_norm(np.ones(shape), **{"training": True, **options})


def test_running_statistics_may_be_read_only_outside_training(device):
    mean, var = frozen(np.zeros(3)), frozen(np.ones(3))
    np.testing.assert_allclose(ops.batch_norm(np.ones((1, 3)), None, None, mean, var, training=False), 1, rtol=1e-5)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"\[batch_norm\] x is int64"):
        ops.batch_norm(np.ones((2, 2), np.int64), training=True)
