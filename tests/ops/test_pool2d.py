from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64


def draw(rng, shape, name="float64"):
    return rng.standard_normal(shape).astype(dtype(name))


def pair(value):
    return (value, value) if isinstance(value, int) else value


def sides(padding):
    """((top, bottom), (left, right))."""
    values = pair(padding)
    return (values[:2], values[2:]) if len(values) == 4 else ((values[0],) * 2, (values[1],) * 2)


def windows(size, kernel, stride, padding, dilation, ceil_mode):
    """For each window: the elements of the image that it holds, and how many of the padded image."""
    before, after = padding
    count = (size + before + after - dilation * (kernel - 1) - 1) / stride + 1
    count = int(np.ceil(count) if ceil_mode else np.floor(count))
    if ceil_mode and (count - 1) * stride >= size + before:
        count -= 1
    result = []
    for i in range(count):
        at = [i * stride - before + r * dilation for r in range(kernel)]
        result.append(([a for a in at if 0 <= a < size], sum(a < size + after for a in at)))
    return result


def reference(kind, x, kernel, *, stride=None, padding=0, dilation=1, ceil_mode=False, count_include_pad=True):
    """Both pools of an NCHW array, window by window."""
    kernel, dilation, pads = pair(kernel), pair(dilation), sides(padding)
    stride = kernel if stride is None else pair(stride)
    rows, cols = (windows(x.shape[2 + i], kernel[i], stride[i], pads[i], dilation[i], ceil_mode) for i in range(2))
    y = np.zeros((*x.shape[:2], len(rows), len(cols)))
    for p, (h, in_h) in enumerate(rows):
        for q, (w, in_w) in enumerate(cols):
            patch = f64(x)[:, :, h][:, :, :, w]
            if kind == "max":
                y[:, :, p, q] = patch.max((2, 3), initial=-np.inf)
            else:
                divisor = in_h * in_w if count_include_pad else len(h) * len(w)
                y[:, :, p, q] = patch.sum((2, 3)) / divisor
    return y


# N, C, H, W, kernel, options
CASES = [
    (1, 1, 1, 1, 1, {}),
    (2, 64, 9, 8, 3, {"stride": 2, "padding": 1}),
    (1, 19, 7, 6, 2, {}),
    (2, 3, 10, 11, (3, 2), {"stride": (1, 3), "padding": (1, 0)}),
    (1, 5, 8, 8, 3, {"stride": 2, "padding": (0, 1, 2, 1)}),
    (1, 130, 5, 5, 5, {}),
    (1, 7, 6, 9, 3, {"stride": 2, "ceil_mode": True}),
    (1, 7, 6, 7, 2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    (1, 2, 20, 19, 17, {"stride": 2, "padding": 3}),
    (1, 33, 7, 9, 3, {"stride": 2, "padding": "same"}),
]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", [*CASES, (1, 6, 9, 9, 3, {"dilation": (2, 3), "padding": 2, "stride": 2})], ids=str)
def test_max_matches_reference(backend, rng, name, case):
    N, C, H, W, kernel, options = case
    x = draw(rng, (N, C, H, W), name)
    y = ops.max_pool2d(x, kernel, **options)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype(name)
    explicit = {"padding": (1, 1, 1, 1)} if options.get("padding") == "same" else {}
    np.testing.assert_array_equal(f64(y), reference("max", x, kernel, **{**options, **explicit}))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_avg_matches_reference(backend, rng, name, include, case):
    N, C, H, W, kernel, options = case
    x = draw(rng, (N, C, H, W), name)
    y = ops.avg_pool2d(x, kernel, count_include_pad=include, **options)
    assert y.dtype == dtype(name)
    explicit = {"padding": (1, 1, 1, 1)} if options.get("padding") == "same" else {}
    assert_close(y, reference("avg", x, kernel, count_include_pad=include, **{**options, **explicit}), name, 9)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [1, 2, 3, (7, 5), (9, 2), 20], ids=str)
def test_adaptive_matches_definition(backend, rng, name, size):
    x = draw(rng, (2, 70, 7, 5), name)
    P, Q = pair(size)
    expected = np.empty((2, 70, P, Q))
    for p in range(P):
        for q in range(Q):
            rows = slice(p * 7 // P, -(-(p + 1) * 7 // P))
            cols = slice(q * 5 // Q, -(-(q + 1) * 5 // Q))
            expected[:, :, p, q] = f64(x)[:, :, rows, cols].mean((2, 3))
    assert_close(ops.adaptive_avg_pool2d(x, size), expected, name, 35)


FUNCTIONS = [
    lambda x, layout: ops.max_pool2d(x, 3, stride=2, padding=1, layout=layout),
    lambda x, layout: ops.max_pool2d(x, (2, 3), stride=1, padding=(1, 0, 2, 1), layout=layout),
    lambda x, layout: ops.max_pool2d(x, 2, stride=(1, 2), dilation=(3, 2), padding=1, ceil_mode=True, layout=layout),
    lambda x, layout: ops.max_pool2d(x, 2, stride=4, layout=layout),
    lambda x, layout: ops.avg_pool2d(x, 3, stride=2, padding=1, layout=layout),
    lambda x, layout: ops.avg_pool2d(x, (2, 3), padding=(1, 0, 2, 1), count_include_pad=False, layout=layout),
    lambda x, layout: ops.avg_pool2d(x, 2, stride=3, padding=1, ceil_mode=True, layout=layout),
    lambda x, layout: ops.adaptive_avg_pool2d(x, 1, layout=layout),
    lambda x, layout: ops.adaptive_avg_pool2d(x, (4, 9), layout=layout),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients(device, rng, function, layout):
    # Distinct values, far apart for the differences' step.
    x = rng.permutation(2 * 3 * 7 * 6).reshape((2, 3, 7, 6) if layout == "NCHW" else (2, 7, 6, 3)) / 10.0
    check_gradients(lambda x: function(x, layout), x, rng=rng)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("kernel", [3, 17])
def test_max_gradient_in_every_dtype(backend, rng, name, kernel):
    x = drupe.tensor(draw(rng, (2, 37, 20, 19), name), requires_grad=True)
    y = ops.max_pool2d(x, kernel, stride=2, padding=1)
    dy = draw(rng, y.shape, name)
    y.backward(dy)
    expected = np.full((2, 37, 22, 21), 0.0)
    padded = np.pad(f64(x.detach()), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    n, c = np.ogrid[:2, :37]
    for p in range(y.shape[2]):
        for q in range(y.shape[3]):
            patch = padded[:, :, 2 * p : 2 * p + kernel, 2 * q : 2 * q + kernel].reshape(2, 37, -1)
            r, s = np.divmod(patch.argmax(2), kernel)
            expected[n, c, 2 * p + r, 2 * q + s] += f64(dy)[:, :, p, q]
    assert_close(x.grad.numpy(), expected[:, :, 1:-1, 1:-1], name, 9, 4)


@pytest.mark.parametrize("C", [64, 65])
def test_max_gradient_larger_than_the_caches(rng, C):
    x = drupe.tensor(draw(rng, (2, 260, 260, C), "float32"), requires_grad=True)
    y = ops.max_pool2d(x, 2, stride=2, layout="NHWC")
    dy = draw(rng, y.shape, "float32")
    y.backward(dy)
    spread = np.repeat(np.repeat(y.detach().numpy(), 2, 1), 2, 2) == x.detach().numpy()
    np.testing.assert_array_equal(x.grad.numpy(), np.where(spread, np.repeat(np.repeat(dy, 2, 1), 2, 2), 0))


@pytest.mark.parametrize("name", FLOATS)
def test_avg_gradient_in_every_dtype(backend, rng, name):
    x = drupe.tensor(draw(rng, (2, 37, 9, 8), name), requires_grad=True)
    y = ops.avg_pool2d(x, 3, stride=2, padding=1)
    dy = draw(rng, y.shape, name)
    y.backward(dy)
    expected = np.zeros((2, 37, 11, 10))
    for p in range(y.shape[2]):
        for q in range(y.shape[3]):
            expected[:, :, 2 * p : 2 * p + 3, 2 * q : 2 * q + 3] += f64(dy)[:, :, p : p + 1, q : q + 1] / 9
    assert_close(x.grad.numpy(), expected[:, :, 1:-1, 1:-1], name, 9)


def test_averages_round_once(backend):
    # A running sum of ones would stop at 2048 in float16, at 256 in bfloat16.
    for name in ("float16", "bfloat16"):
        y = ops.avg_pool2d(np.ones((1, 9, 48, 48), dtype(name)), 48)
        np.testing.assert_array_equal(f64(y), np.ones((1, 9, 1, 1)))


def test_first_of_equal_maxima_gets_the_gradient(backend):
    for value in (0.0, -np.inf):
        x = drupe.tensor(np.full((1, 20, 4, 4), value, np.float32), requires_grad=True)
        y = ops.max_pool2d(x, 3, stride=1, padding=1)
        y.backward(np.ones(y.shape, np.float32))
        # The first element inside each of the four windows: rows 0, 0, 1 and 2.
        rows = np.array([2.0, 1, 1, 0])
        np.testing.assert_array_equal(x.grad.numpy()[0, 7], np.outer(rows, rows))


def test_nan_propagates(backend):
    x = np.zeros((1, 20, 6, 6), np.float32)
    x[0, :, 1, 1] = np.nan
    x[0, :, 1, 2] = 5
    leaf = drupe.tensor(x, requires_grad=True)
    y = ops.max_pool2d(leaf, 3)
    assert np.isnan(y.detach().numpy()[0, :, 0, 0]).all()
    np.testing.assert_array_equal(np.isnan(y.detach().numpy()).sum((2, 3)), np.ones((1, 20)))
    y.backward(np.ones(y.shape, np.float32))
    np.testing.assert_array_equal(leaf.grad.numpy()[0, :, 1, 1], np.ones(20))
    np.testing.assert_array_equal(np.isnan(ops.max_pool2d(x, 3)), np.isnan(y.detach().numpy()))
    assert np.isnan(ops.avg_pool2d(x, 3)[0, :, 0, 0]).all()
    assert np.isfinite(ops.avg_pool2d(x, 3)[0, :, 1]).all()


def test_dilated_window_between_the_elements(backend):
    x = drupe.tensor(np.ones((1, 3, 1, 4)), requires_grad=True)
    y = ops.max_pool2d(x, (2, 1), dilation=(3, 1), padding=(2, 2, 0, 0), stride=1)
    np.testing.assert_array_equal(y.detach().numpy()[0, 0, :, 0], [-np.inf, -np.inf])
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(x.grad.numpy(), np.zeros(x.shape))


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_layouts_agree_and_the_result_is_channels_last(backend, rng, function):
    x = draw(rng, (2, 35, 7, 6), "float32")
    expected = function(x, "NCHW")
    assert expected.transpose(0, 2, 3, 1).flags.c_contiguous
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(function(last.transpose(0, 3, 1, 2), "NCHW"), expected)
    np.testing.assert_array_equal(function(last, "NHWC"), expected.transpose(0, 2, 3, 1))
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    np.testing.assert_array_equal(function(strided, "NCHW"), expected)


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_memory_that_vectors_cannot_read(device, rng, function):
    x = draw(rng, (2, 7, 6, 16), "float32")
    flat = drupe.tensor(np.concatenate([[np.float32(0)], x.ravel()]))
    leaves = [drupe.tensor(x, requires_grad=True), drupe.Tensor(flat.raw.slice(0, 1, flat.size, 1))]
    leaves[1] = drupe.Tensor(ops.reshape(leaves[1], x.shape).raw, requires_grad=True)
    assert leaves[1].raw.data_ptr % 16 != 0
    ys = [function(leaf, "NHWC") for leaf in leaves]
    for y in ys:
        y.backward(np.full(y.shape, 0.3, np.float32))
    np.testing.assert_array_equal(ys[0].detach().numpy(), ys[1].detach().numpy())
    np.testing.assert_array_equal(leaves[0].grad.numpy(), leaves[1].grad.numpy())


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
@pytest.mark.parametrize("shape", [(0, 3, 7, 6), (2, 0, 7, 6)], ids=str)
def test_empty_input(backend, function, shape):
    x = drupe.tensor(np.ones(shape), requires_grad=True)
    y = function(x, "NCHW")
    assert y.shape[:2] == shape[:2]
    y.backward(np.ones(y.shape))
    assert x.grad.shape == shape


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_same_bits_on_any_number_of_threads(rng, function):
    x = draw(rng, (3, 20, 17, 13), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaf = drupe.tensor(x, requires_grad=True)
        y = function(leaf, "NCHW")
        y.backward(np.full(y.shape, 0.3, np.float32))
        results.append((y.detach().numpy(), leaf.grad.numpy()))
    drupe.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0][0], other[0])
        np.testing.assert_array_equal(results[0][1], other[1])


def test_random_geometries(backend, rng):
    for _ in range(80):
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        dilation = tuple(int(v) for v in rng.integers(1, 3, 2))
        span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        pads = [tuple(int(v) for v in rng.integers(0, s, 2)) for s in span]
        shape = [int(rng.integers(max(1, s - sum(p)), 12)) for s, p in zip(span, pads, strict=True)]
        options = {
            "stride": tuple(int(v) for v in rng.integers(1, 5, 2)),
            "padding": pads[0] + pads[1],
            "ceil_mode": bool(rng.integers(2)),
        }
        x = draw(rng, (2, int(rng.integers(1, 40)), *shape))
        message = f"{shape} {kernel} {dilation} {options}"
        y = ops.max_pool2d(x, kernel, dilation=dilation, **options)
        np.testing.assert_array_equal(y, reference("max", x, kernel, dilation=dilation, **options), message)
        # Linear as long as no other element becomes the largest.
        leaf = drupe.tensor(x, requires_grad=True)
        dy, u = draw(rng, y.shape), 1e-9 * draw(rng, x.shape)
        ops.max_pool2d(leaf, kernel, dilation=dilation, **options).backward(dy)
        moved = reference("max", x + u, kernel, dilation=dilation, **options)
        finite = np.isfinite(y)
        along = np.sum(dy[finite] * (moved[finite] - y[finite]))
        np.testing.assert_allclose(np.sum(leaf.grad.numpy() * u), along, rtol=1e-4, atol=1e-12, err_msg=message)
        if dilation == (1, 1):
            include = bool(rng.integers(2))
            leaf = drupe.tensor(x, requires_grad=True)
            y = ops.avg_pool2d(leaf, kernel, count_include_pad=include, **options)
            expected = reference("avg", x, kernel, count_include_pad=include, **options)
            np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-12, err_msg=message)
            # Linear in x: <dy, avg(u)> = <dx, u>.
            dy, u = draw(rng, y.shape), draw(rng, x.shape)
            y.backward(dy)
            along = np.sum(dy * reference("avg", u, kernel, count_include_pad=include, **options))
            np.testing.assert_allclose(np.sum(leaf.grad.numpy() * u), along, rtol=1e-9, atol=1e-9, err_msg=message)


@pytest.mark.parametrize("op", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize(
    ("x", "kernel", "options", "error", "message"),
    [
        ((3, 5, 5), 2, {}, ValueError, r"pool2d\] x is \(3, 5, 5\): expected 4 dimensions, NCHW"),
        ((1, 3, 5, 5), 6, {}, ValueError, r"window's height is 6 .* the padded image's is 5"),
        ((1, 3, 5, 5), 0, {}, ValueError, r"the kernel is 0 x 0"),
        ((1, 3, 5, 5), (1, 2, 3), {}, ValueError, r"the kernel is \(1, 2, 3\): expected one or two"),
        ((1, 3, 5, 5), 2, {"stride": 0}, ValueError, r"stride is \(0,\): expected at least 1"),
        ((1, 3, 5, 5), 2, {"padding": -1}, ValueError, r"padding is \(-1,\): expected at least 0"),
        ((1, 3, 5, 5), 2, {"padding": 2}, ValueError, r"the padding is 2 and 2, the window 2: .* smaller"),
        ((1, 3, 5, 5), 2, {"padding": "full"}, ValueError, r'padding is "full"'),
        ((1, 3, 5, 0), 2, {}, ValueError, r"the image is 5 x 0"),
        ((1, 3, 5, 5), 2, {"layout": "HWCN"}, ValueError, r'layout is "HWCN"'),
        ((1, 3, 5, 5), 2.5, {}, TypeError, r"kernel_size is 2.5: expected whole numbers"),
        ((1, 3, 5, 5), 2, {"stride": "a"}, TypeError, r"stride is 'a': expected whole numbers"),
    ],
)
def test_errors_name_what_is_wrong(device, op, x, kernel, options, error, message):
    with pytest.raises(error, match=message):
        op(np.ones(x), kernel, **options)


def test_errors_of_the_others(device):
    with pytest.raises(ValueError, match=r"dilation is \(0,\): expected at least 1"):
        ops.max_pool2d(np.ones((1, 1, 4, 4)), 2, dilation=0)
    with pytest.raises(ValueError, match=r"output_size is \(0,\): expected at least 1"):
        ops.adaptive_avg_pool2d(np.ones((1, 1, 4, 4)), 0)
    with pytest.raises(ValueError, match=r"output_size is \(1, 2, 3\): expected one or two"):
        ops.adaptive_avg_pool2d(np.ones((1, 1, 4, 4)), (1, 2, 3))
    with pytest.raises(ValueError, match=r"the image is 0 x 4"):
        ops.adaptive_avg_pool2d(np.ones((1, 1, 0, 4)), 1)
    with pytest.raises(TypeError, match=r"\[adaptive_avg_pool2d\] x is int32"):
        ops.adaptive_avg_pool2d(np.ones((1, 1, 4, 4), np.int32), 1)
