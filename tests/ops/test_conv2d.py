from __future__ import annotations

import itertools

import numpy as np
import pytest

import drupe
from conv2d_reference import check_geometry, check_odd_memory, draw, pair, reference, sides
from drupe import _C, ops
from gradients import check_gradients
from reference import ACTIVATIONS, EPSILON, FLOATS, assert_close, dtype, f64

# N, C, H, W, K, R, S, options: each axis of the kernels' blocking crossed at least once.
CASES = [
    (1, 1, 1, 1, 1, 1, 1, {}),
    (2, 3, 5, 4, 2, 3, 2, {"padding": 1}),
    (1, 64, 9, 11, 64, 3, 3, {"padding": 1}),
    (2, 3, 23, 21, 20, 7, 7, {"stride": 2, "padding": 3}),
    (1, 5, 8, 9, 33, 1, 1, {}),
    (2, 40, 7, 7, 70, 1, 1, {"stride": 2}),
    (1, 17, 10, 12, 35, 3, 3, {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    (1, 6, 9, 8, 4, 2, 3, {"stride": 3, "padding": (2, 0, 1, 3)}),
    (1, 4, 11, 11, 6, 3, 3, {"dilation": 4, "padding": 3}),
    (2, 12, 6, 7, 8, 3, 3, {"groups": 4, "padding": 1}),
    (1, 18, 6, 7, 27, 3, 2, {"groups": 9, "stride": 2}),
    (2, 19, 9, 12, 19, 3, 3, {"groups": 19, "padding": 1}),
    (1, 8, 9, 10, 8, 5, 3, {"groups": 8, "padding": (2, 1), "stride": (2, 3), "dilation": (2, 1)}),
    (1, 3, 5, 5, 6, 3, 3, {"groups": 3, "padding": 1}),
    (1, 70, 6, 5, 130, 3, 3, {"padding": 4}),
]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(backend, rng, name, case):
    N, C, H, W, K, R, S, options = case
    x, w = draw(rng, (N, C, H, W), name), draw(rng, (K, C // options.get("groups", 1), R, S), name)
    y = ops.conv2d(x, w, **options)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype(name)
    length = w[0].size
    assert_close(y, reference(x, w, **options), name, length, np.sqrt(length))


# Channels and outputs of a group, and groups: those that share a register, in whole registers or straddling them, that
# fill one or some, and that are a product.
GROUPS = [
    (1, 2, 9), (2, 1, 20), (2, 2, 8), (3, 3, 7), (4, 4, 8), (4, 4, 9), (5, 3, 6), (3, 5, 11), (8, 8, 4), (12, 12, 3),
    (16, 4, 6), (65, 2, 2), (16, 16, 3), (7, 16, 2), (24, 24, 2), (32, 32, 2), (3, 20, 2), (33, 40, 2), (3, 32, 1),
    (4, 33, 1),
]  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", GROUPS, ids=str)
@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        ((5, 31), (3, 3), {"padding": 1}),
        ((9, 16), (2, 3), {"stride": 2, "padding": (1, 2)}),
        ((6, 8), (1, 1), {}),
        ((3, 4), (3, 2), {"dilation": 2, "padding": 4}),
    ],
    ids=str,
)
def test_groups(backend, rng, name, case, size, kernel, options):
    channels, outputs, groups = case
    x, w = draw(rng, (2, channels * groups, *size), name), draw(rng, (outputs * groups, channels, *kernel), name)
    bias = draw(rng, outputs * groups, name)
    y = ops.conv2d(x, w, bias=bias, groups=groups, **options)
    z = reference(x, w, groups=groups, **options) + f64(bias)[:, None, None]
    assert_close(y, z, name, w[0].size, np.sqrt(w[0].size))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("groups", [1, 2, 12], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(backend, rng, name, groups, activation):
    x, w = draw(rng, (2, 12, 5, 6), name), draw(rng, (12, 12 // groups, 3, 3), name)
    bias, residual = draw(rng, 12, name), draw(rng, (2, 12, 5, 6), name)
    y = ops.conv2d(x, w, bias=bias, residual=residual, padding=1, groups=groups, activation=activation)
    z = reference(x, w, padding=1, groups=groups) + f64(bias)[:, None, None] + f64(residual)
    assert_close(y, ACTIVATIONS[activation](z), name, w[0].size, 10)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_epilogue_of_a_pointwise_convolution(backend, rng, activation):
    x, w, bias, residual = draw(rng, (2, 7, 4, 3)), draw(rng, (5, 7, 1, 1)), draw(rng, 5), draw(rng, (2, 5, 4, 3))
    y = ops.conv2d(x, w, bias=bias, residual=residual, activation=activation)
    z = reference(x, w) + bias[:, None, None] + residual
    np.testing.assert_allclose(y, ACTIVATIONS[activation](z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "algorithm"), [(1, "auto"), (3, "direct"), (3, "auto")])
def test_layouts_agree_and_the_result_is_channels_last(backend, rng, kernel, algorithm):
    x, w = draw(rng, (2, 10, 7, 6), "float32"), draw(rng, (9, 10, kernel, kernel), "float32")
    expected = ops.conv2d(x, w, padding=1, algorithm=algorithm)
    assert expected.transpose(0, 2, 3, 1).flags.c_contiguous
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(ops.conv2d(last.transpose(0, 3, 1, 2), w, padding=1, algorithm=algorithm), expected)
    y = ops.conv2d(last, w, padding=1, layout="NHWC", algorithm=algorithm)
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y, expected.transpose(0, 2, 3, 1))


def test_channels_last_input_is_not_copied(rng):
    x, w = drupe.tensor(draw(rng, (4, 32, 32, 64), "float32")), draw(rng, (1, 64, 3, 3), "float32")
    view = drupe.Tensor(x.raw.permute((0, 3, 1, 2)))
    ops.conv2d(view, w)
    before = drupe.memory_stats()["in_use_bytes"]
    _C.reset_peak_memory()
    ops.conv2d(view, w)
    assert drupe.memory_stats()["peak_bytes"] - before < x.nbytes


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_strided_operands(backend, rng, name):
    x = draw(rng, (4, 6, 9, 20), name)[::2, ::-1, 1:, ::3]
    w = draw(rng, (6, 5, 3, 3), name).transpose(1, 0, 3, 2)[:, :, ::-1]
    residual = draw(rng, (2, 5, 5, 6), name).transpose(0, 1, 3, 2)
    y = ops.conv2d(x, w, bias=draw(rng, 10, name)[::2] * 0, residual=residual)
    assert_close(y, reference(x, w) + f64(residual), name, 54, 8)


def test_misaligned_and_read_only_operands(backend, rng):
    buffer = np.zeros(4 * 2 * 3 * 5 * 5 + 1, np.uint8)
    x = buffer[1:].view(np.float32).reshape(2, 3, 5, 5)
    x[...] = rng.standard_normal(x.shape)
    w = draw(rng, (4, 3, 3, 3), "float32")
    w.flags.writeable = False
    assert_close(ops.conv2d(x, w), reference(x, w), "float32", 27, 5)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_follows_tensorflow(device, rng, size, stride):
    x, w = draw(rng, (1, 2, size, 5)), draw(rng, (3, 2, 3, 4))
    y = ops.conv2d(x, w, padding="same", stride=stride)
    assert y.shape == (1, 3, -(-size // stride), -(-5 // stride))
    total = [max(0, (-(-n // stride) - 1) * stride + k - n) for n, k in ((size, 3), (5, 4))]
    explicit = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    np.testing.assert_array_equal(y, ops.conv2d(x, w, padding=explicit, stride=stride))
    np.testing.assert_allclose(y, reference(x, w, padding=explicit, stride=stride), rtol=1e-12, atol=1e-12)


def test_valid_and_nested_padding(rng):
    x, w = draw(rng, (1, 2, 5, 6)), draw(rng, (3, 2, 3, 3))
    np.testing.assert_array_equal(ops.conv2d(x, w, padding="valid"), ops.conv2d(x, w))
    nested = ops.conv2d(x, w, padding=((1, 2), (3, 4)))
    np.testing.assert_array_equal(nested, ops.conv2d(x, w, padding=(1, 2, 3, 4)))
    np.testing.assert_allclose(nested, reference(x, w, padding=(1, 2, 3, 4)), rtol=1e-12, atol=1e-12)


def test_taps_that_lie_far_apart(rng):
    """What lies between them is not copied: it would not fit into memory."""
    far = 100_000
    x, w = draw(rng, (1, 3, 8, 8), "float32"), draw(rng, (32, 3, 2, 2), "float32")
    y = ops.conv2d(x, w, dilation=far, padding=far, stride=far)
    assert y.shape == (1, 32, 2, 2)
    np.testing.assert_allclose(y[0, :, 0, 0], w[:, :, 1, 1] @ x[0, :, 0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("x", "w"), [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 3, 5, 5), (0, 3, 3, 3))], ids=str)
def test_empty_output(backend, x, w):
    a, b = drupe.tensor(np.ones(x), requires_grad=True), drupe.tensor(np.ones(w), requires_grad=True)
    bias = drupe.tensor(np.ones(w[0]), requires_grad=True)
    y = ops.conv2d(a, b, bias=bias)
    assert y.shape == (x[0], w[0], 3, 3)
    y.backward(np.ones(y.shape))
    for leaf in (a, b, bias):
        np.testing.assert_array_equal(leaf.grad.numpy(), np.zeros(leaf.shape))


def test_no_channels_leave_the_epilogue(backend):
    x, w = drupe.tensor(np.ones((1, 0, 4, 4)), requires_grad=True), np.ones((2, 0, 3, 3))
    y = ops.conv2d(x, w, bias=np.array([-1.0, 2.0]), activation="relu")
    np.testing.assert_array_equal(y.detach().numpy()[0, :, 0, 0], [0, 2])
    y.backward(np.ones(y.shape))
    assert x.grad.shape == (1, 0, 4, 4)


def test_nan_and_infinity_stay_where_the_windows_see_them(backend):
    x = np.zeros((1, 20, 9, 9), np.float32)
    x[0, 3, 4, 4] = np.nan
    x[0, 3, 0, 0] = np.inf
    y = ops.conv2d(x, np.ones((5, 20, 3, 3), np.float32), padding=1, activation="relu", algorithm="direct")
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(expected, y.shape))
    assert np.isposinf(y[0, :, :2, :2]).all()


GRADIENTS = [
    (2, 3, 5, 4, 2, 3, 2, {"padding": 1}),
    (1, 2, 7, 6, 3, 3, 3, {"stride": 2, "padding": (1, 0)}),
    (1, 2, 5, 5, 2, 1, 1, {"stride": 2}),
    (2, 3, 3, 4, 2, 1, 1, {}),
    (1, 2, 8, 7, 2, 3, 3, {"stride": (3, 2), "dilation": (2, 1), "padding": (2, 0, 1, 3)}),
    (1, 2, 9, 5, 2, 2, 2, {"stride": (4, 2), "dilation": (2, 3)}),
    (1, 4, 5, 6, 6, 3, 3, {"groups": 2, "padding": 1}),
    (1, 3, 6, 7, 3, 3, 3, {"groups": 3, "padding": 1, "stride": (2, 1)}),
    (1, 2, 7, 9, 4, 3, 2, {"groups": 2, "dilation": (1, 3), "stride": (1, 2)}),
    (1, 2, 6, 5, 3, 3, 3, {"padding": "same", "stride": 2}),
]
FEW_DIFFERENCES = [GRADIENTS[i] for i in (2, 5)]


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients(device, rng, case, layout):
    if device == "cuda" and (case not in FEW_DIFFERENCES or layout == "NHWC"):
        pytest.skip("many launches: test_gradients_match_reference has all of its kernels")
    N, C, H, W, K, R, S, options = case
    x = draw(rng, (N, C, H, W) if layout == "NCHW" else (N, H, W, C))
    w, bias = draw(rng, (K, C // options.get("groups", 1), R, S)), draw(rng, K)
    residual = draw(rng, ops.conv2d(x, w, layout=layout, **options).shape)

    def function(x, w, bias, residual):
        return ops.conv2d(x, w, bias=bias, residual=residual, layout=layout, **options)

    check_gradients(function, x, w, bias, residual, rng=rng)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel", [1, 2])
def test_gradients_through_the_activation(device, rng, activation, kernel):
    x, w, bias = draw(rng, (1, 2, 4, 3)), draw(rng, (3, 2, kernel, kernel)), draw(rng, 3)
    check_gradients(lambda x, w, b: ops.conv2d(x, w, bias=b, activation=activation), x, w, bias, rng=rng)


def check_gradients_of(x_shape, w_shape, options, name, rng):
    """Beside the gradients from the definition, tap by tap."""
    N, C, H, W = x_shape
    K, _, R, S = w_shape
    x = drupe.tensor(draw(rng, x_shape, name), requires_grad=True)
    w = drupe.tensor(draw(rng, w_shape, name), requires_grad=True)
    bias = drupe.tensor(np.zeros(K, dtype(name)), requires_grad=True)
    y = ops.conv2d(x, w, bias=bias, **options)
    dy = draw(rng, y.shape, name)
    y.backward(dy)
    fx, fw, fy = f64(x.detach()), f64(w.detach()), f64(dy)
    dx, dw = np.zeros_like(fx), np.zeros_like(fw)
    (sh, sw), (dh, dwid) = pair(options.get("stride", 1)), pair(options.get("dilation", 1))
    top, bottom, left, right = sides(options.get("padding", 0))
    pads = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded, padded_dx = np.pad(fx, pads), np.pad(dx, pads)
    P, Q, groups = y.shape[2], y.shape[3], options.get("groups", 1)
    for g, r, s in itertools.product(range(groups), range(R), range(S)):
        rows = slice(r * dh, r * dh + (P - 1) * sh + 1, sh)
        cols = slice(s * dwid, s * dwid + (Q - 1) * sw + 1, sw)
        c, k = slice(g * C // groups, (g + 1) * C // groups), slice(g * K // groups, (g + 1) * K // groups)
        padded_dx[:, c, rows, cols] += np.einsum("nkpq,kc->ncpq", fy[:, k], fw[k, :, r, s])
        dw[k, :, r, s] = np.einsum("nkpq,ncpq->kc", fy[:, k], padded[:, c, rows, cols])
    dx = padded_dx[:, :, top : top + H, left : left + W]
    taps = K // groups * R * S
    assert_close(x.grad.numpy(), dx, name, taps, np.sqrt(taps))
    assert_close(w.grad.numpy(), dw, name, N * P * Q, np.sqrt(N * P * Q))
    assert_close(bias.grad.numpy(), fy.sum((0, 2, 3)), name, N * P * Q, np.sqrt(N * P * Q))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_match_reference(backend, rng, name, case):
    N, C, H, W, K, R, S, options = case
    check_gradients_of((N, C, H, W), (K, C // options.get("groups", 1), R, S), options, name, rng)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", GROUPS, ids=str)
@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [((5, 30), (3, 3), {"padding": 1}), ((9, 17), (2, 3), {"stride": 2, "padding": (1, 2)})],
    ids=str,
)
def test_gradients_of_groups(backend, rng, name, case, size, kernel, options):
    channels, outputs, groups = case
    shapes = (2, channels * groups, *size), (outputs * groups, channels, *kernel)
    check_gradients_of(*shapes, {**options, "groups": groups}, name, rng)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 64])
def test_gradients_of_many_pixels(backend, rng, name, groups):
    """Enough pixels for several stretches of them, and rows for several blocks."""
    C, K = (16, 72) if backend == "cuda" and groups == 1 else (64, 128 if groups == 1 else 64)
    H, W = (14, 15) if backend == "cuda" else (40, 41)
    x = drupe.tensor(draw(rng, (2, C, H, W), name), requires_grad=True)
    w = drupe.tensor(draw(rng, (K, C // groups, 3, 3), name), requires_grad=True)
    y = ops.conv2d(x, w, padding=1, groups=groups)
    assert_close(y.detach().numpy(), reference(x.detach(), w.detach(), padding=1, groups=groups), name, 9 * C, 3 * C)
    dy = draw(rng, y.shape, name)
    y.backward(dy)
    padded = np.pad(f64(x.detach()), ((0, 0), (0, 0), (1, 1), (1, 1)))
    pixels = 2 * H * W
    for r, s in [(0, 0), (1, 2), (2, 1)]:
        patch = padded[:, :, r : r + H, s : s + W]
        if groups == 1:
            expected = np.einsum("nkpq,ncpq->kc", f64(dy), patch, optimize=True)
        else:
            expected = np.einsum("ncpq,ncpq->c", f64(dy), patch)[:, None]
        assert_close(w.grad.numpy()[:, :, r, s], expected, name, pixels, np.sqrt(pixels))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize(("groups", "algorithm"), [(1, "direct"), (2, "auto"), (16, "auto")])
def test_memory_that_vectors_cannot_read(device, rng, name, groups, algorithm):
    check_odd_memory(rng, name, groups, algorithm)


def test_gradients_that_arrive_strided_or_broadcast(backend, rng):
    x, w = draw(rng, (2, 3, 5, 6)), draw(rng, (4, 3, 3, 3))
    grads = []
    whole = draw(rng, (1, 4, 1, 1)) * np.ones((2, 4, 3, 4))
    for dy in (whole, np.broadcast_to(whole[:1, :, :1, :1], whole.shape), whole.repeat(2, axis=3)[..., ::2]):
        a, b = drupe.tensor(x, requires_grad=True), drupe.tensor(w, requires_grad=True)
        ops.conv2d(a, b, activation="tanh").backward(drupe.Tensor(dy))
        grads.append((a.grad.numpy(), b.grad.numpy()))
    for other in grads[1:]:
        np.testing.assert_array_equal(grads[0][0], other[0])
        np.testing.assert_array_equal(grads[0][1], other[1])


def test_only_the_gradients_asked_for(device, rng):
    x, w = drupe.tensor(draw(rng, (1, 2, 4, 4))), drupe.tensor(draw(rng, (3, 2, 3, 3)), requires_grad=True)
    ops.conv2d(x, w).backward(np.ones((1, 3, 2, 2)))
    assert x.grad is None
    assert w.grad is not None


@pytest.mark.parametrize(
    ("groups", "stride", "algorithm"),
    [(1, 2, "auto"), (1, 1, "direct"), (1, 1, "winograd"), (2, 2, "auto"), (16, 2, "auto"), (32, 2, "auto")],
)
def test_same_bits_on_any_number_of_threads(rng, groups, stride, algorithm):
    x, w = draw(rng, (3, 32, 30, 31), "float32"), draw(rng, (32, 32 // groups, 3, 3), "float32")
    bias = draw(rng, 32, "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(a, requires_grad=True) for a in (x, w, bias)]
        y = ops.conv2d(
            leaves[0], leaves[1], bias=leaves[2], stride=stride, padding=1, groups=groups, algorithm=algorithm
        )
        y.backward(np.ones(y.shape, np.float32))
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_random_geometries(backend, rng):
    for _ in range(15 if backend == "cuda" else 60):
        R, S, dh, dw, sh, sw = (int(v) for v in rng.integers(1, 4, 6))
        groups = int(rng.choice([1, 1, 2, 3]))
        check_geometry(rng, (R, S), "auto", stride=(sh, sw), dilation=(dh, dw), groups=groups)


def test_half_formats_round_once(backend, rng):
    """A float32 convolution of the same numbers, rounded, is the float16 one to half a unit in the last place."""
    for name in ("float16", "bfloat16"):
        x, w = draw(rng, (1, 48, 6, 6), name), draw(rng, (32, 48, 3, 3), name)
        wide = ops.conv2d(x.astype(np.float32), w.astype(np.float32))
        y = ops.conv2d(x, w)
        assert np.all(np.abs(f64(y) - f64(wide)) <= EPSILON[name] * np.abs(f64(wide)) * 0.51 + 1e-5)


@pytest.mark.parametrize(
    ("x", "w", "options", "error", "message"),
    [
        ((3, 5, 5), (4, 3, 3, 3), {}, ValueError, r"\[conv2d\] x is \(3, 5, 5\): expected 4 dimensions, NCHW"),
        ((1, 3, 5, 5), (4, 3, 3), {}, ValueError, r"weight is \(4, 3, 3\): expected 4 dimensions"),
        ((1, 3, 5, 5), (4, 2, 3, 3), {}, ValueError, r"x has 3 channels, weight is \(4, 2, 3, 3\): expected 3"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"groups": 2}, ValueError, r"x has 3 channels: groups 2 does not divide"),
        ((1, 4, 5, 5), (3, 2, 3, 3), {"groups": 2}, ValueError, r"groups 2 does not divide its 3 output channels"),
        ((1, 4, 5, 5), (4, 4, 3, 3), {"groups": 2}, ValueError, r"expected 2 input channels a group"),
        ((1, 4, 5, 5), (4, 4, 3, 3), {"groups": 0}, ValueError, r"groups is 0: expected at least 1"),
        ((1, 3, 5, 5), (4, 3, 7, 3), {}, ValueError, r"window's height is 7 .* the padded image's is 5"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"dilation": 3}, ValueError, r"height is 7 \(kernel 3, dilation 3\)"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": 0}, ValueError, r"stride is \(0,\): expected at least 1"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": (1, -2)}, ValueError, r"stride is \(1, -2\)"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": (1, 1, 1)}, ValueError, r"stride is \(1, 1, 1\): expected one or two"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"dilation": 0}, ValueError, r"dilation is \(0,\): expected at least 1"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"dilation": 2**31}, ValueError, r"less than 2\^31"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": -1}, ValueError, r"padding is \(-1,\): expected at least 0"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": (1, 1, 1)}, ValueError, r"expected one, two or four"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": ((1, 1), (1,))}, ValueError, r"expected \(\(top, bottom\)"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": 2**30}, ValueError, r"padded image is 2147483653 .* than 2\^31"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": "full"}, ValueError, r'padding is "full": expected "same"'),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"layout": "CHWN"}, ValueError, r'layout is "CHWN": expected "NCHW" or "NHWC"'),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"activation": "mish"}, ValueError, r'activation is "mish"'),
        (
            (1, 3, 5, 5),
            (4, 3, 3, 3),
            {"algorithm": "fft"},
            ValueError,
            r'algorithm is "fft": expected "auto"',
        ),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"bias": np.ones(3)}, ValueError, r"bias is \(3,\): expected \(4,\)"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"residual": np.ones((1, 4, 5, 5))}, ValueError, r"residual is \(1, 4, 5, 5\)"),
        ((1, 3, 0, 5), (4, 3, 1, 1), {}, ValueError, r"the image is 0 x 5: expected at least 1 x 1"),
        ((1, 3, 5, 5), (4, 3, 0, 3), {}, ValueError, r"the kernel is 0 x 3"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": 1.5}, TypeError, r"stride is 1.5: expected whole numbers"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": (1, None)}, TypeError, r"padding is \(1, None\): expected whole"),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"bias": np.ones(4, np.float32)}, TypeError, r"x is float64, bias is float32"),
    ],
)
def test_errors_name_what_is_wrong(device, x, w, options, error, message):
    with pytest.raises(error, match=message):
        ops.conv2d(np.ones(x), np.ones(w), **options)


def test_dtype_errors(device):
    with pytest.raises(TypeError, match=r"\[conv2d\] x is int64: expected float32"):
        ops.conv2d(np.ones((1, 1, 3, 3), np.int64), np.ones((1, 1, 3, 3), np.int64))
    with pytest.raises(TypeError, match=r"x is float32, weight is float64: expected one dtype"):
        ops.conv2d(np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 3, 3)))


def test_matches_torch(backend, rng):
    torch = pytest.importorskip("torch")
    x, w = draw(rng, (2, 16, 15, 14), "float32"), draw(rng, (24, 8, 3, 3), "float32")
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), stride=2, padding=1, groups=2)
    assert_close(ops.conv2d(x, w, stride=2, padding=1, groups=2), expected.numpy(), "float32", 72, 9)
