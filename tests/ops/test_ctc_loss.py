from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

NEVER = -np.inf


def by_enumeration(logits, labels, blank):
    """The loss of one row (T, C): the sum over all sequences of classes."""
    logp = log_softmax(f64(logits), -1)
    total = []
    for path in product(range(logits.shape[1]), repeat=len(logits)):
        merged = [c for i, c in enumerate(path) if i == 0 or c != path[i - 1]]
        if [c for c in merged if c != blank] == list(labels):
            total.append(sum(logp[t, c] for t, c in enumerate(path)))
    return -logsumexp(total) if total else np.inf


def walk(logp, states, skips):
    """Log alpha of one row, after each step."""
    alpha = np.full((len(logp), len(states)), NEVER)
    for t in range(len(logp)):
        if t == 0:
            alpha[0, : min(2, len(states))] = logp[0, states[:2]]
            continue
        last = alpha[t - 1]
        one = np.concatenate([[NEVER], last[:-1]])
        two = np.where(skips, np.concatenate([[NEVER, NEVER], last[:-2]])[: len(states)], NEVER)
        alpha[t] = np.logaddexp(np.logaddexp(last, one), two) + logp[t, states]
    return alpha


def row_reference(logits, labels, blank):
    """The loss and the gradient of one row (T, C), in float64 and logarithms."""
    z = f64(logits)
    T = len(z)
    if T == 0:
        return (np.inf if len(labels) else 0.0), np.zeros_like(z)
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    logp = log_softmax(z, -1)
    alpha = walk(logp, states, skips)
    # Backwards it is the same walk over the reversed labels, whose skips are between the same pairs.
    back = np.zeros(len(states), bool)
    back[3::2] = skips[3::2][::-1]
    beta = walk(logp[::-1], states[::-1], back)[::-1, ::-1]
    total = logsumexp(alpha[-1, -2:])
    if np.isneginf(total):
        return np.inf, np.full_like(z, np.nan)
    grad = softmax(z, -1)
    with np.errstate(invalid="ignore"):
        posterior = np.exp(np.nan_to_num(alpha + beta - logp[:, states] - total, nan=NEVER))
    for s, state in enumerate(states):
        grad[:, state] -= posterior[:, s]
    return -total, grad


def reference(logits, targets, input_lengths, target_lengths, *, blank=0, reduction="mean", zero_infinity=False):
    B = logits.shape[1]
    losses, grads = np.zeros(B), np.zeros(logits.shape)
    for b in range(B):
        n = input_lengths[b]
        begin = sum(target_lengths[:b]) if targets.ndim == 1 else 0
        row = targets if targets.ndim == 1 else targets[b]
        losses[b], grads[:n, b] = row_reference(logits[:n, b], row[begin : begin + target_lengths[b]], blank)
        if zero_infinity and np.isinf(losses[b]):
            losses[b], grads[:, b] = 0, 0
        if reduction == "mean":
            weight = 1 / max(1, target_lengths[b]) / B
            losses[b], grads[:, b] = losses[b] * weight, grads[:, b] * weight
    return (losses if reduction == "none" else losses.sum()), grads


def draw(rng, T, B, C, L, name="float64", blank=0, scale=1.0):
    logits = (scale * rng.standard_normal((T, B, C))).astype(dtype(name))
    targets = rng.integers(0, C - 1, (B, L))
    return logits, targets + (targets >= blank)


def run(logits, targets, *lengths, **options):
    leaf = drupe.tensor(logits, requires_grad=True)
    loss = ops.ctc_loss(leaf, targets, *lengths, **options)
    loss.backward(np.ones(loss.shape, loss.dtype))
    return loss.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("T", [1, 2, 3, 5])
def test_sums_over_all_alignments(backend, rng, T):
    logits, _ = draw(rng, T, 1, 3, 1)
    for labels in ([], [0], [2], [0, 2], [0, 0], [2, 0, 2], [0, 0, 0]):
        expected = by_enumeration(logits[:, 0], labels, 1)
        loss = ops.ctc_loss(logits, np.array([labels], np.int64), blank=1, reduction="sum")
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(row_reference(logits[:, 0], labels, 1)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    ("T", "C", "L"), [(1, 2, 1), (9, 5, 4), (20, 29, 7), (20, 16, 8), (37, 17, 15), (37, 33, 16), (40, 7, 17)], ids=str
)
def test_matches_numpy(backend, rng, name, T, C, L):
    logits, targets = draw(rng, T, 3, C, L, name)
    input_lengths, target_lengths = np.array([T, T, max(1, T - 2)]), np.array([L, max(0, L - 3), min(1, L)])
    loss, grad = run(logits, targets, input_lengths, target_lengths, reduction="none")
    expected, expected_grad = reference(logits, targets, input_lengths, target_lengths, reduction="none")
    accumulator = "float64" if name == "float64" else "float32"
    assert loss.dtype == accumulator
    assert grad.dtype == dtype(name)
    assert_close(loss, expected, accumulator, T, 5)
    # The reference's own logarithms cost it some digits.
    assert_close(grad, expected_grad, name, T, 10 if name == "float64" else 1)
    y = ops.ctc_loss(logits, targets, input_lengths, target_lengths, reduction="none")
    np.testing.assert_array_equal(y, loss)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("blank", [0, 3, 5])
@pytest.mark.parametrize("concatenated", [False, True])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_options(backend, rng, reduction, zero_infinity, blank, concatenated, index):
    logits, targets = draw(rng, 9, 5, 6, 4, blank=blank)
    input_lengths, target_lengths = np.array([9, 7, 2, 0, 0], index), np.array([4, 0, 4, 0, 1], index)
    targets = targets.astype(index)
    padded = targets.copy()
    for b, length in enumerate(target_lengths):
        padded[b, length:] = [-7, blank, 10**9, 6][: 4 - length]
    if concatenated:
        padded = np.concatenate([row[:n] for row, n in zip(targets, target_lengths, strict=True)])
    options = {"blank": blank, "reduction": reduction, "zero_infinity": zero_infinity}
    loss, grad = run(logits, padded, input_lengths, target_lengths, **options)
    expected, expected_grad = reference(logits, padded, input_lengths, target_lengths, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-12)


def test_zero_infinity_leaves_the_others_alone(backend, rng):
    logits, _ = draw(rng, 3, 3, 4, 2)
    targets, lengths = np.array([[1, 2], [1, 1], [2, 2]]), np.array([3, 2, 3])
    loss, grad = run(logits, targets, lengths, reduction="none")
    np.testing.assert_array_equal(np.isinf(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(grad).all((0, 2)), [False, False, False])
    assert np.isnan(grad[:2, 1]).all()
    np.testing.assert_array_equal(grad[2, 1], np.zeros(4))
    zero_loss, zero_grad = run(logits, targets, lengths, reduction="none", zero_infinity=True)
    np.testing.assert_array_equal(zero_loss[[0, 2]], loss[[0, 2]])
    np.testing.assert_array_equal(zero_grad[:, [0, 2]], grad[:, [0, 2]])
    assert zero_loss[1] == 0
    assert not zero_grad[:, 1].any()


def test_classes_of_probability_zero(backend, rng):
    logits, targets = draw(rng, 12, 4, 6, 3)
    logits[4, 0, :] = [0, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf]  # only the blank
    logits[:, 1, targets[1, 1]] = -np.inf  # a label that never comes
    logits[:, 2, 0] = -np.inf  # no blank at all
    logits[:, 3, (set(range(1, 6)) - set(targets[3])).pop()] = -np.inf
    targets[2] = [1, 2, 1]
    lengths = np.full(4, 12), np.full(4, 3)
    loss, grad = run(logits, targets, *lengths, reduction="none")
    expected, expected_grad = reference(logits, targets, *lengths, reduction="none")
    np.testing.assert_array_equal(np.isinf(loss), [False, True, False, False])
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_row(backend, rng, bad):
    logits, targets = draw(rng, 5, 5, 40, 2, "float32")
    logits[3, 1, 39] = bad
    logits[4, 2, 0] = bad  # behind the end
    logits[0, 3] = -np.inf
    lengths = np.array([5, 5, 4, 5, 5])
    loss, grad = run(logits, targets, lengths, reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False, True, False])
    np.testing.assert_array_equal(np.isnan(grad).all((0, 2)), [False, True, False, True, False])
    np.testing.assert_array_equal(np.isnan(grad).any((0, 2)), [False, True, False, True, False])
    np.testing.assert_array_equal(np.isnan(run(logits, targets, lengths, zero_infinity=True)[0]), True)


@pytest.mark.parametrize("confidence", [3.0, 30.0, 300.0])
def test_labels_that_a_network_is_sure_not_to_see(backend, rng, confidence):
    """All along it says blank, so that every state but the first ones lies far below what a float can hold."""
    T, L = (60, 20) if backend == "cuda" else (300, 90)
    logits, targets = draw(rng, T, 2, 12, L, "float32")
    logits[..., 0] += np.float32(confidence)
    lengths = np.full(2, T), np.full(2, L)
    loss, grad = run(logits, targets, *lengths, reduction="none")
    expected, expected_grad = reference(logits, targets, *lengths, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=3e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-4)


def test_long_sequences(isa, rng):
    T = 400 if isa == "scalar" else 2000
    logits, targets = draw(rng, T, 1, 20, 60, "float32", scale=5)
    loss, grad = run(logits, targets, reduction="none")
    expected, expected_grad = reference(logits, targets, [T], [60], reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-5)


def test_more_labels_than_threads(device, rng):
    """And than a block's shared memory holds."""
    logits, targets = draw(rng, 330, 2, 4, 260)
    lengths = np.array([330, 200]), np.array([260, 130])
    loss, grad = run(logits, targets, *lengths, reduction="none")
    expected, expected_grad = reference(logits, targets, *lengths, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-11)


def test_logits_of_any_size(backend):
    logits = np.zeros((3, 2, 20), np.float32)
    logits[:, 0, 1:] = -3e38
    logits[:, 1] = 1e6
    logits[:, 1, 2] = 1e6 - 4e4
    loss, grad = run(logits, np.array([[1], [2]]), reduction="none")
    assert loss[0] == np.inf  # above 1e37
    np.testing.assert_allclose(loss[1], 4e4 + np.log(19) - np.log(3) + 2 * np.log(19) - 0, rtol=1e-3)
    assert np.isfinite(grad[:, 1]).all()


def test_log_probabilities_give_the_same(backend, rng):
    logits, targets = draw(rng, 10, 3, 8, 4)
    loss, grad = run(logits, targets)
    other, other_grad = run(log_softmax(logits, -1), targets)
    np.testing.assert_allclose(other, loss, rtol=1e-12)
    np.testing.assert_allclose(other_grad, grad, atol=1e-12)


@pytest.mark.parametrize(("T", "B", "L"), [(0, 2, 0), (0, 2, 1), (3, 0, 2), (3, 2, 0), (0, 0, 0)], ids=str)
def test_zero_sizes(backend, rng, T, B, L):
    logits, targets = draw(rng, T, B, 4, L)
    for reduction in ("none", "sum", "mean"):
        loss, grad = run(logits, targets, reduction=reduction)
        expected, expected_grad = reference(logits, targets, [T] * B, [L] * B, reduction=reduction)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(grad, expected_grad, atol=1e-12)
    assert ops.ctc_loss(logits, np.zeros(0, np.int64), None, np.zeros(B, np.int64)).shape == ()


def test_one_class_and_no_labels(backend):
    loss, grad = run(np.ones((4, 2, 1)), np.zeros((2, 0), np.int64))
    assert loss == 0
    assert not grad.any()


def test_strided_misaligned_and_read_only_operands(backend, rng):
    logits, targets = draw(rng, 17, 4, 40, 6)
    view = np.ascontiguousarray(logits.transpose(2, 0, 1)).transpose(1, 2, 0)[::-1, ::2]
    labels = np.repeat(targets, 2, axis=1)[::2, ::2]
    labels.flags.writeable = False
    expected, expected_grad = reference(view, labels, [17, 17], [6, 6])
    loss, grad = run(view, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-12)
    buffer = np.zeros(4 * 5 * 2 * 7 + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(5, 2, 7)
    shifted[...] = rng.standard_normal(shifted.shape)
    expected = reference(shifted, targets[:2, :2] % 6 + 1, [5, 5], [2, 2])[0]
    assert_close(ops.ctc_loss(shifted, targets[:2, :2] % 6 + 1), expected, "float32", 5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients(device, rng, reduction):
    logits, targets = draw(rng, 5, 3, 4, 3)
    targets[0] = [1, 1, 2]
    lengths = np.array([5, 4, 3]), np.array([3, 2, 0])

    def function(logits):
        return ops.ctc_loss(logits, targets, *lengths, reduction=reduction)

    check_gradients(function, logits, rng=rng)


def test_backward_twice_and_scaled(device, rng):
    logits, targets = draw(rng, 6, 2, 5, 2, "float16")
    leaf = drupe.tensor(logits, requires_grad=True)
    loss = ops.ctc_loss(leaf, targets)
    loss.backward(np.float32(1024), retain_graph=True)
    first, leaf.grad = leaf.grad.numpy(), None
    loss.backward(np.float32(1024))
    np.testing.assert_array_equal(leaf.grad.numpy(), first)
    expected = reference(logits, targets, [6, 6], [2, 2])[1]
    assert_close(first, 1024 * expected, "float16", 1, 1024)


def test_without_a_gradient_none_is_recorded(device, rng):
    logits, targets = draw(rng, 6, 2, 5, 2)
    with drupe.no_grad():
        assert not ops.ctc_loss(drupe.tensor(logits, requires_grad=True), targets).requires_grad


def test_same_bits_on_any_number_of_threads(backend, rng):
    logits, targets = draw(rng, 30, 7, 19, 9, "float32")
    lengths = rng.integers(20, 31, 7), rng.integers(0, 10, 7)
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(run(logits, targets, *lengths))
    drupe.set_num_threads(before)
    for loss, grad in results[1:]:
        np.testing.assert_array_equal(loss, results[0][0])
        np.testing.assert_array_equal(grad, results[0][1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_matches_torch(device, rng, reduction, name):
    torch = pytest.importorskip("torch")
    logits, targets = draw(rng, 25, 4, 11, 8, name)
    lengths = np.array([25, 20, 18, 25]), np.array([8, 5, 0, 1])
    leaf = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        leaf.log_softmax(-1), torch.tensor(targets), *map(torch.tensor, lengths), reduction=reduction
    )
    theirs.sum().backward()
    loss, grad = run(logits, targets, *lengths, reduction=reduction)
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=2e-5 if name == "float32" else 1e-12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": [[1, 4], [1, 2]]}, IndexError, r"\[ctc_loss\] targets\[0, 1\] is 4: expected 0 to 3 but 0, the b"),
        ({"targets": [[1, 2], [-1, 2]]}, IndexError, r"targets\[1, 0\] is -1: expected 0 to 3"),
        ({"targets": [[1, 2], [1, 0]]}, IndexError, r"targets\[1, 1\] is 0, the blank"),
        ({"targets": [[1, 0], [1, 2]], "blank": 2}, IndexError, r"targets\[1, 1\] is 2, the blank"),
        ({"targets": [1, 2, 9], "target_lengths": [2, 1]}, IndexError, r"targets\[2\] is 9"),
        ({"targets": [1, 2, 3], "target_lengths": [2, 2]}, ValueError, r"targets are \(3,\): .* add up to more"),
        ({"targets": [1, 2, 3], "target_lengths": [1, 1]}, ValueError, r"targets are \(3,\): .* add up to 2"),
        ({"targets": [1, 2, 3]}, ValueError, r"targets are \(3,\).*: target_lengths are missing"),
        ({"targets": [[1, 2]]}, ValueError, r"logits are \(3, 2, 4\), targets are \(1, 2\): expected \(2, L\)"),
        ({"targets": 1}, ValueError, r"targets are \(\): expected \(2, L\), or one dimension"),
        ({"logits": (3, 2)}, ValueError, r"logits are \(3, 2\): expected \(T, B, C\)"),
        ({"logits": (3, 2, 0)}, ValueError, r"blank is 0: expected 0 to -1"),
        ({"blank": 4}, ValueError, r"blank is 4: expected 0 to 3, a class"),
        ({"blank": -1}, ValueError, r"blank is -1"),
        ({"input_lengths": [3, 4]}, ValueError, r"input_lengths\[1\] is 4: expected 0 to 3"),
        ({"input_lengths": [-1, 3]}, ValueError, r"input_lengths\[0\] is -1"),
        ({"input_lengths": [3]}, ValueError, r"input_lengths is \(1,\): expected \(2,\)"),
        ({"target_lengths": [3, 2]}, ValueError, r"target_lengths\[0\] is 3: expected 0 to 2"),
        ({"target_lengths": [[1], [2]]}, ValueError, r"target_lengths is \(2, 1\): expected \(2,\)"),
        ({"reduction": "max"}, ValueError, r'reduction is "max": expected mean, sum or none'),
        ({"dtype": np.int64}, TypeError, r"logits are int64: expected float32"),
        ({"targets": [[1.0, 2], [3, 1]]}, TypeError, r"targets are float64: expected int32 or int64"),
        ({"input_lengths": [1.0, 2]}, TypeError, r"input_lengths is float64: expected int32 or int64"),
    ],
)
def test_errors_name_what_is_wrong(device, changes, error, message):
    changes = dict(changes)
    logits = np.ones(changes.pop("logits", (3, 2, 4)), changes.pop("dtype", np.float64))
    targets = np.array(changes.pop("targets", [[1, 2], [3, 1]]))
    lengths = {k: np.array(changes.pop(k)) for k in ("input_lengths", "target_lengths") if k in changes}
    with pytest.raises(error, match=message):
        ops.ctc_loss(logits, targets, **lengths, **changes)
