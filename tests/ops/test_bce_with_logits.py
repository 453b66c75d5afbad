from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64


def reference(logits, targets, *, weight=1.0, pos_weight=1.0, reduction="mean"):
    z, t = f64(logits), f64(targets)
    loss = f64(weight) * (f64(pos_weight) * t * np.logaddexp(0, -z) + (1 - t) * np.logaddexp(0, z))
    return {"none": lambda x: x, "sum": np.sum, "mean": np.mean}[reduction](loss)


def draw(rng, shape, name):
    return (3 * rng.standard_normal(shape)).astype(dtype(name)), rng.uniform(0, 1, shape).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [1, 7, 16, 17, 63, 64, 100, 16384, 16391])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_matches_numpy(backend, rng, name, size, reduction):
    logits, targets = draw(rng, size, name)
    y = ops.bce_with_logits(logits, targets, reduction=reduction)
    accumulator = "float64" if name == "float64" else "float32"
    assert y.dtype == dtype(accumulator)
    assert_close(y, reference(logits, targets, reduction=reduction), accumulator, 1, 10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(4, 5), (5,), (4, 1), ()], ids=str)
def test_weights_broadcast(backend, rng, reduction, shape):
    logits, targets = draw(rng, (4, 5), "float64")
    options = {"weight": rng.uniform(0, 2, shape), "pos_weight": rng.uniform(0, 2, shape), "reduction": reduction}
    np.testing.assert_allclose(
        ops.bce_with_logits(logits, targets, **options), reference(logits, targets, **options), rtol=1e-12
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_views_that_begin_anywhere(backend, rng, weighted):
    logits, targets = draw(rng, 1030, "float32")
    factors = rng.uniform(0, 2, (2, 1030)).astype(np.float32)
    for begin in (1, 3, 8):
        z, t = drupe.tensor(logits)[begin:], drupe.tensor(targets)[begin:]
        names = ("weight", "pos_weight") if weighted else ()
        there = {name: drupe.tensor(factors[i])[begin:] for i, name in enumerate(names)}
        here = {name: factors[i, begin:] for i, name in enumerate(names)}
        y = ops.bce_with_logits(z, t, reduction="none", **there)
        assert_close(y, reference(logits[begin:], targets[begin:], reduction="none", **here), "float32", 1, 10)


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.uint8])
def test_integer_targets(backend, rng, kind):
    logits, targets = rng.standard_normal((3, 30)).astype(np.float32), rng.integers(0, 2, (3, 30)).astype(kind)
    assert_close(ops.bce_with_logits(logits, targets), reference(logits, targets), "float32", 90)


def test_extreme_logits(backend):
    z = np.array([1e4, 1e4, -1e4, -1e4, np.inf, -np.inf, np.inf, np.nan, 60, -60], np.float32)
    t = np.array([1, 0, 0, 1, 1, 0, 0, 1, 1, 1], np.float32)
    y = ops.bce_with_logits(z, t, reduction="none")
    np.testing.assert_allclose(y, [0, 1e4, 0, 1e4, 0, 0, np.inf, np.nan, np.exp(-60), 60], rtol=1e-6)
    leaf = drupe.tensor(z, requires_grad=True)
    ops.bce_with_logits(leaf, t, reduction="sum").backward()
    np.testing.assert_allclose(leaf.grad.numpy(), [0, 1, 0, -1, 0, 0, 1, np.nan, -np.exp(-60), -1], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(backend, rng, reduction, weighted):
    logits, targets = draw(rng, (3, 7), "float64")
    options = {"reduction": reduction}
    if weighted:
        options |= {"weight": rng.uniform(0, 2, 7), "pos_weight": rng.uniform(0, 2, (3, 1))}
    check_gradients(lambda z, t: ops.bce_with_logits(z, t, **options), logits, targets, rng=rng)


@pytest.mark.parametrize("name", FLOATS)
def test_gradients_of_every_dtype(backend, rng, name):
    logits, targets = draw(rng, 100, name)
    leaf = drupe.tensor(logits, requires_grad=True)
    ops.bce_with_logits(leaf, targets, reduction="sum").backward()
    assert_close(leaf.grad, 1 / (1 + np.exp(-f64(logits))) - f64(targets), name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_elements(backend, reduction):
    leaf = drupe.zeros((0, 3), requires_grad=True)
    loss = ops.bce_with_logits(leaf, np.zeros((0, 3), np.float32), reduction=reduction)
    assert loss.shape == ((0, 3) if reduction == "none" else ())
    loss.backward(np.zeros(loss.shape, np.float32))
    assert leaf.grad.shape == (0, 3)
    if reduction != "none":
        assert loss.item() == 0


def test_strided_operands(backend, rng):
    logits, targets = draw(rng, (40, 30), "float32")
    assert_close(
        ops.bce_with_logits(logits.T[::2, ::-1], targets.T[::-2, ::-1]),
        reference(logits.T[::2, ::-1], targets.T[::-2, ::-1]),
        "float32",
        10,
    )


def test_same_bits_on_any_number_of_threads(backend, rng):
    logits, targets = draw(rng, 100_003, "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(ops.bce_with_logits(logits, targets))
    drupe.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("logits", "targets", "options", "error", "message"),
    [
        ((3,), (4,), {}, ValueError, r"\[bce_with_logits\] logits are \(3,\), targets are \(4,\)"),
        ((3,), (3,), {"weight": np.ones(2)}, ValueError, r"broadcast"),
        ((3,), (3,), {"weight": np.ones((2, 3))}, ValueError, r"weight is \(2, 3\): does not broadcast to \(3,\)"),
        ((3,), (3,), {"pos_weight": np.ones(3, "f")}, TypeError, r"logits are float64, pos_weight is float32"),
        ((3,), (3,), {"reduction": "avg"}, ValueError, r'reduction is "avg"'),
    ],
)
def test_errors_name_what_is_wrong(device, logits, targets, options, error, message):
    with pytest.raises(error, match=message):
        ops.bce_with_logits(np.ones(logits), np.ones(targets), **options)


def test_dtype_errors(device):
    with pytest.raises(TypeError, match=r"\[bce_with_logits\] logits are int64"):
        ops.bce_with_logits(np.ones(2, np.int64), np.ones(2))
    with pytest.raises(TypeError, match=r"logits are float64, targets are float32"):
        ops.bce_with_logits(np.ones(2), np.ones(2, np.float32))
    with pytest.raises(ValueError, match="requires a gradient"):
        ops.bce_with_logits(np.ones(2), np.ones(2), weight=drupe.ones((2,), "float64", requires_grad=True))
