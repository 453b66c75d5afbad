"""Two bidirectional layers over 200 steps of a batch of 8: inference, and forward with backward. gru has the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import nn
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup, as_arrays

_LAYERS = 2
_GATES = {"lstm": 4, "gru": 3}
_TARGETS = {"lstm": (0.85, 0.7), "gru": (0.8, 0.4)}  # inference, training


def cases(quick: bool) -> Iterator[Case]:
    """LSTM."""
    yield from recurrent_cases("lstm", quick)


def recurrent_cases(op: str, quick: bool) -> Iterator[Case]:
    """(T, B, H); the input is H wide too."""
    T, B, H = (10, 4, 32) if quick else (200, 8, 512)
    rows = 2 * _GATES[op] * H  # of both directions' weights
    weights = rows * (H + H) + rows * (2 * H + H)
    flops = 2 * T * B * weights
    described: dict[str, Any] = {"op": op, "shapes": f"T{T} B{B} H{H} L{_LAYERS} D2", "dtype": "float32"}
    yield Case(
        name="inference",
        flops=flops,
        bytes_read=4 * (weights + T * B * H),
        bytes_written=4 * T * B * 2 * H,
        setup=partial(inference, op, T, B, H),
        target=_TARGETS[op][0],
        **described,
    )
    yield Case(
        name="forward+backward",
        flops=3 * flops,
        bytes_read=4 * (2 * weights + 2 * T * B * H),
        bytes_written=4 * (weights + 2 * T * B * 2 * H),
        setup=partial(training, op, T, B, H),
        target=_TARGETS[op][1],
        **described,
    )


def _layers(op: str, H: int) -> Any:
    return {"lstm": nn.LSTM, "gru": nn.GRU}[op](H, H, _LAYERS, bidirectional=True)


def _torch_layers(op: str, layers: Any, H: int) -> Any:
    torch = peers.torch_module()
    theirs = getattr(torch.nn, op.upper())(H, H, _LAYERS, bidirectional=True)
    theirs.load_state_dict({name: peers.torch_tensor(p.numpy()) for name, p in layers.state_dict().items()})
    return theirs.to(drupe.get_default_device())


def inference(op: str, T: int, B: int, H: int, rng: np.random.Generator) -> Setup:
    """The outputs of all steps."""
    layers = _layers(op, H).to(drupe.get_default_device())
    x = rng.standard_normal((T, B, H), dtype=np.float32)
    here = peers.here(x)

    def run() -> Any:
        with drupe.no_grad():
            return layers(here)[0]

    def torch() -> Prepared:
        theirs = _torch_layers(op, layers, H)
        return peers.torch_call(lambda _, x: theirs(x)[0], x)

    return Setup(drupe=run, peers={"torch": torch})


def training(op: str, T: int, B: int, H: int, rng: np.random.Generator) -> Setup:
    """The outputs of all steps, and the gradients of the input and of all weights."""
    layers = _layers(op, H).to(drupe.get_default_device())
    x = rng.standard_normal((T, B, H), dtype=np.float32)
    dy = rng.standard_normal((T, B, 2 * H), dtype=np.float32)
    leaf = drupe.tensor(x, requires_grad=True)

    def torch() -> Prepared:
        theirs = _torch_layers(op, layers, H)
        start, gradient = peers.torch_tensor(x, requires_grad=True), peers.torch_tensor(dy)
        grad = peers.torch_module().autograd.grad
        return Prepared(lambda: grad(theirs(start)[0], [start, *theirs.parameters()], gradient), as_arrays)

    return Setup(
        drupe=peers.drupe_backward(lambda: layers(leaf)[0], dy, leaf, *layers.parameters()),
        peers={"torch": torch},
    )
