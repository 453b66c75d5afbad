from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

# Below and above a vector of every ISA, its four partial sums, and the stretch of 64 such.
SIZES = [1, 2, 15, 16, 17, 63, 64, 65, 130, 300, 768, 4096, 4103, 8200]


def reference(x, weight=None, bias=None, *, residual=None, eps=1e-5, ndim=1):
    h = f64(x) if residual is None else f64(x) + f64(residual)
    axes = tuple(range(h.ndim - ndim, h.ndim))
    y = (h - h.mean(axes, keepdims=True)) / np.sqrt(h.var(axes, keepdims=True) + eps)
    if weight is not None:
        y = y * f64(weight)
    return y if bias is None else y + f64(bias)


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_matches_numpy(backend, rng, name, size):
    x, weight, bias = draw(rng, (5, size), name), draw(rng, size, name), draw(rng, size, name)
    y = ops.layer_norm(x, weight, bias)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype(name)
    assert_close(y, reference(x, weight, bias), name, size, 4)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_optional_operands(backend, rng, name, with_weight, with_bias, with_residual):
    x = draw(rng, (3, 4, 37), name)
    weight = draw(rng, 37, name) if with_weight else None
    bias = draw(rng, 37, name) if with_bias else None
    residual = draw(rng, x.shape, name) if with_residual else None
    y = ops.layer_norm(x, weight, bias, residual=residual)
    assert_close(y, reference(x, weight, bias, residual=residual), name, 37, 4)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_trailing_dimensions(backend, rng, ndim):
    x = rng.standard_normal((3, 5, 7))
    weight, bias = rng.standard_normal((2, *x.shape[-ndim:]))
    y = ops.layer_norm(x, weight, bias, ndim=ndim, eps=0.3)
    np.testing.assert_allclose(y, reference(x, weight, bias, ndim=ndim, eps=0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_float32_parameters_for_16_bit_input(backend, rng, name):
    x, weight, bias = draw(rng, (4, 50), name), draw(rng, 50, "float32"), draw(rng, 50, "float32")
    x, weight, bias = (drupe.tensor(a, requires_grad=True) for a in (x, weight, bias))
    y = ops.layer_norm(x, weight, bias)
    arrays = [t.detach().numpy() for t in (x, weight, bias)]
    assert_close(y.detach(), reference(*arrays), name, 50, 4)
    y.backward(np.ones(y.shape, dtype(name)))
    assert weight.grad.dtype == bias.grad.dtype == np.float32
    np.testing.assert_array_equal(bias.grad.numpy(), np.full(50, 4))


@pytest.mark.parametrize("size", [50, 1000, 5000])
def test_large_mean_does_not_cancel(backend, rng, size):
    x = (rng.standard_normal((6, size)) + 1e4).astype(np.float32)
    np.testing.assert_allclose(ops.layer_norm(x), reference(x), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("size", [7, 64, 1000, 5000])
def test_first_quarter_far_from_the_rest(backend, rng, size):
    x = rng.standard_normal((5, size)).astype(np.float32)
    x[:, : size // 4] += np.array([[1e4], [-1e4], [1e2], [1e6], [0]], np.float32)
    np.testing.assert_allclose(ops.layer_norm(x), reference(x), rtol=1e-5, atol=5e-6)


def test_large_mean_in_backward(backend, rng):
    x, dy = (rng.standard_normal((6, 200)) + 1e4).astype(np.float32), rng.standard_normal((6, 200)).astype(np.float32)
    leaf = drupe.tensor(x, requires_grad=True)
    ops.layer_norm(leaf).backward(dy)
    h, g = f64(x), f64(dy)
    rstd = 1 / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    xhat = (h - h.mean(-1, keepdims=True)) * rstd
    expected = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    # The saved mean is rounded to float32: 5e-4 here.
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3)], ids=str)
def test_no_elements(backend, shape):
    x = drupe.zeros(shape, "float64", requires_grad=True)
    weight = drupe.zeros(shape[-1:], "float64", requires_grad=True)
    y = ops.layer_norm(x, weight)
    assert y.shape == shape
    y.backward(np.zeros(shape))
    assert x.grad.shape == shape
    np.testing.assert_array_equal(weight.grad.numpy(), np.zeros(shape[-1]))


def test_strided_misaligned_and_read_only_operands(backend, rng):
    x = draw(rng, (40, 30), "float32").T[::2, ::-1]
    residual = draw(rng, (15, 80), "float32")[:, ::2]
    buffer = np.zeros(4 * 40 + 1, np.uint8)
    weight = buffer[1:].view(np.float32)
    weight[...] = draw(rng, 40, "float32")
    bias = draw(rng, 80, "float32")[::2]
    bias.flags.writeable = False
    y = ops.layer_norm(x, weight, bias, residual=residual)
    assert_close(y, reference(x, weight, bias, residual=residual), "float32", 40, 4)


def test_nan_and_infinity_stay_in_their_row(backend, rng):
    x = rng.standard_normal((4, 20)).astype(np.float32)
    x[1, 3], x[2, 19] = np.nan, np.inf
    y = ops.layer_norm(x)
    assert np.isnan(y[1:3]).all()
    assert np.isfinite(y[[0, 3]]).all()


def test_constant_row_gives_the_bias(backend):
    y = ops.layer_norm(np.full((2, 33), 7.25, np.float32), None, np.arange(33, dtype=np.float32))
    np.testing.assert_array_equal(y, np.tile(np.arange(33), (2, 1)))


@pytest.mark.parametrize("rows", [1, 3, 4, 21, 70])
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients(backend, rng, rows, with_residual):
    size = 5 if rows > 10 else 19
    x, weight, bias = rng.standard_normal((rows, size)), rng.standard_normal(size), rng.standard_normal(size)
    if with_residual:
        check_gradients(
            lambda x, w, b, r: ops.layer_norm(x, w, b, residual=r, eps=0.1),
            x, weight, bias, rng.standard_normal(x.shape), rng=rng,
        )  # fmt: skip
    else:
        check_gradients(lambda x, w, b: ops.layer_norm(x, w, b, eps=0.1), x, weight, bias, rng=rng)


def test_gradients_over_two_dimensions_without_parameters(device, rng):
    check_gradients(lambda x: ops.layer_norm(x, ndim=2), rng.standard_normal((2, 3, 4)), rng=rng)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(130, 96), (21, 97), (5, 1000), (3, 4100), (9, 8208), (270, 520)], ids=str)
def test_gradients_of_every_dtype(backend, rng, name, shape):
    rows, size = shape
    x, weight, bias, dy = (draw(rng, s, name) for s in (shape, size, size, shape))
    leaves = [drupe.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    ops.layer_norm(*leaves).backward(dy)
    h, w, d = f64(x), f64(weight), f64(dy)
    rstd = 1 / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    xhat = (h - h.mean(-1, keepdims=True)) * rstd
    g = d * w
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    for leaf, expected, length in zip(leaves, (dx, (d * xhat).sum(0), d.sum(0)), (size, rows, rows), strict=True):
        assert leaf.grad.dtype == dtype(name)
        assert_close(leaf.grad, expected, name, length, np.sqrt(length))


def test_strided_gradient(device, rng):
    x = drupe.tensor(rng.standard_normal((6, 7)), requires_grad=True)
    dy = rng.standard_normal((7, 6)).T
    ops.layer_norm(x).backward(dy)
    strided = x.grad.numpy()
    x.grad = None
    ops.layer_norm(x).backward(np.ascontiguousarray(dy))
    np.testing.assert_array_equal(strided, x.grad.numpy())


@pytest.mark.parametrize("shape", [(300, 130), (3, 70000)], ids=str)
def test_same_bits_on_any_number_of_threads(backend, rng, shape):
    x, weight, bias, dy = (draw(rng, s, "float32") for s in (shape, shape[1], shape[1], shape))
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(a, requires_grad=True) for a in (x, weight, bias)]
        y = ops.layer_norm(*leaves)
        y.backward(dy)
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((3, 4), (3,)), {}, ValueError, r"\[layer_norm\] weight is \(3,\): expected \(4,\)"),
        (((3, 4), (4,), (1, 4)), {}, ValueError, r"bias is \(1, 4\): expected \(4,\)"),
        (((3, 4),), {"residual": np.ones((4,))}, ValueError, r"x is \(3, 4\), residual is \(4,\): expected one shape"),
        (((3, 4),), {"ndim": 3}, ValueError, r"ndim is 3, x is \(3, 4\): expected 1 to 2"),
        (((3, 4),), {"ndim": 0}, ValueError, r"ndim is 0"),
        (((),), {}, ValueError, r"ndim is 1, x is \(\)"),
        (((3, 4),), {"eps": -1e-5}, ValueError, r"eps is -1e-05"),
        (((3, 4),), {"eps": float("nan")}, ValueError, r"eps is nan"),
        (((3, 4),), {"residual": np.ones((3, 4), np.float32)}, TypeError, r"x is float64, residual is float32"),
    ],
)
def test_errors_name_what_is_wrong(device, arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.layer_norm(*(np.ones(shape) for shape in arguments), **options)


def test_dtype_errors():
    with pytest.raises(TypeError, match=r"\[layer_norm\] x is int32: expected float32"):
        ops.layer_norm(np.ones((2, 2), np.int32))
    with pytest.raises(TypeError, match=r"x is float64, weight is float32: expected float64"):
        ops.layer_norm(np.ones((2, 2)), np.ones(2, np.float32))
    with pytest.raises(TypeError, match=r"x is float16, bias is float64: expected float16 or float32"):
        ops.layer_norm(np.ones((2, 2), np.float16), None, np.ones(2))


def test_results_that_pass_the_caches_are_those_that_do_not(isa, rng):
    """Above 32 MiB they are written past the caches, where rows begin anywhere in a register; half of them is not."""
    x, dy = rng.standard_normal((2, 8600, 1001), np.float32)

    def run(part):
        leaf = drupe.tensor(x[part], requires_grad=True)
        y = ops.layer_norm(leaf)
        y.backward(dy[part])
        return y.detach().numpy(), leaf.grad.numpy()

    halves = zip(run(slice(None, 4300)), run(slice(4300, None)), strict=True)
    for whole, (top, bottom) in zip(run(slice(None)), halves, strict=True):
        np.testing.assert_array_equal(whole[:4300], top)
        np.testing.assert_array_equal(whole[4300:], bottom)
