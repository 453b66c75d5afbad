from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

# One field, odd numbers of fields; features fewer than a register's lanes, as many, more, and in several rounds.
SHAPES = [(1, 1, 1), (3, 2, 1), (4, 1, 16), (5, 3, 7), (33, 26, 16), (9, 39, 10), (2, 5, 37), (3, 4, 300), (700, 3, 16)]


def pairs(v):
    """Every pair of fields by itself, in float64."""
    v = f64(v)
    y = np.zeros(v.shape[0])
    for f in range(v.shape[1]):
        for g in range(f):
            y += (v[:, f] * v[:, g]).sum(-1)
    return y


def slopes(v, dy):
    v = f64(v)
    return f64(dy)[:, None, None] * (v.sum(1, keepdims=True) - v)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(backend, rng, name, shape):
    v = rng.standard_normal(shape).astype(dtype(name))
    dy = rng.standard_normal(shape[0]).astype(dtype(name))
    leaf = drupe.tensor(v, requires_grad=True)
    y = ops.fm_interaction(leaf)
    y.backward(dy)
    assert y.dtype == leaf.grad.dtype == dtype(name)
    _, F, E = shape
    assert_close(y.detach(), pairs(v), name, F * E, F * np.sqrt(E))
    assert_close(leaf.grad, slopes(v, dy), name, F, 3 * np.sqrt(F))


def test_gradients(backend, rng):
    check_gradients(ops.fm_interaction, rng.standard_normal((3, 4, 5)), rng=rng)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 1, 4)], ids=str)
def test_no_pairs(backend, shape):
    leaf = drupe.tensor(np.ones(shape, np.float32), requires_grad=True)
    y = ops.fm_interaction(leaf)
    np.testing.assert_array_equal(y.detach().numpy(), np.zeros(shape[0], np.float32))
    y.backward(np.ones(shape[0], np.float32))
    np.testing.assert_array_equal(leaf.grad.numpy(), np.zeros(shape, np.float32))


def test_strided_operand_and_gradient(backend, rng):
    v = rng.standard_normal((12, 9, 14)).astype(np.float32).T[::2, ::-1]  # (7, 9, 12)
    dy = rng.standard_normal(14).astype(np.float32)[::-2]
    leaf = drupe.tensor(v, requires_grad=True)
    y = ops.fm_interaction(leaf)
    y.backward(dy)
    assert_close(y.detach(), pairs(v), "float32", 9 * 12, 9 * np.sqrt(12))
    assert_close(leaf.grad, slopes(v, dy), "float32", 9, 9)


@pytest.mark.parametrize("name", FLOATS)
def test_views_that_begin_anywhere(backend, rng, name):
    data = rng.standard_normal(6 * 3 * 16 + 8).astype(dtype(name))
    for begin in (1, 3, 8):
        v = data[begin:][: 6 * 3 * 16].reshape(6, 3, 16)
        leaf = drupe.Tensor(drupe.tensor(data)[begin : begin + v.size].reshape((6, 3, 16)).raw, requires_grad=True)
        y = ops.fm_interaction(leaf)
        y.backward(np.ones(6, dtype(name)))
        assert_close(y.detach(), pairs(v), name, 48, 12)
        assert_close(leaf.grad, slopes(v, np.ones(6)), name, 3, 3)


def test_nan_stays_in_its_example(backend):
    v = np.ones((3, 2, 5), np.float32)
    v[1, 0, 2] = np.nan
    np.testing.assert_array_equal(np.asarray(ops.fm_interaction(v)), [5, np.nan, 5])


def test_same_bits_on_any_number_of_threads(isa, rng):
    v = rng.standard_normal((1000, 26, 10)).astype(np.float32)
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaf = drupe.tensor(v, requires_grad=True)
        y = ops.fm_interaction(leaf)
        y.backward(np.ones(1000, np.float32))
        results.append((y.detach().numpy(), leaf.grad.numpy()))
    drupe.set_num_threads(before)
    for y, grad in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(grad, results[0][1])


def test_errors_name_what_is_wrong(device):
    with pytest.raises(ValueError, match=r"\[fm_interaction\] v is \(2, 3\): expected 3 dimensions"):
        ops.fm_interaction(np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"v is int64: expected float32"):
        ops.fm_interaction(np.ones((2, 3, 4), np.int64))
