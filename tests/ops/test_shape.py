from __future__ import annotations

import itertools

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, dtype, f64

EVERY_DTYPE = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool")
INDICES = [
    0,
    -1,
    (1, 2),
    slice(None),
    slice(1, None, 2),
    slice(None, None, -1),
    slice(5, 0, -2),
    slice(2, 2),
    slice(-100, 100),
    (..., 1),
    (None, 1, ..., None),
    (slice(None), None, slice(2, -1), 0),
    ...,
    None,
    (),
    (np.int64(1), slice(None, None, 3)),
]


@pytest.fixture
def x(rng):
    return rng.standard_normal((3, 6, 5))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_getitem(device, rng, x, index):
    y = ops.getitem(x, index)
    np.testing.assert_array_equal(y, x[index])
    assert device != "cpu" or y.size == 0 or np.shares_memory(x, y)
    check_gradients(lambda x: ops.getitem(x, index), x, rng=rng)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (3, IndexError, "index 3 is out of range for dimension 0"),
        ((0, -7), IndexError, "index -7 is out of range for dimension 0 of shape"),
        ((0, 0, 0, 0), IndexError, r"4 indices for a tensor of shape \(3, 6, 5\)"),
        ((..., ...), IndexError, "more than one ellipsis"),
        ([0, 1], TypeError, "an index is list"),
        (np.array([0, 1]), TypeError, "an index is ndarray"),
        (True, TypeError, "an index is bool"),
        (1.0, TypeError, "an index is float"),
    ],
    ids=str,
)
def test_getitem_errors(device, x, index, error, message):
    with pytest.raises(error, match=message):
        ops.getitem(x, index)


def test_an_index_counts_as_it_was(device):
    x = drupe.tensor(np.arange(12.0).reshape(6, 2), requires_grad=True)
    first, last, column = np.array(1), np.array(3), np.array(1)
    y = x[first:last, column]
    first[...], last[...], column[...] = 3, 5, 0
    ops.sum(y).backward()
    expected = np.zeros((6, 2))
    expected[1:3, 1] = 1
    np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_a_step_of_zero_is_an_error(device, x):
    with pytest.raises(ValueError, match="zero"):
        ops.getitem(x, slice(None, None, 0))


def gradient(call, x, dy, device):
    with drupe.default_device(device):
        leaf = drupe.tensor(x, requires_grad=True)
        call(leaf).backward(dy)
        return leaf.grad.numpy()


def test_views(device, rng, x):
    for call, reference in [
        (lambda x: ops.reshape(x, (6, -1)), x.reshape(6, -1)),
        (lambda x: ops.reshape(ops.transpose(x), (-1,)), x.transpose(0, 2, 1).reshape(-1)),
        (ops.flatten, x.reshape(-1)),
        (lambda x: ops.flatten(x, 1), x.reshape(3, 30)),
        (lambda x: ops.flatten(x, 0, -2), x.reshape(18, 5)),
        (lambda x: ops.permute(x, (2, 0, -2)), x.transpose(2, 0, 1)),
        (ops.transpose, x.transpose(0, 2, 1)),
        (lambda x: ops.transpose(x, 0, -1), x.transpose(2, 1, 0)),
        (lambda x: ops.unsqueeze(x, 0), x[None]),
        (lambda x: ops.unsqueeze(x, -1), x[..., None]),
        (lambda x: ops.squeeze(ops.unsqueeze(x, 1)), x),
        (lambda x: ops.squeeze(ops.unsqueeze(x, 1), 1), x),
        (lambda x: ops.squeeze(ops.unsqueeze(ops.unsqueeze(x, 1), -1), (-1, 1)), x),
        (lambda x: ops.broadcast_to(x, (2, 3, 6, 5)), np.broadcast_to(x, (2, 3, 6, 5))),
        (lambda x: ops.broadcast_to(ops.getitem(x, (slice(None), slice(1), 0)), (3, 4)), np.repeat(x[:, :1, 0], 4, 1)),
        (ops.contiguous, x),
        (lambda x: ops.contiguous(ops.transpose(x)), x.transpose(0, 2, 1)),
    ]:
        np.testing.assert_array_equal(call(x), reference)
        if device == "cpu":
            check_gradients(call, x, rng=rng)
        else:
            dy = rng.standard_normal(reference.shape)
            np.testing.assert_array_equal(gradient(call, x, dy, device), gradient(call, x, dy, "cpu"))
    assert ops.flatten(np.float64(2.0)).shape == (1,)
    for call in (lambda x: ops.reshape(x, (18, 5)), ops.transpose, lambda x: ops.unsqueeze(x, 1), ops.contiguous):
        assert device != "cpu" or np.shares_memory(x, call(x))


@pytest.mark.parametrize("name", EVERY_DTYPE)
def test_concat(backend, rng, name):
    parts = [rng.integers(0, 2, (3, n, 4)).astype(dtype(name)) for n in (2, 0, 5)]
    for axis in (1, -2):
        np.testing.assert_array_equal(ops.concat(parts, axis), np.concatenate(parts, axis))
    strided = [parts[2].transpose(2, 1, 0), parts[2][::-1, :, :1].transpose(2, 1, 0)]
    np.testing.assert_array_equal(ops.concat(strided), np.concatenate(strided))
    same = [parts[0], parts[0][::-1]]
    for axis in (0, 1, -1):
        np.testing.assert_array_equal(ops.stack(same, axis), np.stack(same, axis))


def test_joins_and_cuts_have_gradients(device, rng, x):
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 4))
    check_gradients(lambda a, b: ops.concat([a, b, a], -1), a, b, rng=rng)
    check_gradients(lambda a, b: ops.stack([a, ops.mul(a, a)], 1), a, b, rng=rng, differentiable=[0])
    check_gradients(lambda x: ops.split(x, 3, 1)[1], x, rng=rng)
    check_gradients(lambda x: ops.concat(ops.split(x, (1, 0, 5), 1)[::-1], 1), x, rng=rng)
    check_gradients(lambda a: ops.pad(a, [(1, 2), (0, 3)], 7), a, rng=rng)


def test_split(device, x):
    for part, expected in zip(ops.split(x, 3, -2), np.split(x, 3, 1), strict=True):
        np.testing.assert_array_equal(part, expected)
        assert device != "cpu" or np.shares_memory(part, x)
    assert [p.shape for p in ops.split(x, (4, 0, 1), 2)] == [(3, 6, 4), (3, 6, 0), (3, 6, 1)]


@pytest.mark.parametrize("name", EVERY_DTYPE)
def test_pad(backend, rng, name):
    x = rng.integers(0, 2, (2, 3)).astype(dtype(name))
    value = True if name == "bool" else 1
    expected = np.pad(x, [(1, 0), (2, 3)], constant_values=value)
    np.testing.assert_array_equal(ops.pad(x, [(1, 0), (2, 3)], value), expected)
    np.testing.assert_array_equal(ops.pad(x[:, :0], [(0, 0), (1, 1)], value), np.ones((2, 2), x.dtype))


@pytest.mark.parametrize("name", ["int8", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(16, 16), (31, 33), (65, 64), (40, 15), (3, 70, 20), (17, 3, 40), (2, 3, 4, 33)])
def test_contiguous_turns_every_order(backend, rng, name, shape):
    x = rng.integers(0, 100, shape).astype(dtype(name))
    there = drupe.tensor(x)
    for order in itertools.permutations(range(len(shape))):
        np.testing.assert_array_equal(ops.contiguous(ops.permute(there, order)).numpy(), x.transpose(order))
    cut, flipped = there[1:, ..., 1:-1], there[::-1, ..., ::-1]
    np.testing.assert_array_equal(ops.contiguous(ops.transpose(cut)).numpy(), x[1:, ..., 1:-1].swapaxes(-1, -2))
    np.testing.assert_array_equal(ops.contiguous(ops.transpose(flipped)).numpy(), x[::-1, ..., ::-1].swapaxes(-1, -2))
    np.testing.assert_array_equal(ops.contiguous(cut).numpy(), x[1:, ..., 1:-1])


@pytest.mark.parametrize("source", EVERY_DTYPE)
@pytest.mark.parametrize("target", EVERY_DTYPE)
def test_cast(backend, rng, source, target):
    x = rng.integers(0, 100, (7, 11)).astype(dtype(source))
    y = ops.cast(x, target)
    assert y.dtype == dtype(target)
    np.testing.assert_array_equal(y, x.astype(dtype(target)))
    np.testing.assert_array_equal(ops.cast(x.T[::2], target), x.T[::2].astype(dtype(target)))
    if target not in ("uint8", "bool") and source not in ("uint8", "bool"):
        np.testing.assert_array_equal(ops.cast(-x, target), (-x).astype(dtype(target)))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", ["int8", "uint8", "int32", "int64"])
def test_floats_become_integers_by_truncation_within_the_range(backend, source, target):
    values = [-1e30, -3e9, -4e4, -129.0, -128.9, -1.5, -0.5, -0.0, 0.5, 1.99, 127.9, 128.0, 255.9, 4e4, 3e9, 1e30]
    with np.errstate(over="ignore"):
        x = np.array([*values, np.inf, -np.inf, np.nan] * 7).astype(dtype(source))
    limits = np.iinfo(target)
    whole = [0 if np.isnan(v) else max(limits.min, min(limits.max, int(np.clip(v, -1e25, 1e25)))) for v in f64(x)]
    np.testing.assert_array_equal(ops.cast(x, target), np.array(whole, target))
    into = drupe.zeros((x.size, 2), target)
    into[:, 1].copy_from(x)
    np.testing.assert_array_equal(into.numpy()[:, 1], np.array(whole, target))
    np.testing.assert_array_equal(into.numpy()[:, 0], 0)
    np.testing.assert_array_equal(ops.cast(x, "bool"), f64(x) != 0)


def test_cast_gradient_returns_in_the_dtype_of_the_input(device, rng):
    x = drupe.tensor(rng.standard_normal(5), requires_grad=True)
    ops.sum(ops.mul(ops.cast(x, "float32"), 2)).backward()
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad.numpy(), np.full(5, 2.0))
    assert not ops.cast(x, "int64").requires_grad


@pytest.mark.parametrize(
    ("left", "right"),
    [((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((2, 4), (4, 3)), ((5, 2, 4), (4,)), ((4,), (5, 4, 3))],
    ids=str,
)
def test_matmul(backend, rng, left, right):
    a, b = rng.standard_normal(left), rng.standard_normal(right)
    np.testing.assert_allclose(ops.matmul(a, b), a @ b, rtol=1e-12, atol=1e-12)
    check_gradients(ops.matmul, a, b, rng=rng)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.reshape(x, (7, 2)), ValueError, r"\[reshape\] cannot view shape \(3, 6, 5\)"),
        (lambda x: ops.reshape(x, (-1, -1)), ValueError, r"\[reshape\] .* more than one extent is -1"),
        (lambda x: ops.reshape(x, (0, -1)), ValueError, r"\[reshape\]"),
        (lambda x: ops.flatten(x, 2, 1), IndexError, r"\[flatten\] dimensions 2 to 1"),
        (lambda x: ops.flatten(x, 3), IndexError, r"\[flatten\]"),
        (lambda x: ops.permute(x, (0, 1)), ValueError, r"\[permute\] axes are \(0, 1\)"),
        (lambda x: ops.permute(x, (0, 1, 1)), ValueError, r"\[permute\] .* axis 1 is named twice"),
        (lambda x: ops.permute(x, (0, 1, 3)), IndexError, r"\[permute\] dimension 3"),
        (lambda x: ops.transpose(x, 0, 4), IndexError, r"\[transpose\] dimension 4"),
        (lambda x: ops.squeeze(x, 0), ValueError, r"\[squeeze\] dimension 0 of shape \(3, 6, 5\) is not 1"),
        (lambda x: ops.squeeze(x, (5,)), IndexError, r"\[squeeze\]"),
        (lambda x: ops.squeeze(x, (0, -3)), ValueError, r"\[squeeze\] .* named twice"),
        (lambda x: ops.unsqueeze(x, 5), IndexError, r"\[unsqueeze\] dimension 5"),
        (lambda x: ops.broadcast_to(x, (3, 6, 4)), ValueError, r"\[broadcast_to\] shape \(3, 6, 5\)"),
        (lambda x: ops.broadcast_to(x, (5,)), ValueError, r"\[broadcast_to\]"),
        (lambda x: ops.concat([]), ValueError, r"\[concat\] no tensors"),
        (lambda x: ops.concat([x, x[0]]), ValueError, r"\[concat\] shapes \(3, 6, 5\) and \(6, 5\)"),
        (lambda x: ops.concat([x, x[:, :1]]), ValueError, r"\[concat\] .* differ in more than axis 0"),
        (lambda x: ops.concat([x, x.astype("f4")]), TypeError, r"\[concat\] tensors are float64 and float32"),
        (lambda x: ops.concat([x], 3), IndexError, r"\[concat\] dimension 3"),
        (lambda x: ops.concat([np.float64(1)]), ValueError, r"\[concat\] .* no dimensions"),
        (lambda x: ops.stack([x, x[0]]), ValueError, r"\[stack\] shapes"),
        (lambda x: ops.stack([]), ValueError, r"\[stack\] no tensors"),
        (lambda x: ops.split(x, 4), ValueError, r"\[split\] axis 0 of shape \(3, 6, 5\) has no 4 equal parts"),
        (lambda x: ops.split(x, 0), ValueError, r"\[split\]"),
        (lambda x: ops.split(x, (4, -1)), ValueError, r"\[split\] sizes \[4, -1\]"),
        (lambda x: ops.split(x, 1, 3), IndexError, r"\[split\] axis 3"),
        (lambda x: ops.pad(x, [(1, 1)]), ValueError, r"\[pad\] .* one width per dimension"),
        (lambda x: ops.pad(x, [(1, -1)] * 3), ValueError, r"\[pad\] .* must not be negative"),
        (lambda x: ops.pad(x, [(2**62, 2**62)] * 3), ValueError, r"\[pad\] .* too many elements"),
        (lambda x: ops.pad(x.astype(int), [(1, 1)] * 3, 0.5), TypeError, r"\[pad\] the float 0.5"),
        (lambda x: ops.cast(x, "complex128"), TypeError, "complex128"),
        (lambda x: ops.matmul(x, np.float64(1)), ValueError, r"\[matmul\] b is \(\)"),
    ],
)
def test_errors(device, x, call, error, message):
    with pytest.raises(error, match=message):
        call(x)
