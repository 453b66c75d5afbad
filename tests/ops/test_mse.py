from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

REDUCE = {"none": lambda x: x, "sum": np.sum, "mean": np.mean}


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name)), rng.standard_normal(shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [1, 7, 16, 17, 63, 64, 100, 16384, 16391])
@pytest.mark.parametrize("reduction", REDUCE)
def test_matches_numpy(backend, rng, name, size, reduction):
    a, b = draw(rng, size, name)
    y = ops.mse(a, b, reduction=reduction)
    accumulator = "float64" if name == "float64" else "float32"
    assert y.dtype == dtype(accumulator)
    assert_close(y, REDUCE[reduction]((f64(a) - f64(b)) ** 2), accumulator, 1, 4)


@pytest.mark.parametrize("reduction", REDUCE)
def test_gradients(backend, rng, reduction):
    a, b = draw(rng, (3, 7), "float64")
    check_gradients(lambda a, b: ops.mse(a, b, reduction=reduction), a, b, rng=rng)
    check_gradients(lambda a: ops.mse(a, b, reduction=reduction), a, rng=rng)
    check_gradients(lambda b: ops.mse(a, b, reduction=reduction), b, rng=rng)


@pytest.mark.parametrize("name", FLOATS)
def test_gradients_of_every_dtype(backend, rng, name):
    a, b = draw(rng, 100, name)
    leaf = drupe.tensor(a, requires_grad=True)
    ops.mse(leaf, b, reduction="sum").backward()
    assert leaf.grad.dtype == dtype(name)
    assert_close(leaf.grad, 2 * (f64(a) - f64(b)), name)


@pytest.mark.parametrize("reduction", REDUCE)
def test_no_elements(backend, reduction):
    leaf = drupe.zeros((0, 3), requires_grad=True)
    loss = ops.mse(leaf, np.zeros((0, 3), np.float32), reduction=reduction)
    loss.backward(np.zeros(loss.shape, np.float32))
    assert leaf.grad.shape == (0, 3)
    if reduction != "none":
        assert loss.item() == 0


def test_strided_operands_and_gradient(backend, rng):
    a, b = draw(rng, (40, 30), "float32")
    a, b = a.T[::2, ::-1], b.T[::-2, ::-1]
    leaf = drupe.tensor(a, requires_grad=True)
    y = ops.mse(leaf, b, reduction="none")
    dy = rng.standard_normal((40, 15)).astype(np.float32).T
    y.backward(dy)
    assert_close(leaf.grad, 2 * (f64(a) - f64(b)) * dy, "float32", 1, 10)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("reduction", REDUCE)
def test_views_that_begin_anywhere(backend, rng, name, reduction):
    a, b = draw(rng, 1030, name)
    for begin in (1, 3, 8):
        leaf = drupe.Tensor(drupe.tensor(a)[begin:].raw, requires_grad=True)
        y = ops.mse(leaf, drupe.tensor(b)[begin:], reduction=reduction)
        d = f64(a[begin:]) - f64(b[begin:])
        assert_close(y.detach(), REDUCE[reduction](d**2), str(y.dtype), 1, 4)
        dy = np.asarray(rng.standard_normal(y.shape)).astype(y.dtype)
        y.backward(dy)
        assert_close(leaf.grad, 2 * d * dy / (d.size if reduction == "mean" else 1), name, 1, 10)


def test_more_elements_than_blocks_take_at_once(backend, rng):
    a = rng.standard_normal(2_200_000)
    np.testing.assert_allclose(ops.mse(a, np.zeros_like(a)), np.mean(a**2), rtol=1e-12)


def test_nan_and_infinity_pass(backend):
    y = ops.mse(np.array([np.nan, np.inf, np.inf]), np.array([0, 0, np.inf]), reduction="none")
    np.testing.assert_array_equal(y, [np.nan, np.inf, np.nan])


def test_same_bits_on_any_number_of_threads(backend, rng):
    a, b = draw(rng, 100_003, "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(ops.mse(a, b))
    drupe.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (np.ones(3), np.ones(4), {}, ValueError, r"\[mse\] a is \(3,\), b is \(4,\): expected one shape"),
        (np.ones((3, 1)), np.ones(3), {}, ValueError, r"a is \(3, 1\), b is \(3,\)"),
        (np.ones(3), np.ones(3, np.float32), {}, TypeError, r"a is float64, b is float32: expected one dtype"),
        (np.ones(3, np.int32), np.ones(3, np.int32), {}, TypeError, r"a is int32: expected float32"),
        (np.ones(3), np.ones(3), {"reduction": "rms"}, ValueError, r'reduction is "rms"'),
    ],
)
def test_errors_name_what_is_wrong(device, a, b, options, error, message):
    with pytest.raises(error, match=message):
        ops.mse(a, b, **options)
