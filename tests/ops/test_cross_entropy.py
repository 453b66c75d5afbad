from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

# Below and above a vector of every ISA, and its chunks of 16 vectors.
CLASSES = [1, 2, 7, 15, 16, 17, 128, 129, 256, 257, 300, 1000, 4133]


def reference(logits, labels, *, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    z, C = f64(logits), logits.shape[-1]
    logp = log_softmax(z, axis=-1)
    w = np.ones(C) if weight is None else f64(weight)
    keep = labels != ignore_index
    y = np.where(keep, labels, 0)
    picked = np.take_along_axis(logp, y[..., None], -1)[..., 0]
    loss = -(1 - label_smoothing) * w[y] * picked
    if label_smoothing:
        loss = loss - label_smoothing / C * (w * logp).sum(-1)
    loss = np.where(keep, loss, 0)
    if reduction == "none":
        return loss
    total = (w[y] * keep).sum()
    return loss.sum() if reduction == "sum" else loss.sum() / total if total else 0.0


def draw(rng, shape, name, scale=3):
    return (scale * rng.standard_normal(shape)).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("C", CLASSES)
def test_matches_numpy(backend, rng, name, C):
    logits, labels = draw(rng, (9, C), name), rng.integers(0, C, 9)
    y = ops.cross_entropy(logits, labels, reduction="none")
    assert y.dtype == np.float64 if name == "float64" else np.float32
    accumulator = "float64" if name == "float64" else "float32"
    assert_close(y, reference(logits, labels, reduction="none"), accumulator, C, 10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_dtype", [np.int32, np.int64])
def test_options(backend, rng, reduction, label_smoothing, weighted, label_dtype):
    logits, labels = draw(rng, (4, 5, 37), "float64"), rng.integers(0, 37, (4, 5)).astype(label_dtype)
    labels[1, 2] = labels[3, 0] = 7
    options = {"label_smoothing": label_smoothing, "reduction": reduction, "ignore_index": 7}
    if weighted:
        options["weight"] = rng.uniform(0.5, 2, 37)
    y = ops.cross_entropy(logits, labels, **options)
    np.testing.assert_allclose(y, reference(logits, labels, **options), rtol=1e-12, atol=1e-12)


def test_extreme_logits(backend):
    logits = np.zeros((5, 40), np.float32)
    logits[0, 3] = 1e4
    logits[1] = -1e4
    logits[2, 5:] = -np.inf
    logits[3] = 3e38
    logits[4, :] = -3e38
    logits[4, 39] = 3e38
    labels = np.array([3, 0, 1, 2, 39])
    y = ops.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(y, [0, np.log(40), np.log(5), np.log(40), 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ops.cross_entropy(logits[:1], np.array([4]), reduction="sum"), 1e4, rtol=1e-6)
    assert ops.cross_entropy(logits[2:3], np.array([6]), reduction="sum") == np.inf
    leaf = drupe.tensor(logits, requires_grad=True)
    ops.cross_entropy(leaf, labels, reduction="sum").backward()
    expected = softmax(f64(logits), axis=-1)
    expected[np.arange(5), labels] -= 1
    np.testing.assert_allclose(leaf.grad.numpy(), expected, atol=1e-6)


def test_nan_stays_in_its_row(backend, rng):
    for where in (0, 5, 17, 39, 299):
        logits = draw(rng, (4, 300), "float32")
        logits[1, where] = np.nan
        logits[2, where] = np.inf
        logits[3] = -np.inf
        y = ops.cross_entropy(logits, np.array([1, 1, 1, 1]), reduction="none")
        np.testing.assert_array_equal(np.isnan(y), [False, True, True, True])


def test_all_ignored_is_zero(backend):
    logits = drupe.tensor(np.ones((3, 4)), requires_grad=True)
    labels = np.full(3, -100)
    loss = ops.cross_entropy(logits, labels)
    assert loss.item() == 0
    loss.backward()
    np.testing.assert_array_equal(logits.grad.numpy(), np.zeros((3, 4)))


def test_ignored_rows_do_not_matter(backend):
    logits = drupe.tensor(np.array([[1.0, 2.0], [np.nan, np.nan]]), requires_grad=True)
    loss = ops.cross_entropy(logits, np.array([0, -1]), ignore_index=-1)
    np.testing.assert_allclose(loss.item(), np.log(1 + np.e), rtol=1e-12)
    loss.backward()
    np.testing.assert_array_equal(logits.grad.numpy()[1], [0, 0])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 0)], ids=str)
def test_no_rows(backend, shape):
    logits = drupe.zeros(shape, "float64", requires_grad=True)
    labels = np.zeros(shape[:-1], np.int64)
    loss = ops.cross_entropy(logits, labels)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == shape
    assert ops.cross_entropy(np.zeros(shape), labels, reduction="none").shape == shape[:-1]


def test_one_row_without_leading_dimensions(backend):
    np.testing.assert_allclose(ops.cross_entropy(np.array([1.0, 1.0]), np.array(1)), np.log(2), rtol=1e-12)


def test_strided_misaligned_and_read_only_operands(backend, rng):
    logits = draw(rng, (30, 80), "float32").T[::2, ::-1]
    labels = rng.integers(0, 30, 80)[::2]
    labels.flags.writeable = False
    assert_close(ops.cross_entropy(logits, labels), reference(logits, labels), "float32", 40, 4)
    buffer = np.zeros(4 * 35 + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(5, 7)
    shifted[...] = rng.standard_normal((5, 7))
    assert_close(ops.cross_entropy(shifted, labels[:5] % 7), reference(shifted, labels[:5] % 7), "float32", 7)


def test_smoothing_of_large_logits(backend, rng):
    logits, labels = (draw(rng, (3, 50), "float32") + np.float32(1e4)), np.array([1, 2, 3])
    y = ops.cross_entropy(logits, labels, label_smoothing=0.1)
    np.testing.assert_allclose(y, reference(logits, labels, label_smoothing=0.1), rtol=2e-6)
    logits[0, 1] = -np.inf
    assert ops.cross_entropy(logits, labels, label_smoothing=0.1) == np.inf


def test_more_rows_than_blocks_take_at_once(device, rng):
    logits, labels = draw(rng, (2050, 515), "float64"), rng.integers(0, 515, 2050)
    y = ops.cross_entropy(logits, labels, reduction="sum")
    np.testing.assert_allclose(y, reference(logits, labels, reduction="sum"), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(backend, rng, reduction, label_smoothing, weighted):
    logits, labels = rng.standard_normal((2, 3, 19)), rng.integers(0, 19, (2, 3))
    labels[0, 1] = -100
    weight = rng.uniform(0.5, 2, 19) if weighted else None

    def function(logits):
        return ops.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing, reduction=reduction)

    check_gradients(function, logits, rng=rng)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("C", [5, 130, 1001])
def test_gradients_of_every_dtype(backend, rng, name, C):
    logits, labels = draw(rng, (20, C), name), rng.integers(0, C, 20)
    leaf = drupe.tensor(logits, requires_grad=True)
    loss = ops.cross_entropy(leaf, labels)
    loss.backward(np.array(2, loss.dtype))
    expected = softmax(f64(logits), axis=-1)
    expected[np.arange(20), labels] -= 1
    assert leaf.grad.dtype == dtype(name)
    assert_close(leaf.grad, expected / 10, name, 1, 0.2)


def test_broadcast_gradient(device, rng):
    logits = drupe.tensor(rng.standard_normal((6, 5)), requires_grad=True)
    labels = rng.integers(0, 5, 6)
    ops.cross_entropy(logits, labels, reduction="none").backward(np.broadcast_to(2.0, 6))
    broadcast, logits.grad = logits.grad.numpy(), None
    ops.cross_entropy(logits, labels, reduction="sum").backward(np.array(2.0))
    np.testing.assert_array_equal(broadcast, logits.grad.numpy())


def test_same_bits_on_any_number_of_threads(backend, rng):
    logits, labels = draw(rng, (70, 1500), "float32"), rng.integers(0, 1500, 70)
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaf = drupe.tensor(logits, requires_grad=True)
        loss = ops.cross_entropy(leaf, labels, label_smoothing=0.1)
        loss.backward()
        results.append((loss.item(), leaf.grad.numpy()))
    drupe.set_num_threads(before)
    for loss, grad in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(grad, results[0][1])


@pytest.mark.parametrize(
    ("logits", "labels", "options", "error", "message"),
    [
        ((3, 4), [0, 4, 1], {}, IndexError, r"\[cross_entropy\] labels hold 4, at position 1: expected 0 to 3"),
        ((3, 4), [0, 1, -1], {}, IndexError, r"labels hold -1, at position 2"),
        ((3, 4), [-100, 1, 9], {"ignore_index": 9}, IndexError, r"labels hold -100.* or ignore_index 9"),
        ((3, 0), [0, 0, 0], {}, IndexError, r"labels hold 0"),
        ((3, 4), [0, 1], {}, ValueError, r"logits are \(3, 4\), labels are \(2,\): expected \(3,\)"),
        ((), [], {}, ValueError, r"logits are \(\): expected \(\.\.\., C\)"),
        ((3, 4), [0, 1, 2], {"reduction": "max"}, ValueError, r'reduction is "max": expected mean, sum or none'),
        ((3, 4), [0, 1, 2], {"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5: expected 0 to 1"),
        ((3, 4), [0, 1, 2], {"label_smoothing": float("nan")}, ValueError, r"label_smoothing is nan"),
        ((3, 4), [0, 1, 2], {"weight": np.ones(3)}, ValueError, r"weight is \(3,\): expected \(4,\)"),
        ((3, 4), [0, 1, 2], {"weight": np.ones(4, "f")}, TypeError, r"logits are float64, weight is float32"),
    ],
)
def test_errors_name_what_is_wrong(device, logits, labels, options, error, message):
    with pytest.raises(error, match=message):
        ops.cross_entropy(np.ones(logits), np.array(labels, np.int64), **options)


@pytest.mark.parametrize("label_dtype", [np.int32, np.int64])
def test_first_of_many_wrong_labels_is_reported(device, label_dtype):
    labels = np.zeros(10_000, label_dtype)
    labels[[9_999, 4_321, 5_000]] = [7, -5, 8]
    with pytest.raises(IndexError, match=r"labels hold -5, at position 4321"):
        ops.cross_entropy(np.ones((10_000, 7), np.float32), labels)


def test_dtype_errors(device):
    with pytest.raises(TypeError, match=r"\[cross_entropy\] logits are int64"):
        ops.cross_entropy(np.ones((2, 2), np.int64), np.zeros(2, np.int64))
    with pytest.raises(TypeError, match=r"labels are float64: expected int32 or int64"):
        ops.cross_entropy(np.ones((2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="weight requires a gradient"):
        ops.cross_entropy(
            np.ones((2, 2)), np.zeros(2, np.int64), weight=drupe.ones((2,), "float64", requires_grad=True)
        )


def test_gradients_that_pass_the_caches_are_those_that_do_not(isa, rng):
    """Above 32 MiB they are written past the caches, where rows begin anywhere in a register; half of them is not."""
    logits, labels = rng.standard_normal((8600, 1001), np.float32), rng.integers(0, 1001, 8600)

    def run(part):
        leaf = drupe.tensor(logits[part], requires_grad=True)
        ops.cross_entropy(leaf, labels[part], reduction="sum").backward()
        return leaf.grad.numpy()

    whole = run(slice(None))
    np.testing.assert_array_equal(whole[:4300], run(slice(None, 4300)))
    np.testing.assert_array_equal(whole[4300:], run(slice(4300, None)))
