"""Indices, labels and lengths that a captured graph finds wrong are reported by what waits for it."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from capture import captured, on_device
from drupe import cuda, ops


def test_wrong_indices_are_reported_after_the_replay(rng):
    table = on_device(rng.standard_normal((10, 3)))
    indices = on_device([[1, 2, 3], [4, 5, 6]])
    graph, y = captured(lambda: ops.embedding(table, indices))
    for wrong, place, value in (([[1, 2, 3], [4, 10, 99]], "1, 1", 10), ([[0, -1, -5], [4, 77, 6]], "0, 1", -1)):
        indices.copy_from(np.array(wrong))
        graph.replay()
        with pytest.raises(IndexError, match=rf"\[embedding\] indices\[{place}\] is {value}: the table has 10 rows"):
            cuda.synchronize()
        cuda.synchronize()  # once is enough
        indices.copy_from(np.array([[9, 0, 1], [2, 3, 4]]))
        graph.replay()
        np.testing.assert_array_equal(y.numpy(), table.numpy()[[[9, 0, 1], [2, 3, 4]]])
    with pytest.raises(IndexError, match=r"indices\[0\] is 10"):  # as ever
        ops.embedding(table, on_device([10]))


def test_wrong_ids_of_many_tables_are_reported_with_their_table(rng):
    weight, ids = on_device(rng.standard_normal((10, 3))), on_device([[1, 2], [0, 6]])
    graph, y = captured(lambda: ops.embedding_bag(weight, ids, tables=(3, 7)))
    ids.copy_from(np.array([[1, 2], [3, 7]]))
    graph.replay()
    with pytest.raises(IndexError, match=r"\[embedding_bag\] indices\[1, 0\] is 3: table 0 has 3 rows"):
        cuda.synchronize()
    ids.copy_from(np.array([[2, 0], [0, 6]]))
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), weight.numpy()[[[2, 3], [0, 9]]])
    with pytest.raises(IndexError, match=r"\[embedding_bag\] table 1 has 0 rows"):
        captured(lambda: ops.embedding_bag(weight, ids, tables=(10, 0)))


@pytest.mark.parametrize("wait", ["stream", "event", "numpy", "device", "copy"])
def test_whatever_waits_tells(wait):
    logits, labels = drupe.zeros((4, 5), device="cuda"), on_device([0, 1, 2, 3])
    graph, loss = captured(lambda: ops.cross_entropy(logits, labels))
    labels.copy_from(np.array([0, 1, 5, 7]))
    event = cuda.Event()
    graph.replay()
    event.record()
    waits = {
        "stream": cuda.current_stream().synchronize,
        "event": event.synchronize,
        "numpy": loss.numpy,
        "device": cuda.synchronize,
        "copy": lambda: labels.copy_from(np.zeros(4, np.int64)),
    }
    with pytest.raises(IndexError, match=r"\[cross_entropy\] labels hold 5, at position 2: expected 0 to 4"):
        waits[wait]()
    labels.copy_from(np.array([0, 1, -100, 4]))
    graph.replay()
    assert loss.item() == pytest.approx(np.log(5))


def test_the_first_of_several_reports_is_told(rng):
    table, ids, logits = drupe.zeros((4, 2), device="cuda"), on_device([0]), drupe.zeros((1, 3), device="cuda")
    labels = on_device([0])
    graph, _ = captured(lambda: (ops.embedding(table, ids), ops.cross_entropy(logits, labels)))
    ids.copy_from(np.array([4]))
    labels.copy_from(np.array([3]))
    graph.replay()
    graph.replay()
    with pytest.raises(IndexError, match="embedding"):
        cuda.synchronize()
    cuda.synchronize()


def test_lengths_are_checked_by_the_graph(rng):
    q = on_device(rng.standard_normal((2, 1, 3, 4)))
    lengths = on_device([3, 2])
    graph, y = captured(lambda: ops.attention(q, q, q, lengths=lengths))
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), ops.attention(q, q, q, lengths=lengths).numpy())
    lengths.copy_from(np.array([3, 4]))
    graph.replay()
    with pytest.raises(ValueError, match=r"\[attention\] .*lengths\[1\] is 4: expected 0 to 3"):
        cuda.synchronize()


def test_a_table_without_rows_is_refused_at_once():
    table, ids = drupe.zeros((0, 2), device="cuda"), on_device([0])
    with pytest.raises(IndexError, match="the table has 0 rows"):
        captured(lambda: ops.embedding(table, ids))


def test_gradients_of_an_embedding(rng):
    table = on_device(rng.standard_normal((6, 5)))
    table.requires_grad = True
    ids = on_device(rng.integers(0, 6, (40,)))
    scale = on_device(rng.standard_normal((40, 5)))

    def step():
        table.grad = None
        ops.embedding(table, ids, padding_idx=2).backward(scale)
        return table.grad

    graph, grad = captured(step)
    for batch in (rng.integers(0, 6, 40), np.full(40, 2), np.full(40, 3), rng.integers(0, 3, 40)):
        ids.copy_from(batch)
        expected = step().numpy()
        graph.replay()
        np.testing.assert_array_equal(grad.numpy(), expected)


def test_targets_are_checked_by_the_graph(rng):
    logits, lengths = on_device(rng.standard_normal((6, 2, 5))), on_device([2, 1])
    targets = on_device([[1, 2], [4, 99]])  # of the second row, one counts
    graph, loss = captured(lambda: ops.ctc_loss(logits, targets, None, lengths))
    graph.replay()
    np.testing.assert_allclose(loss.numpy(), ops.ctc_loss(logits, targets, None, lengths).numpy(), rtol=1e-12)
    above, blank = [[1, 5], [4, 0]], [[1, 2], [0, 1]]
    for wrong, message in ((above, r"\[0, 1\] is 5: expected 0 to 4 but 0"), (blank, r"\[1, 0\] is 0, the blank")):
        targets.copy_from(np.array(wrong))
        graph.replay()
        with pytest.raises(IndexError, match=r"\[ctc_loss\] targets.*" + message):
            cuda.synchronize()
    lengths.copy_from(np.array([2, 3]))
    targets.copy_from(np.array([[1, 2], [4, 3]]))
    graph.replay()
    with pytest.raises(ValueError, match=r"target_lengths\[1\] is 3: expected 0 to 2"):
        cuda.synchronize()
    flat = on_device([1, 2, 3])
    with pytest.raises(ValueError, match="a graph needs padded ones"):
        captured(lambda: ops.ctc_loss(logits, flat, None, lengths))
