from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

REDUCTIONS = ("sum", "mean", "prod", "max", "min", "any", "all")
# Rows and columns, across lanes, leaves, chunks, blocks of rows and of columns; and zero sizes.
SHAPES = [(1,), (7,), (16, 33), (5, 40000), (3000, 3), (1000, 70), (65, 1030), (3, 130, 65), (2, 3, 4, 5), (100001,)]


def axes_of(ndim):
    yield None
    for count in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), count)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(backend, rng, name, shape):
    x = rng.standard_normal(shape).astype(dtype(name))
    for axis in axes_of(len(shape)):
        y = ops.sum(x, axis=axis)
        expected = f64(x).sum(axis=axis)
        length = x.size // max(expected.size, 1)
        assert y.dtype == dtype(name)
        assert_close(y, expected, name, 1, np.sqrt(length))
        assert_close(ops.mean(x, axis=axis, keepdims=True), f64(x).mean(axis=axis, keepdims=True), name)
        assert_close(ops.var(x, axis=axis), f64(x).var(axis=axis), name, 10)
        assert_close(ops.logsumexp(x, axis=axis), logsumexp(f64(x), axis=axis), name, 10)


@pytest.mark.parametrize("name", [*FLOATS, "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_reductions(backend, rng, name, shape):
    x = rng.integers(0 if name in ("uint8", "bool") else -9, 9, shape).astype(dtype(name))
    for axis in axes_of(len(shape)):
        for op in ("max", "min", "any", "all"):
            y = getattr(ops, op)(x, axis=axis)
            assert y.dtype == (bool if op in ("any", "all") else dtype(name))
            np.testing.assert_array_equal(f64(y), f64(getattr(np, op)(f64(x), axis=axis)), f"{op} {axis}")
        if name in FLOATS:
            continue
        np.testing.assert_array_equal(ops.sum(x, axis=axis), x.sum(axis=axis, dtype=np.int64))
        np.testing.assert_array_equal(ops.prod(x, axis=axis), x.prod(axis=axis, dtype=np.int64))


@pytest.mark.parametrize("op", REDUCTIONS)
def test_every_layout(backend, rng, op):
    x = rng.standard_normal((4, 6, 5, 7))
    views = [x.transpose(order) for order in itertools.permutations(range(4))]
    views += [x[::2, ::-1], x[:, :, :, ::3], np.broadcast_to(x[:, :1], x.shape), x[1:3, :, 2:3]]
    for view in views:
        for axis in axes_of(4):
            expected = getattr(np, op)(view, axis=axis, keepdims=True)
            y = getattr(ops, op)(view, axis=axis, keepdims=True)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-300)


def test_axes_and_keepdims(backend, rng):
    x = rng.standard_normal((2, 3, 4))
    assert ops.sum(x).shape == ()
    assert ops.sum(x, keepdims=True).shape == (1, 1, 1)
    np.testing.assert_allclose(ops.sum(x, axis=-1), x.sum(-1))
    np.testing.assert_allclose(ops.sum(x, axis=(0, -1), keepdims=True), x.sum((0, 2), keepdims=True))
    np.testing.assert_allclose(ops.sum(np.float64(3.0)), 3.0)
    np.testing.assert_allclose(ops.var(x, axis=1, ddof=1), x.var(1, ddof=1))


def test_over_nothing(backend):
    x = np.ones((0, 3))
    np.testing.assert_array_equal(ops.sum(x, axis=0), np.zeros(3))
    np.testing.assert_array_equal(ops.prod(x, axis=0), np.ones(3))
    np.testing.assert_array_equal(ops.any(x, axis=0), np.zeros(3, bool))
    np.testing.assert_array_equal(ops.all(x, axis=0), np.ones(3, bool))
    np.testing.assert_array_equal(ops.logsumexp(x, axis=0), np.full(3, -np.inf))
    assert np.isnan(ops.mean(x, axis=0)).all()
    assert np.isnan(ops.var(x, axis=0)).all()
    assert ops.sum(x, axis=1).shape == (0,)
    assert ops.max(x, axis=1).shape == (0,)
    assert ops.argmax(x, axis=1).shape == (0,)
    for op in ("max", "min", "argmax", "argmin"):
        with pytest.raises(ValueError, match=rf"\[{op}\] x is \(0, 3\): no elements"):
            getattr(ops, op)(x, axis=0)


@pytest.mark.parametrize("shape", [(40,), (3, 5000), (5000, 3), (100, 40)], ids=str)
def test_nan_and_infinity(backend, rng, shape):
    x = rng.standard_normal(shape).astype(np.float32)
    for position in rng.integers(0, x.size, 8):
        y = x.copy()
        y.reshape(-1)[position] = np.nan
        for axis in (0, -1):
            for op in ("sum", "max", "min", "prod", "mean", "logsumexp"):
                expected = np.isnan(y.sum(axis=axis))
                np.testing.assert_array_equal(np.isnan(getattr(ops, op)(y, axis=axis)), expected, op)
            np.testing.assert_array_equal(ops.argmax(y, axis=axis), np.argmax(y, axis=axis))
            np.testing.assert_array_equal(ops.argmin(y, axis=axis), np.argmin(y, axis=axis))
    infinite = np.array([[np.inf, 1, -np.inf], [-np.inf, -np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(ops.logsumexp(infinite, axis=1), [np.inf, -np.inf])
    np.testing.assert_array_equal(ops.max(infinite, axis=1), [np.inf, -np.inf])
    np.testing.assert_allclose(ops.logsumexp(np.array([1000.0, 1000.0])), 1000 + np.log(2))


@pytest.mark.parametrize("width", [5, 16, 33, 100])
def test_a_row_does_not_depend_on_its_neighbours(isa, rng, width):
    x = np.where(rng.random((40, width)) < 0.5, np.float32(0), np.float32(-0.0))
    beside = x.copy()
    beside[7, width // 2], beside[8, 0], beside[20, -1] = np.nan, np.inf, -np.inf
    others = np.setdiff1d(np.arange(40), [7, 8, 20])
    for op in (ops.max, ops.min, ops.sum, ops.logsumexp):
        together = op(x, axis=1)
        np.testing.assert_array_equal(together.view(np.uint32)[others], op(beside, axis=1).view(np.uint32)[others])
        alone = np.concatenate([op(x[i : i + 1], axis=1) for i in range(40)])
        np.testing.assert_array_equal(together.view(np.uint32), alone.view(np.uint32))


def test_error_of_long_sums_grows_slowly(backend, rng):
    # One after another, the error of a sum of n terms grows with n: here to some 1e-2.
    for shape in [(3_000_000,), (1_000_000, 3)]:
        x = rng.uniform(0, 1, shape).astype(np.float32)
        np.testing.assert_allclose(ops.sum(x, axis=0), f64(x).sum(axis=0), rtol=1e-6)
    x = (rng.standard_normal(100_000) + 1000).astype(np.float32)
    np.testing.assert_allclose(ops.var(x), f64(x).var(), rtol=1e-5)


@pytest.mark.parametrize("name", [*FLOATS, "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(1,), (5,), (33, 7), (3, 1000), (2, 3, 50)], ids=str)
def test_argmax(backend, rng, name, shape):
    x = rng.integers(0, 30, shape).astype(dtype(name))  # with ties
    for op in ("argmax", "argmin"):
        reference = getattr(np, op)
        for axis in range(-1, len(shape)):
            y = getattr(ops, op)(x, axis=axis)
            assert y.dtype == np.int64
            np.testing.assert_array_equal(y, reference(f64(x), axis=axis))
        np.testing.assert_array_equal(getattr(ops, op)(x), reference(f64(x)))
        assert getattr(ops, op)(x, keepdims=True).shape == (1,) * len(shape)
        assert getattr(ops, op)(x, axis=0, keepdims=True).shape == (1, *shape[1:])


@pytest.mark.parametrize("name", [*FLOATS, "int8", "uint8", "int32", "int64"])
@pytest.mark.parametrize("shape", [(1,), (40,), (3, 500), (2, 30, 5)], ids=str)
def test_topk(backend, rng, name, shape):
    x = rng.integers(0, 20, shape).astype(dtype(name))  # with ties
    for axis in range(-1, len(shape)):
        for k in {0, 1, shape[axis] // 2, shape[axis]}:
            for largest in (True, False):
                values, indices = ops.topk(x, k, axis=axis, largest=largest)
                order = np.argsort(-f64(x) if largest else f64(x), axis=axis, kind="stable")
                expected = np.take(order, range(k), axis=axis)
                np.testing.assert_array_equal(indices, expected)
                np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis))
                unsorted, places = ops.topk(x, k, axis=axis, largest=largest, sorted=False)
                np.testing.assert_array_equal(places, np.sort(expected, axis=axis))
                np.testing.assert_array_equal(unsorted, np.take_along_axis(x, places, axis))


@pytest.mark.parametrize(("shape", "k"), [((2, 3000), 40), ((2, 5000), 3000), ((3, 1025), 1), ((2, 1024), 33)], ids=str)
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "int8"])
def test_topk_of_long_rows(backend, rng, name, shape, k):
    x = (30 * rng.standard_normal(shape)).round().astype(dtype(name))  # with ties
    for largest in (True, False):
        expected = np.argsort(-f64(x) if largest else f64(x), axis=-1, kind="stable")[:, :k]
        for in_order in (True, False):
            values, indices = ops.topk(x, k, largest=largest, sorted=in_order)
            places = expected if in_order else np.sort(expected, axis=-1)
            np.testing.assert_array_equal(indices, places)
            np.testing.assert_array_equal(values, np.take_along_axis(x, places, -1))


def test_topk_of_nan_in_long_rows(backend, rng):
    x = rng.permutation(2000).astype(np.float32)
    x[[5, 1500]] = np.nan
    assert ops.topk(x, 40)[1].tolist()[:2] == [5, 1500]
    assert ops.topk(x, 2000, largest=False)[1].tolist()[-2:] == [5, 1500]


@pytest.mark.parametrize("shape", [(1, 300_000), (3, 100_001), (2000, 70)], ids=str)
def test_argmax_of_long_rows(backend, rng, shape):
    x = rng.integers(0, 1000, shape).astype(np.float32)  # with ties
    for op in ("argmax", "argmin"):
        np.testing.assert_array_equal(getattr(ops, op)(x, axis=1), getattr(np, op)(x, axis=1))
        np.testing.assert_array_equal(getattr(ops, op)(x), getattr(np, op)(x))
    x[0, 65_000 % shape[1]] = np.nan
    for op in ("argmax", "argmin"):
        np.testing.assert_array_equal(getattr(ops, op)(x, axis=1), getattr(np, op)(x, axis=1))


def test_topk_of_nan(backend):
    x = np.array([1.0, np.nan, 3.0, np.nan, -np.inf], np.float32)
    assert ops.topk(x, 3)[1].tolist() == [1, 3, 2]
    assert ops.topk(x, 4, largest=False)[1].tolist() == [4, 0, 2, 1]


def test_strided_search(backend, rng):
    x = rng.standard_normal((6, 40, 8))
    for view in (x.transpose(2, 0, 1), x[::2, ::-1, 1::3], np.broadcast_to(x[:, :1], x.shape)):
        for axis in range(3):
            np.testing.assert_array_equal(ops.argmax(view, axis=axis), np.argmax(view, axis=axis))
            expected = np.take(np.argsort(-view, axis=axis, kind="stable"), range(2), axis=axis)
            np.testing.assert_array_equal(ops.topk(view, 2, axis=axis)[1], expected)


@pytest.mark.parametrize("op", ["sum", "mean", "var", "prod", "max", "min", "logsumexp"])
def test_gradients(device, rng, op):
    x = rng.standard_normal((3, 4, 2))
    for axis in (None, 0, (0, 2), -1):
        for keepdims in (False, True):
            check_gradients(lambda x, a=axis, k=keepdims: getattr(ops, op)(x, axis=a, keepdims=k), x, rng=rng)
    check_gradients(lambda x: getattr(ops, op)(ops.transpose(x), axis=1), x, rng=rng)
    check_gradients(getattr(ops, op), rng.standard_normal(()), rng=rng)


def test_gradients_of_var_with_ddof_and_of_products_with_zeros(device, rng):
    x = rng.standard_normal((4, 5))
    check_gradients(lambda x: ops.var(x, axis=1, ddof=1), x, rng=rng)
    x[0, 1] = x[2, 2] = x[2, 3] = 0
    check_gradients(lambda x: ops.prod(x, axis=1), x, rng=rng)


def test_topk_gradients(device, rng):
    x = rng.permutation(60).reshape(3, 4, 5) / 10
    for axis in (0, 1, -1):
        check_gradients(lambda x, a=axis: ops.topk(x, 2, axis=a)[0], x, rng=rng)
        check_gradients(lambda x, a=axis: ops.topk(x, 2, axis=a, largest=False, sorted=False)[0], x, rng=rng)


def test_equal_elements_share_the_gradient_of_the_maximum(device):
    x = drupe.tensor(np.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]), requires_grad=True)
    ops.sum(ops.max(x, axis=1)).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 0.5, 0.5], [1, 0, 0]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.sum(x, axis=2), IndexError, r"\[sum\] dimension 2 is out of range for 2"),
        (lambda x: ops.max(x, axis=(0, -2)), ValueError, r"\[max\] axes are \(0, -2\): axis 0 is named twice"),
        (lambda x: ops.sum(x, axis=()), ValueError, r"\[sum\] axis is empty"),
        (lambda x: ops.mean(x.astype(int)), TypeError, r"\[mean\] x is int64"),
        (lambda x: ops.var(x, ddof=-1), ValueError, r"\[var\] ddof is -1"),
        (lambda x: ops.logsumexp(x > 0), TypeError, r"\[logsumexp\] x is bool"),
        (lambda x: ops.argmax(x, axis=-3), IndexError, r"\[argmax\] dimension -3"),
        (lambda x: ops.topk(x, 4), ValueError, r"\[topk\] k is 4, x is \(2, 3\): expected 0 to 3"),
        (lambda x: ops.topk(x, -1), ValueError, r"\[topk\] k is -1"),
        (lambda x: ops.topk(x, 1, axis=5), IndexError, r"\[topk\] dimension 5"),
        (lambda x: ops.topk(x.sum(), 1), ValueError, r"\[topk\] x is \(\)"),
    ],
)
def test_errors(device, call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3)))


def test_same_bits_on_any_number_of_threads(backend, rng):
    x = rng.standard_normal((3000, 129)).astype(np.float32)
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append([ops.sum(x), ops.sum(x, axis=0), ops.sum(x, axis=1), ops.var(x), ops.logsumexp(x, axis=0)])
    drupe.set_num_threads(before)
    for first, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(first, other)
