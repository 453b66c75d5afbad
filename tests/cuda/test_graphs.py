"""Graphs: what a replay does, what cannot be captured, and what it draws."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import drupe
from capture import captured, on_device
from drupe import cuda, ops, optim, random

STATUS = drupe.cuda_status()
emulated = pytest.mark.skipif(not STATUS["emulated"], reason="looks at memory that nothing has been written to")
NOT_CAPTURED = "is not possible while a graph is captured"


# ---- capture and replay


def test_a_replay_computes_anew(rng):
    first, second = rng.standard_normal((2, 1000))
    x = on_device(first)
    graph, y = captured(lambda: ops.add(ops.square(x), 1.0))
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), first**2 + 1)
    x.copy_from(second)
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), second**2 + 1)
    stream = cuda.Stream()
    x.copy_from(first)
    stream.wait(cuda.current_stream())
    with stream:
        graph.replay()
        np.testing.assert_array_equal(y.numpy(), first**2 + 1)


@emulated
def test_a_capture_computes_nothing():
    x = drupe.full((10,), 2.0, device="cuda")
    with drupe.no_grad():
        _, y = captured(lambda: ops.square(x))
    assert np.isnan(y.numpy()).all()


def test_replays_allocate_nothing(rng):
    x = on_device(rng.standard_normal((50, 40)))
    gc.collect()
    before = cuda.memory_stats("cuda")
    graph, y = captured(lambda: ops.sum(ops.softmax(ops.gemm(x, ops.square(x), transpose_b=True))))
    held = cuda.memory_stats("cuda")
    assert held["graph_bytes"] > before["graph_bytes"]
    for _ in range(3):
        graph.replay()
    assert cuda.memory_stats("cuda") == held
    assert y.item() == pytest.approx(50)
    del graph
    assert cuda.memory_stats("cuda")["graph_bytes"] > before["graph_bytes"]  # y lies there
    assert y.item() == pytest.approx(50)
    del y
    after = cuda.memory_stats("cuda")
    assert after["graph_bytes"] == before["graph_bytes"]
    assert after["in_use_bytes"] == before["in_use_bytes"]


def test_what_is_dropped_in_a_capture_stays_the_graphs(rng):
    array = rng.standard_normal(3000)
    x = on_device(array)

    def step():
        nonlocal x
        x = ops.add(x, 1.0)
        return ops.square(x)

    graph, y = captured(step)
    del x
    others = [drupe.zeros((3000,), "float64", device="cuda") for _ in range(4)]
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), (array + 1) ** 2)
    del graph, y, others
    t = drupe.zeros((3000,), "float64", device="cuda")
    assert t.tolist() == [0] * 3000


def test_other_streams_take_part(rng):
    array = rng.standard_normal(500)
    x, graph, side = on_device(array), cuda.Graph(), cuda.Stream()
    with graph.capture():
        forked, joined = cuda.Event(), cuda.Event()
        forked.record()
        side.wait(forked)
        with side:
            assert cuda.is_capturing()
            left = ops.square(x)
            joined.record()
        right = ops.add(x, 1.0)
        cuda.current_stream().wait(joined)
        y = ops.mul(left, right)
    assert not cuda.is_capturing()
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), array**2 * (array + 1))
    with side:
        assert ops.square(x).numpy()[0] == array[0] ** 2  # out of the capture again


def test_batches_from_page_locked_memory(rng):
    batches = rng.standard_normal((3, 64))
    held = [cuda.pin(batches[0])]
    pinned = held[0]

    def step():
        return ops.square(held[0].to("cuda", non_blocking=True)).to("cpu", non_blocking=True)

    graph, y = captured(step)
    where = pinned.numpy()
    held.clear()
    del pinned
    for batch in batches:
        where[...] = batch
        graph.replay()
        cuda.synchronize()
        np.testing.assert_array_equal(y.numpy(), batch**2)


# ---- what cannot be captured


def illegal(x):
    host, event, graph = np.ones(3), cuda.Event(), cuda.Graph()
    pinned, stream = cuda.pin(host), cuda.current_stream()

    def inner():
        with graph.capture():
            pass

    return {
        "item": (lambda: ops.sum(x).item(), f"reading a device's memory on the host {NOT_CAPTURED}"),
        "numpy": (lambda: x.numpy(), f"reading a device's memory on the host {NOT_CAPTURED}"),
        "to cpu": (lambda: x.to("cpu"), f"reading a device's memory on the host {NOT_CAPTURED}"),
        "array": (lambda: ops.add(x, host), f"memory that is not page-locked, or without non_blocking, {NOT_CAPTURED}"),
        "pageable": (lambda: drupe.tensor(host).to("cuda", non_blocking=True), f"page-locked.*{NOT_CAPTURED}"),
        "pinned, blocking": (lambda: pinned.to("cuda"), f"non_blocking, {NOT_CAPTURED}"),
        "device": (cuda.synchronize, f"waiting for the device {NOT_CAPTURED}"),
        "stream": (lambda: cuda.current_stream().synchronize(), f"waiting for the stream {NOT_CAPTURED}"),
        "event": (lambda: (event.record(), event.synchronize()), f"waiting for an event {NOT_CAPTURED}"),
        "query": (lambda: (event.record(), event.query()), f"asking for an event {NOT_CAPTURED}"),
        "cache": (cuda.empty_cache, f"emptying the cache {NOT_CAPTURED}"),
        "capture": (inner, "this thread is capturing a graph already"),
        "memory": (
            lambda: [stream.__enter__(), drupe.empty((2**20 + 1,), device="cuda")],
            f"allocating memory on a stream that is not captured {NOT_CAPTURED}",
        ),
        "norm": (lambda: ops.global_norm([x]), NOT_CAPTURED),
        "sparse": (
            lambda: ops.sum(
                ops.embedding(drupe.zeros((4, 2), device="cuda", requires_grad=True), on_ids, sparse=True)
            ).backward(),
            r"\[sum_rows\] .* while a graph is captured it must be dense",
        ),
        "clip": (lambda: optim.clip_grad_norm([weighted], 1.0), NOT_CAPTURED),
    }


on_ids = weighted = None


@pytest.mark.parametrize("attempt", illegal(None) if STATUS["available"] else [])
def test_what_cannot_be_captured(attempt):
    global on_ids, weighted
    on_ids = on_device([1, 2])
    weighted = drupe.zeros((2,), device="cuda", requires_grad=True)
    weighted.grad = drupe.zeros((2,), device="cuda")
    x = drupe.full((3,), 2.0, "float64", device="cuda")
    cuda.empty_cache()
    act, message = illegal(x)[attempt]
    graph, default = cuda.Graph(), cuda.current_stream()

    def attempt_it():
        with graph.capture():
            ops.square(x)
            act()

    with pytest.raises(RuntimeError, match=message):
        attempt_it()
    while cuda.current_stream() != default:  # entered above, and never left
        cuda.current_stream().__exit__(None, None, None)
    assert not cuda.is_capturing()
    with pytest.raises(RuntimeError, match="the graph has not been captured"):
        graph.replay()
    cuda.synchronize()
    assert ops.square(x).tolist() == [4, 4, 4]
    with graph.capture():  # the graph can be captured anew
        y = ops.square(x)
    graph.replay()
    assert y.tolist() == [4, 4, 4]


def test_a_graph_is_captured_once():
    x = drupe.zeros((3,), device="cuda")
    graph, _ = captured(lambda: ops.square(x))
    with pytest.raises(RuntimeError, match="captured before"), graph.capture():
        pass
    with pytest.raises(RuntimeError, match="has not been captured"):
        cuda.Graph().replay()


def test_the_default_stream_cannot_be_captured():
    default = cuda.current_stream()
    with pytest.raises(RuntimeError, match="the default stream cannot be captured"), cuda.Graph().capture(default):
        pass
    x, graph, event = drupe.ones((3,), device="cuda"), cuda.Graph(), cuda.Event()

    def drag_in():
        with graph.capture():
            event.record()
            default.wait(event)

    with pytest.raises(RuntimeError, match="legacy"):
        drag_in()
    assert ops.add(x, 1.0).tolist() == [2, 2, 2]


def test_a_stream_that_does_not_come_back():
    side, x = cuda.Stream(), drupe.ones((3,), device="cuda")

    def leave():
        with cuda.Graph().capture():
            side.wait(cuda.current_stream())
            with side:
                ops.square(x)

    with pytest.raises(RuntimeError, match="unjoined"):
        leave()
    with side:
        assert ops.add(x, 1.0).tolist() == [2, 2, 2]


def test_what_was_queued_before_a_capture_cannot_be_waited_for():
    side, x = cuda.Stream(), drupe.ones((3,), device="cuda")
    with side:
        ops.square(x)
    with pytest.raises(RuntimeError, match=r"uncaptured|isolat"), cuda.Graph().capture():
        cuda.current_stream().wait(side)
    assert ops.add(x, 1.0).tolist() == [2, 2, 2]


def test_no_replay_in_a_capture():
    x = drupe.ones((3,), device="cuda")
    graph, y = captured(lambda: ops.add(x, 1.0))
    with pytest.raises(RuntimeError, match=f"a replay {NOT_CAPTURED}"), cuda.Graph().capture():
        graph.replay()
    graph.replay()
    assert y.tolist() == [2, 2, 2]


def test_another_error_ends_the_capture():
    x = drupe.ones((3,), device="cuda")
    with pytest.raises(ValueError, match="gemm"), cuda.Graph().capture():
        ops.gemm(x, drupe.ones((4, 4), device="cuda"))
    with pytest.raises(KeyError), cuda.Graph().capture():
        raise KeyError
    cuda.synchronize()
    assert ops.add(x, 1.0).tolist() == [2, 2, 2]


def test_threads_that_do_not_capture_go_on():
    import threading

    x, seen = drupe.ones((3,), device="cuda"), []
    with cuda.Graph().capture():
        thread = threading.Thread(target=lambda: seen.append(ops.add(x, 1.0).tolist()))
        thread.start()
        thread.join()
    assert seen == [[2, 2, 2]]


# ---- random numbers


def test_replays_draw_as_eager_steps_do():
    x = drupe.ones((64,), device="cuda")

    def step():
        return ops.add(ops.dropout(x, 0.5), ops.dropout(x, 0.25))

    drupe.manual_seed(3)
    expected = [step().numpy() for _ in range(4)]
    after = random.next_stream()
    graph, y = captured(step)
    drupe.manual_seed(3)
    masks = []
    for i in range(4):
        if i == 2:  # an eager step between
            masks.append(step().numpy())
            continue
        graph.replay()
        masks.append(y.numpy())
    np.testing.assert_array_equal(masks, expected)
    assert random.next_stream() == after
    assert len({mask.tobytes() for mask in masks}) == 4


def test_the_backward_pass_has_the_same_mask():
    x = drupe.full((64,), 1.0, requires_grad=True, device="cuda")

    def step():
        x.grad = None
        y = ops.dropout(x, 0.5)
        y.backward(drupe.ones((64,), device="cuda"))
        return y, x.grad

    graph, (y, grad) = captured(step)
    for _ in range(2):
        graph.replay()
        np.testing.assert_array_equal(y.detach().numpy(), grad.numpy())


def test_a_seed_of_ones_own_stays():
    x = drupe.ones((64,), device="cuda")
    graph, y = captured(lambda: ops.dropout(x, 0.5, seed=7, offset=2))
    expected = ops.dropout(x, 0.5, seed=7, offset=2).numpy()
    for _ in range(2):
        graph.replay()
        np.testing.assert_array_equal(y.numpy(), expected)
