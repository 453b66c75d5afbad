from __future__ import annotations

import importlib

import numpy as np
import pytest

import drupe
from drupe import _C, ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

MODULE = importlib.import_module("drupe.ops.linear_cross_entropy")
SPLIT = 7 * 23  # logits at a time, so that seven rows of 23 classes are a chunk


@pytest.fixture(params=["whole", "chunks"])
def chunked(request, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setattr(MODULE, "_CHUNK_ELEMENTS", SPLIT)


def draw(rng, name, count=24, K=9, C=23):
    x, weight, bias = (rng.standard_normal(shape).astype(dtype(name)) for shape in ((count, K), (C, K), (C,)))
    labels = rng.integers(0, C, count)
    labels[[3, 11]] = -100
    return x, weight, bias, labels


def composed(x, weight, bias, labels, **options):
    logits = ops.matmul(x, ops.permute(weight, (1, 0)))
    return ops.cross_entropy(logits if bias is None else ops.add(logits, bias), labels, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_matches_the_composition(chunked, backend, rng, reduction, label_smoothing, with_bias):
    x, weight, bias, labels = draw(rng, "float64")
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    results = []
    for op in (composed, lambda x, w, b, labels, **o: ops.linear_cross_entropy(x, w, labels, bias=b, **o)):
        leaves = [drupe.tensor(value.copy(), requires_grad=True) for value in (x, weight, bias)]
        loss = op(leaves[0], leaves[1], leaves[2] if with_bias else None, labels, **options)
        loss.backward(np.linspace(1, 2, int(np.prod(loss.shape))).reshape(loss.shape))
        results.append([loss.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves[: 2 + with_bias])])
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", FLOATS)
def test_every_dtype(chunked, backend, rng, name):
    x, weight, bias, labels = draw(rng, name)
    y = ops.linear_cross_entropy(x, weight, labels, bias=bias)
    assert y.dtype == (np.float64 if name == "float64" else np.float32)
    z = f64(x) @ f64(weight).T + f64(bias)
    top = z.max(-1)
    losses = np.log(np.exp(z - top[:, None]).sum(-1)) + top - np.take_along_axis(z, labels[:, None] % 23, -1)[:, 0]
    assert_close(y, losses[labels >= 0].mean(), name, 9, 10)


def test_gradients(chunked, device, rng):
    x, weight, bias, labels = draw(rng, "float64")

    def function(x, weight, bias):
        return ops.linear_cross_entropy(x, weight, labels, bias=bias, label_smoothing=0.2)

    check_gradients(function, x, weight, bias, rng=rng)


def test_leading_dimensions_and_strides(chunked, device, rng):
    x, weight, _, labels = draw(rng, "float64")
    expected = ops.linear_cross_entropy(x, weight, labels, reduction="none")
    strided = np.ascontiguousarray(x.T).T
    y = ops.linear_cross_entropy(
        strided.reshape(4, 6, 9), np.asfortranarray(weight), labels.reshape(4, 6).astype(np.int32), reduction="none"
    )
    np.testing.assert_allclose(y, expected.reshape(4, 6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)], ids=str)
def test_no_rows(device, shape):
    x, weight = drupe.zeros(shape, "float64", requires_grad=True), drupe.ones((5, 3), "float64", requires_grad=True)
    loss = ops.linear_cross_entropy(x, weight, np.zeros(shape[:-1], np.int64))
    assert loss.item() == 0
    loss.backward()
    assert x.grad.shape == shape
    np.testing.assert_array_equal(weight.grad.numpy(), np.zeros((5, 3)))


def test_all_ignored_is_zero(chunked, device, rng):
    x, weight, _, labels = draw(rng, "float32")
    leaf = drupe.tensor(x, requires_grad=True)
    loss = ops.linear_cross_entropy(leaf, weight, np.full_like(labels, -100))
    assert loss.item() == 0
    loss.backward()
    np.testing.assert_array_equal(leaf.grad.numpy(), np.zeros_like(x))


def test_logits_are_not_kept(rng):
    count, K, C = 2400, 8, 50000
    x, weight = (drupe.tensor(rng.standard_normal(s, np.float32), requires_grad=True) for s in ((count, K), (C, K)))
    _C.reset_peak_memory()
    before = drupe.memory_stats()["in_use_bytes"]
    ops.linear_cross_entropy(x, weight, rng.integers(0, C, count)).backward()
    chunk = 64 << 20  # two exist at a time: logits and their gradient
    assert drupe.memory_stats()["peak_bytes"] - before < 3 * chunk < 4 * count * C


@pytest.mark.parametrize(
    ("x", "weight", "labels", "options", "error", "message"),
    [
        (
            (3, 4),
            (5, 6),
            [0, 1, 2],
            {},
            ValueError,
            r"\[linear_cross_entropy\] expected x .*weight \(5, 6\)",
        ),
        ((3, 4), (4,), [0, 1, 2], {}, ValueError, r"expected weight \(C, K\)"),
        ((3, 4), (5, 4), [0, 1], {}, ValueError, r"expected one label for each row of x; .*labels \(2,\)"),
        ((3, 4), (5, 4), [0, 5, 1], {}, IndexError, r"\[linear_cross_entropy\] labels hold 5, at position 1"),
        ((3, 4), (5, 4), [0, 2, 1], {"reduction": "max"}, ValueError, r"reduction is 'max'"),
        ((3, 4), (5, 4), [0, 2, 1], {"label_smoothing": 2.0}, ValueError, r"label_smoothing is 2"),
        ((3, 4), (5, 4), [0, 2, 1], {"bias": np.ones(4)}, ValueError, r"bias is \(4,\): expected \(C,\)"),
    ],
)
def test_errors_name_what_is_wrong(device, x, weight, labels, options, error, message):
    with pytest.raises(error, match=message):
        ops.linear_cross_entropy(np.ones(x), np.ones(weight), np.array(labels), **options)


def test_a_wrong_label_of_a_later_chunk_says_which_rows(device, monkeypatch):
    monkeypatch.setattr(MODULE, "_CHUNK_ELEMENTS", 2 * 5)
    with pytest.raises(IndexError, match=r"labels hold 7, at position 1: .*\(counted from row 2\)"):
        ops.linear_cross_entropy(np.ones((4, 3)), np.ones((5, 3)), np.array([0, 1, 2, 7]))


def test_dtypes_must_agree(device):
    with pytest.raises(TypeError, match=r"\[linear_cross_entropy\] .*float32"):
        ops.linear_cross_entropy(np.ones((2, 3)), np.ones((4, 3), np.float32), np.zeros(2, np.int64))
