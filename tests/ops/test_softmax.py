from __future__ import annotations

import numpy as np
import pytest
from scipy import special

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

OPS = {"softmax": (ops.softmax, special.softmax), "log_softmax": (ops.log_softmax, special.log_softmax)}

# Every number of vectors that registers hold, both sides of the switch to long rows, and of its unrolling.
SIZES = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 80, 100, 127, 128, 129, 191, 192, 200, 257, 1000, 2049]
SIZES += [8190, 9001]


def draw(rng, shape, name):
    return (3 * rng.standard_normal(shape)).astype(dtype(name))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_matches_scipy(backend, rng, op, name, size):
    function, reference = OPS[op]
    x = draw(rng, (3, size), name)
    y = function(x)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype(name)
    assert_close(y, reference(f64(x), axis=-1), name, size, 1 if op == "softmax" else 4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        *[((5, 3), 0), ((4, 7, 5), 1), ((2, 6, 70), 1), ((33, 17), 0), ((2, 1, 3), 1), ((40,), 0), ((2, 3, 4, 9), -4)],
        *[((3, 40, 64), 1), ((2, 300, 3), 1)],
    ],
    ids=str,
)
def test_any_axis(backend, rng, op, name, shape, axis):
    function, reference = OPS[op]
    x = draw(rng, shape, name)
    assert_close(function(x, axis), reference(f64(x), axis=axis), name, shape[axis], 4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "axis"), [((0, 4), -1), ((4, 0), -1), ((4, 0), 0), ((0,), 0)], ids=str)
def test_empty(backend, op, shape, axis):
    assert OPS[op][0](np.ones(shape), axis).shape == shape


@pytest.mark.parametrize("op", OPS)
def test_strided_misaligned_and_read_only_input(backend, rng, op):
    function, reference = OPS[op]
    x = draw(rng, (12, 40), "float32")
    for view in (x.T, x[::-2, 1::3], np.broadcast_to(x[0], (5, 40))):
        assert_close(function(view), reference(f64(view), axis=-1), "float32", 40, 4)
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    shifted.flags.writeable = False
    np.testing.assert_array_equal(function(shifted), function(x))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [5, 40, 300])
@pytest.mark.parametrize("axis", [0, 1])
def test_non_finite_rows(backend, op, size, axis):
    function, _ = OPS[op]
    x = np.zeros((5, size), np.float32)
    x[0, size // 2] = np.nan
    x[1, size - 1] = np.inf
    x[2, :] = -np.inf
    x[3, 1:] = -np.inf
    x[4, 0] = 1e38
    y = function(x, -1) if axis == 1 else function(np.ascontiguousarray(x.T), 0).T
    assert np.isnan(y[:3]).all()
    certain, impossible = (1, 0) if op == "softmax" else (0, -np.inf)
    assert y[3, 0] == certain
    assert y[4, 0] == certain
    np.testing.assert_array_equal(y[3, 1:], np.full(size - 1, impossible))


@pytest.mark.parametrize("op", OPS)
def test_errors_over_all_exponents(backend, op):
    function, reference = OPS[op]
    x = -np.linspace(0, 87, 200_001, dtype=np.float32)
    pairs = np.stack([np.zeros_like(x), x], -1)  # sums of two: no error of theirs hides that of the exponential
    expected = reference(f64(pairs), axis=-1)
    bound = 4e-7 + 2.6e-9 * np.abs(f64(pairs)) if op == "softmax" else 4e-7 * (1 + np.abs(expected))
    error = np.abs(f64(function(pairs)) - expected)
    assert np.all(error <= bound * (expected if op == "softmax" else 1))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("columns", [2048, 2051])
def test_results_larger_than_the_caches(rng, op, columns):
    function, reference = OPS[op]
    x = draw(rng, (2100, columns), "float32")
    assert_close(function(x), reference(x, axis=-1), "float32", columns, 4)
    np.testing.assert_array_equal(function(x)[:7], function(x[:7]))  # to memory or to cache, the same bits


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [3, 100, 1000])
def test_rows_sum_to_one_whatever_the_shift(backend, rng, name, size):
    x = draw(rng, (4, size), name)
    np.testing.assert_allclose(f64(ops.softmax(x)).sum(-1), 1, atol=2e-2 if name == "bfloat16" else 2e-3)
    shifted = f64(x).astype(np.float32)
    assert_close(ops.softmax(shifted + np.float32(64)), ops.softmax(shifted), "float32", scale=64)
    far = np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    assert_close(ops.softmax(far), special.softmax(f64(far), axis=-1), "float32")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "axis"), [((3, 5), -1), ((2, 4, 3), 1), ((1, 1), 0), ((2, 35), 1)], ids=str)
def test_gradients(backend, rng, op, shape, axis):
    check_gradients(lambda x: OPS[op][0](x, axis), rng.standard_normal(shape), rng=rng)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 257), -1), ((2, 9, 70), 1), ((6, 16), -1), ((3, 40, 64), 1), ((2, 8200), -1), ((2, 1500), 1)],
    ids=str,
)
def test_backward_matches_numpy(backend, rng, op, name, shape, axis):
    x = drupe.tensor(draw(rng, shape, name), requires_grad=True)
    y = OPS[op][0](x, axis)
    dy = np.moveaxis(draw(rng, np.moveaxis(np.empty(shape), 0, -1).shape, name), -1, 0)  # strided
    y.backward(dy)
    saved, g = f64(y.detach().numpy()), f64(dy)
    if op == "softmax":
        expected = saved * (g - (saved * g).sum(axis, keepdims=True))
    else:
        expected = g - np.exp(saved) * g.sum(axis, keepdims=True)
    assert_close(x.grad.numpy(), expected, name, shape[axis], 10 * np.sqrt(shape[axis]))


@pytest.mark.parametrize("op", OPS)
def test_same_bits_on_any_number_of_threads(backend, rng, op):
    x = draw(rng, (700, 90), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append((OPS[op][0](x), OPS[op][0](x, 0)))
    drupe.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0][0], other[0])
        np.testing.assert_array_equal(results[0][1], other[1])


@pytest.mark.parametrize("op", OPS)
def test_errors_name_what_is_wrong(device, op):
    function, _ = OPS[op]
    with pytest.raises(IndexError, match=rf"\[{op}\].*2"):
        function(np.ones((3, 4)), 2)
    with pytest.raises(IndexError, match=rf"\[{op}\]"):
        function(np.float64(1.0))
    with pytest.raises(TypeError, match=rf"\[{op}\] x is int64"):
        function(np.ones((3, 4), np.int64))
    with pytest.raises(TypeError, match=rf"\[{op}\] expected an array"):
        function([1.0])
