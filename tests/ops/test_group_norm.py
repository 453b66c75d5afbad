from __future__ import annotations

import math

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

CASES = [
    ((2, 1), 1),
    ((3, 6), 2),
    ((2, 17, 3), 17),
    ((2, 64, 5, 5), 8),
    ((1, 300, 9, 9), 3),
    ((3, 40, 30, 20), 1),
    ((2, 64, 20, 30), 4),
    ((1, 2, 130, 131), 1),
    ((7, 33, 2), 3),
]


def reference(x, groups, weight, bias, eps=1e-5):
    x = f64(x)
    grouped = x.reshape(x.shape[0], groups, -1)
    y = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + eps)
    shape = (1, -1, *([1] * (x.ndim - 2)))
    return y.reshape(x.shape) * f64(weight).reshape(shape) + f64(bias).reshape(shape)


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_matches_numpy(backend, rng, name, shape, groups):
    C = shape[1]
    x, weight, bias = draw(rng, shape, name), draw(rng, C, name), draw(rng, C, name)
    y = ops.group_norm(x, weight, bias, groups=groups)
    assert y.dtype == dtype(name)
    assert_close(y, reference(x, groups, weight, bias), name, x.size // shape[0] // groups, 4)


def order_of(x, backend):
    """The axes from the outermost in memory to the innermost, of what the op makes of ``x`` (N, C, H, W)."""
    return (0, 1, 2, 3) if backend != "cuda" and x.flags.c_contiguous else (0, 2, 3, 1)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("shape", "groups"), [((2, 20, 3, 4), 4), ((2, 64, 20, 30), 2), ((3, 6, 10, 11), 6)], ids=str)
def test_layouts_agree_and_results_keep_the_memory_order(backend, rng, name, shape, groups):
    C, count = shape[1], math.prod(shape[1:]) // groups
    first, weight, bias = draw(rng, shape, name), draw(rng, C, name), draw(rng, C, name)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(first, 1, -1)), -1, 1)
    expected = reference(first, groups, weight, bias)
    gradients = []
    for x, dy in ((first, first), (first, last), (last, last), (last, first)):
        for layout in ("NCHW", "NHWC"):
            x_given, dy_given = (a if layout == "NCHW" else np.moveaxis(a, 1, -1) for a in (x, dy))
            leaf = drupe.as_tensor(x_given)
            leaf.requires_grad = True
            y = ops.group_norm(leaf, weight, bias, groups=groups, layout=layout)
            y.backward(dy_given)
            y, dx = (a if layout == "NCHW" else np.moveaxis(a, -1, 1) for a in (y.detach().numpy(), leaf.grad.numpy()))
            assert y.transpose(order_of(x, backend)).flags.c_contiguous
            assert_close(y, expected, name, count, 4)
            gradients.append(dx)
    for dx in gradients[1:]:
        assert_close(dx, f64(gradients[0]), name, count, 4)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_is_dense_in_neither_order_is_copied(backend, rng, name):
    x = draw(rng, (4, 12, 9, 22), name)[::2, ::2, :, 1::3]
    y = ops.group_norm(x, groups=2)
    assert_close(y, reference(x, 2, np.ones(6), np.zeros(6)), name, 200, 4)
    assert y.transpose((0, 2, 3, 1) if backend == "cuda" else (0, 1, 2, 3)).flags.c_contiguous
    z = ops.group_norm(np.moveaxis(x, 1, -1), groups=2, layout="NHWC")
    assert z.flags.c_contiguous
    assert_close(np.moveaxis(z, -1, 1), reference(x, 2, np.ones(6), np.zeros(6)), name, 200, 4)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("offset", [1, 3])
def test_unaligned_input(backend, rng, name, offset):
    shape = (2, 6, 11, 13)
    x = draw(rng, offset + math.prod(shape), name)[offset:].reshape(shape)
    expected = reference(x, 3, np.ones(6), np.zeros(6))
    assert_close(ops.group_norm(x, groups=3), expected, name, 286, 4)
    rows = x.reshape(2, 11, 13, 6)
    expected = np.moveaxis(reference(np.moveaxis(rows, -1, 1), 3, np.ones(6), np.zeros(6)), 1, -1)
    assert_close(ops.group_norm(rows, groups=3, layout="NHWC"), expected, name, 286, 4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("C", [16, 20, 32, 64])
def test_results_past_the_caches(isa, rng, layout, C):
    shape = (2, C, 2**21 // C + 1, 2) if layout == "NCHW" else (2, 2**21 // C + 1, 2, C)
    x, dy = draw(rng, shape, "float32"), draw(rng, shape, "float32")
    leaf = drupe.tensor(x, requires_grad=True)
    y = ops.group_norm(leaf, groups=2, layout=layout)
    y.backward(dy)
    grouped = [f64(a) if layout == "NCHW" else np.moveaxis(f64(a), -1, 1) for a in (x, dy)]
    h, d = (np.ascontiguousarray(a).reshape(2, 2, -1) for a in grouped)
    rstd = 1 / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    xhat = (h - h.mean(-1, keepdims=True)) * rstd
    dx = rstd * (d - d.mean(-1, keepdims=True) - xhat * (d * xhat).mean(-1, keepdims=True))
    for result, expected in ((y.detach(), xhat), (leaf.grad, dx)):
        images = result.numpy() if layout == "NCHW" else np.moveaxis(result.numpy(), -1, 1)
        np.testing.assert_allclose(images, expected.reshape(images.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(2, 6, 40, 30), (1, 4, 150, 160)], ids=str)
def test_large_mean_does_not_cancel(backend, rng, layout, shape):
    x = (rng.standard_normal(shape) + 1e4).astype(np.float32)
    given = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    expected = reference(x, 2, np.ones(shape[1]), np.zeros(shape[1]))
    y = ops.group_norm(given, groups=2, layout=layout)
    np.testing.assert_allclose(y if layout == "NCHW" else np.moveaxis(y, -1, 1), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_means_that_wander_do_not_cancel(backend, rng, layout):
    x = rng.standard_normal((1, 4, 150, 160))
    x[:, 1] += 1000
    x[:, :, 100:] -= 3000
    x = x.astype(np.float32)
    given = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y = ops.group_norm(given, groups=2, layout=layout)
    expected = reference(x, 2, np.ones(4), np.zeros(4))
    np.testing.assert_allclose(y if layout == "NCHW" else np.moveaxis(y, -1, 1), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("shape", "groups"), [((2, 6), 3), ((2, 4, 3, 2), 2), ((2, 3, 4), 3)], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients(device, rng, shape, groups, layout):
    C = shape[1]
    if layout == "NHWC":
        shape = (shape[0], *shape[2:], C)
    arrays = rng.standard_normal(shape), rng.standard_normal(C), rng.standard_normal(C)
    check_gradients(lambda x, w, b: ops.group_norm(x, w, b, groups=groups, layout=layout, eps=0.1), *arrays, rng=rng)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients_of_every_dtype(backend, rng, name, layout):
    shape, groups = (5, 12, 30, 31), 3
    x, weight, dy = draw(rng, shape, name), draw(rng, 12, name), draw(rng, shape, name)
    given = [a if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy)]
    leaves = [drupe.tensor(a, requires_grad=True) for a in (given[0], weight, weight)]
    ops.group_norm(*leaves, groups=groups, layout=layout).backward(given[1])
    h = f64(x).reshape(5, groups, -1)
    rstd = 1 / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    xhat = (h - h.mean(-1, keepdims=True)) * rstd
    d = f64(dy)
    g = (d * f64(weight).reshape(1, -1, 1, 1)).reshape(h.shape)
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    grad = leaves[0].grad.numpy()
    assert_close(grad if layout == "NCHW" else np.moveaxis(grad, -1, 1), dx.reshape(shape), name, 1000, 2)
    assert_close(leaves[1].grad, (d * xhat.reshape(shape)).sum((0, 2, 3)), name, 4650, 68)
    assert_close(leaves[2].grad, d.sum((0, 2, 3)), name, 4650, 68)


@pytest.mark.parametrize("shape", [(0, 4), (2, 4, 0), (2, 0, 3)], ids=str)
def test_no_elements(backend, shape):
    x = drupe.zeros(shape, "float64", requires_grad=True)
    weight = drupe.zeros((shape[1],), "float64", requires_grad=True)
    y = ops.group_norm(x, weight, groups=2)
    assert y.shape == shape
    y.backward(np.zeros(shape))
    assert x.grad.shape == shape
    np.testing.assert_array_equal(weight.grad.numpy(), np.zeros(shape[1]))


def test_nan_stays_in_its_group(backend, rng):
    x = rng.standard_normal((2, 6, 5))
    x[1, 3, 2] = np.nan
    y = ops.group_norm(x, groups=3)
    assert np.isnan(y[1, 2:4]).all()
    assert np.isnan(y).sum() == 10


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(3, 64, 30, 20), (1, 4, 96, 192), (6, 48, 20, 64)], ids=str)
def test_same_bits_on_any_number_of_threads(backend, rng, layout, shape):
    x, dy = draw(rng, shape, "float32"), draw(rng, shape, "float32")
    C = shape[1 if layout == "NCHW" else 3]
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(a, requires_grad=True) for a in (x, np.ones(C, np.float32))]
        y = ops.group_norm(*leaves, groups=4, layout=layout)
        y.backward(dy)
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((4,), {"groups": 1}, ValueError, r"\[group_norm\] x is \(4,\): expected at least 2 dimensions"),
        ((2, 4), {"groups": 3}, ValueError, r"groups is 3, x is \(2, 4\): expected a divisor of its 4 channels"),
        ((2, 4), {"groups": 0}, ValueError, r"groups is 0"),
        ((2, 4), {"groups": -2}, ValueError, r"groups is -2"),
        ((2, 4), {"groups": 2, "weight": np.ones(2)}, ValueError, r"weight is \(2,\): expected \(4,\)"),
        ((2, 4), {"groups": 2, "bias": np.ones(4, np.float32)}, TypeError, r"bias is float32: expected float64"),
        ((2, 4), {"groups": 2, "eps": float("nan")}, ValueError, r"eps is nan"),
        ((2, 4), {"groups": 2, "layout": "nchw"}, ValueError, r'layout is "nchw"'),
    ],
)
def test_errors_name_what_is_wrong(device, shape, options, error, message):
    with pytest.raises(error, match=message):
        ops.group_norm(np.ones(shape), **options)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"\[group_norm\] x is uint8"):
        ops.group_norm(np.ones((2, 2), np.uint8), groups=1)
