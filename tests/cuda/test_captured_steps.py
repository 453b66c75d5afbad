"""A captured and replayed training step gives the bits of an eager one."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from capture import captured, on_device
from drupe import cuda, nn, ops, optim, schedules
from reference import dtype as np_dtype
from reference import f64

STATUS = drupe.cuda_status()
emulated = pytest.mark.skipif(not STATUS["emulated"], reason="a GPU takes powers by another library than the host")


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


@emulated
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_capturable_optimizer_takes_the_same_steps(rng, optimizer):
    inputs, labels = data_for(Mlp(), rng, 3)
    make = OPTIMIZERS[optimizer]
    plain = train(Mlp, inputs, labels, graphed=False, make=make, capturable=False)
    assert_same(train(Mlp, inputs, labels, graphed=False, make=make), plain)


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


def test_other_options_are_not_loaded_into_what_graphs_know():
    p = parameter([1.0, 2.0])
    optimizer = optim.SGD([p], lr=0.5, capturable=True)
    graph, _ = captured(optimizer.step)
    other = parameter([1.0, 2.0])
    source = optim.SGD([other], lr=0.25, momentum=0.9)
    source.step()
    with pytest.raises(ValueError, match=r"\[SGD\] the options want the states .*buffer.*, made were \['step'\]"):
        optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
    graph.replay()
    assert p.detach().tolist() == [0.75, 1.75]
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="with capturable=True they stay as they are"):
        optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_steps_of_empty_parameters_count():
    p = parameter(np.zeros((0, 3)))
    optimizer = optim.AdamW([p, parameter([1.0])], capturable=True)
    graph, _ = captured(optimizer.step)
    for _ in range(3):
        graph.replay()
    assert [state["step"] for state in optimizer.state_dict()["state"].values()] == [3, 3]


def test_what_each_replay_would_repeat_is_not_captured():
    p = parameter([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"\[Adam\] a step that is captured needs an optimizer with capturable=True"):
        captured(optim.Adam([p]).step)
    half, grad = (drupe.ones((3,), "float16", device="cuda") for _ in range(2))
    with pytest.raises(RuntimeError, match=r"\[sgd\] stochastic rounding in a captured graph would draw the same"):
        captured(lambda: ops.sgd([half], [grad], lr=0.1, stochastic_rounding=True, seed=1))
    assert half.tolist() == [1, 1, 1]


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float32_masters_take_part(dtype):
    def steps(capturable):
        p = on_device(np.linspace(-1, 1, 20), dtype)
        p.requires_grad = True
        p.grad = drupe.full(p.shape, 1e-3, dtype, device="cuda")  # less than a rounding step of the parameter's
        optimizer = optim.SGD([p], lr=0.1, momentum=0.5, master_weights=True, capturable=capturable)
        step = captured(optimizer.step)[0].replay if capturable else optimizer.step
        for _ in range(3):
            step()
        return p.detach().numpy(), optimizer.state_dict()["state"][0]["master"].numpy()

    for graphed, eager in zip(steps(True), steps(False), strict=True):
        np.testing.assert_array_equal(graphed, eager)
    np.testing.assert_allclose(
        steps(True)[1], f64(np.linspace(-1, 1, 20).astype(np_dtype(dtype))) - 1e-4 * 4.25, atol=1e-6
    )
