"""Graphs: a captured and replayed step gives the bits of an eager one, and what cannot be captured says so."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import drupe
from drupe import cuda, nn, ops, optim, random, schedules

STATUS = drupe.cuda_status()
pytestmark = pytest.mark.skipif(not STATUS["available"], reason=STATUS["reason"])
emulated = pytest.mark.skipif(not STATUS["emulated"], reason="looks at memory that nothing has been written to")

NOT_CAPTURED = "is not possible while a graph is captured"


def on_device(array, dtype=None):
    return drupe.tensor(array, dtype).to("cuda")


def captured(function):
    """Capture it, and give the graph and what it returned."""
    graph = cuda.Graph()
    with graph.capture():
        result = function()
    return graph, result


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


# ---- a training step


class Block(nn.Module):
    """A transformer block and what it takes to train it."""

    def __init__(self, vocabulary=23, features=16, heads=2, dropout=0.1):
        self.embedding = nn.Embedding(vocabulary, features)
        self.norm = nn.LayerNorm(features)
        self.attention = nn.MultiHeadAttention(features, heads, causal=True)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(features)
        self.up = nn.Linear(features, 2 * features, activation="gelu")
        self.down = nn.Linear(2 * features, features)
        self.head = nn.Linear(features, vocabulary)

    def forward(self, tokens):
        x = self.dropout(self.embedding(tokens))  # (B, S, D)
        x = x + self.dropout(self.attention(self.norm(x)))
        x = x + self.dropout(self.down(self.up(self.norm2(x))))
        return self.head(x)


class Mlp(nn.Module):
    def __init__(self):
        self.layers = nn.Sequential(nn.Linear(12, 20, activation="relu"), nn.Dropout(0.3), nn.Linear(20, 5))

    def forward(self, x):
        return self.layers(x)


def data_for(model, rng, steps):
    if isinstance(model, Mlp):
        return rng.standard_normal((steps, 7, 12)).astype(np.float32), rng.integers(0, 5, (steps, 7))
    return rng.integers(0, 23, (steps, 2, 6)), rng.integers(0, 23, (steps, 2, 6))


OPTIMIZERS = {
    "sgd": lambda p, **k: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **k),
    "adam": lambda p, **k: optim.Adam(p, lr=0.01, weight_decay=0.01, l1=0.001, **k),
    "adamw": lambda p, **k: optim.AdamW(p, lr=0.01, **k),
    "rmsprop": lambda p, **k: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, **k),
}


def train(kind, inputs, labels, *, graphed, make, clip=None, capturable=True):
    """Take as many steps as there are batches, by a graph or without; give the losses and the parameters."""
    drupe.manual_seed(5)
    model = kind().to("cuda")
    optimizer = make(list(model.parameters()), capturable=capturable)
    scheduler = schedules.Scheduler(optimizer, schedules.linear(steps=5))
    x, y = on_device(inputs[0]), on_device(labels[0])

    def step():
        optimizer.zero_grad()
        logits = model(x)
        loss = ops.cross_entropy(logits, y)
        loss.backward()
        if clip:
            optim.clip_grad_norm(model.parameters(), clip, capturable=True)
        optimizer.step()
        return loss

    graph, loss = captured(step) if graphed else (None, None)
    losses = []
    for batch, answers in zip(inputs, labels, strict=True):
        x.copy_from(batch)
        y.copy_from(answers)
        if graph:
            graph.replay()
        else:
            loss = step()
        losses.append(loss.item())
        scheduler.step()
    return losses, {name: p.detach().numpy() for name, p in model.named_parameters()}, optimizer.state_dict()


def assert_same(one, other):
    losses, params, state = one
    others, other_params, other_state = other
    assert losses == others
    assert len(set(losses)) == len(losses)
    for name, p in params.items():
        np.testing.assert_array_equal(p, other_params[name], err_msg=name)
    assert [s["step"] for s in state["state"].values()] == [s["step"] for s in other_state["state"].values()]
    for number, entry in state["state"].items():
        for name, value in entry.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other_state["state"][number][name]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_mlp_trains_as_an_eager_one(rng, optimizer):
    inputs, labels = data_for(Mlp(), rng, 3)
    make = OPTIMIZERS[optimizer]
    eager = train(Mlp, inputs, labels, graphed=False, make=make)
    assert_same(train(Mlp, inputs, labels, graphed=True, make=make), eager)


def test_a_captured_transformer_block_trains_as_an_eager_one(rng):
    inputs, labels = data_for(Block(), rng, 3)
    eager = train(Block, inputs, labels, graphed=False, make=OPTIMIZERS["adamw"], clip=0.5)
    assert_same(train(Block, inputs, labels, graphed=True, make=OPTIMIZERS["adamw"], clip=0.5), eager)


@emulated  # where both take powers by the same library
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_capturable_optimizer_takes_the_same_steps(rng, optimizer):
    inputs, labels = data_for(Mlp(), rng, 3)
    make = OPTIMIZERS[optimizer]
    plain = train(Mlp, inputs, labels, graphed=False, make=make, capturable=False)
    assert_same(train(Mlp, inputs, labels, graphed=False, make=make), plain)


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


# ---- validation that comes later


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


# ---- optimizers


def parameter(values):
    p = on_device(np.asarray(values, np.float32))
    p.requires_grad = True
    p.grad = drupe.full(p.shape, 0.5, device="cuda")
    return p


def test_the_rate_counts_from_the_next_replay_on():
    p = parameter([1.0, 2.0])
    optimizer = optim.SGD([p], lr=0.5, capturable=True)
    graph, _ = captured(optimizer.step)
    graph.replay()
    assert p.detach().tolist() == [0.75, 1.75]
    optimizer.param_groups[0]["lr"] = 2.0
    graph.replay()
    assert p.detach().tolist() == [-0.25, 0.75]
    assert optimizer.state_dict()["state"][0]["step"] == 2
    with pytest.raises(RuntimeError, match=r"\[SGD\] lr is set while a graph is captured"), cuda.Graph().capture():
        optimizer.param_groups[0]["lr"] = 1.0


def test_the_scale_of_gradients_on_the_device():
    p = parameter([1.0, 2.0])
    optimizer = optim.SGD([p], lr=1.0, capturable=True)
    scale = drupe.full((), 2.0, "float64", device="cuda")
    graph, _ = captured(lambda: optimizer.step(grad_scale=scale))
    graph.replay()
    assert p.detach().tolist() == [0, 1]
    scale.copy_from(drupe.full((), 0.0, "float64"))
    graph.replay()
    assert p.detach().tolist() == [0, 1]


@pytest.mark.parametrize("capturable", [False, True])
def test_states_are_saved_and_loaded(rng, capturable):
    values = rng.standard_normal(6)
    p, other = parameter(values), parameter(values)
    first = optim.AdamW([p], lr=0.1, capturable=True)
    graph, _ = captured(first.step)
    for _ in range(2):
        graph.replay()
    second = optim.AdamW([other], lr=0.5, capturable=capturable)
    other.copy_from(p.detach())
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 0.1
    graph.replay()
    second.step()
    np.testing.assert_allclose(other.detach().numpy(), p.detach().numpy(), rtol=1e-6)
    kept, state = p.detach().numpy(), first.state_dict()
    state = {**state, "state": {0: {k: drupe.tensor(v) if k != "step" else v for k, v in state["state"][0].items()}}}
    graph.replay()
    moved = p.detach().numpy()
    p.copy_from(kept)
    first.load_state_dict(state)  # into the memory that the graph knows
    graph.replay()
    np.testing.assert_array_equal(p.detach().numpy(), moved)


def test_clipping_on_the_device(rng):
    gradients = [rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal(5).astype(np.float32)]
    for max_norm in (0.5, 100.0):
        plain, there = ([parameter(np.zeros_like(g)) for g in gradients] for _ in range(2))
        for p, q, g in zip(plain, there, gradients, strict=True):
            p.grad = q.grad = on_device(g)
        norm = optim.clip_grad_norm(plain, max_norm)
        found = optim.clip_grad_norm(there, max_norm, capturable=True)
        assert found.device == "cuda:0"
        assert found.item() == pytest.approx(norm, rel=1e-14)
        for p, q in zip(plain, there, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=2e-7)
    host = drupe.tensor([3.0, 4.0], requires_grad=True)
    host.grad = drupe.tensor([3.0, 4.0])
    assert optim.clip_grad_norm([host], 1.0, capturable=True).item() == 5
    np.testing.assert_allclose(host.grad.numpy(), [0.6, 0.8], rtol=1e-6)
    host.grad = drupe.tensor([np.inf, 4.0])
    assert optim.clip_grad_norm([host], 1.0, capturable=True).item() == np.inf
    assert host.grad.tolist() == [np.inf, 4]
    norm, factor = ops.clip_factor([], 1.0)
    assert (norm.item(), factor.item()) == (0, 1)
    with pytest.raises(ValueError, match=r"\[clip_factor\] max_norm is -1"):
        ops.clip_factor([host], -1.0)


def test_scalars_on_the_device_are_checked():
    p, g = drupe.zeros((3,), device="cuda"), drupe.zeros((3,), device="cuda")
    rate = drupe.full((), 0.1, "float64", device="cuda")
    count = drupe.zeros((), "int64", device="cuda")
    ops.sgd([p], [g], lr=rate, steps=[count])
    assert count.item() == 1
    with pytest.raises(TypeError, match=r"\[sgd\] lr is float32: expected float64"):
        ops.sgd([p], [g], lr=drupe.zeros((), device="cuda"))
    with pytest.raises(ValueError, match=r"\[sgd\] lr is \(1\): expected no dimensions|\[sgd\] lr is \(1,\)"):
        ops.sgd([p], [g], lr=drupe.zeros((1,), "float64", device="cuda"))
    with pytest.raises(ValueError, match=r"\[sgd\] lr lies on cpu"):
        ops.sgd([p], [g], lr=drupe.full((), 0.1, "float64", device="cpu"))
    with pytest.raises(ValueError, match=r"1 params and 2 steps"):
        ops.sgd([p], [g], lr=rate, steps=[count, count])
    with pytest.raises(ValueError, match="counted twice"):
        ops.sgd([p, drupe.zeros((3,), device="cuda")], [g, g], lr=rate, steps=[count, count])
    with pytest.raises(ValueError, match="lie on the CPU: expected a number"):
        ops.sgd([drupe.zeros((3,), device="cpu")], [drupe.zeros((3,), device="cpu")], lr=rate)
    with pytest.raises(ValueError, match=r"params\[1\] lies on cpu, params\[0\] on cuda:0"):
        optim.AdamW([parameter([1.0]), drupe.tensor([1.0], requires_grad=True)], capturable=True)
