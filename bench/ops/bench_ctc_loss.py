"""The loss of a small speech recogniser: letters of sentences, from logits to their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """(T, B, C) and L labels a row; the mean over the rows."""
    T, B, C, L = (20, 2, 7, 5) if quick else (400, 16, 29, 60)
    # The softmax: a maximum, a difference, an exponential and a sum. Of each step's 2 L + 1 states alpha and beta: two
    # sums and a product, and the product of both.
    classes, states = T * B * C, T * B * (2 * L + 1)
    for name, setup, walks, passes in (("forward", forward, 1, 1), ("forward+backward", training, 2, 2)):
        yield Case(
            op="ctc_loss",
            name=name,
            shapes=f"T{T} B{B} C{C} L{L}",
            dtype="float32",
            flops=4 * passes * classes + 3 * walks * states + 2 * (walks - 1) * states,
            bytes_read=4 * classes + 8 * B * L,
            bytes_written=4 * (passes - 1) * classes,
            setup=partial(setup, T, B, C, L),
            target=0.3,
        )


def _draw(T: int, B: int, C: int, L: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return rng.standard_normal((T, B, C), dtype=np.float32), rng.integers(1, C, (B, L))


def _torch(torch: Any, logits: Any, targets: Any) -> Any:
    T, B, _ = logits.shape
    lengths = torch.full((B,), T), torch.full((B,), targets.shape[1])
    return torch.nn.functional.ctc_loss(logits.log_softmax(-1), targets, *lengths)


def _walk(logp: Any, targets: Any) -> tuple[Any, Any]:
    """Log alpha of all states after each step, from (T, B, C), and each state's class."""
    B, L = targets.shape
    states = np.zeros((B, 2 * L + 1), np.int64)
    states[:, 1::2] = targets
    skips = np.zeros(states.shape, bool)
    skips[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    emitted = np.take_along_axis(logp, np.broadcast_to(states, (len(logp), *states.shape)), -1)
    alpha = np.full(emitted.shape, -np.inf)
    alpha[0, :, :2] = emitted[0, :, :2]
    for t in range(1, len(logp)):
        last = np.pad(alpha[t - 1], ((0, 0), (2, 0)), constant_values=-np.inf)
        two = np.where(skips, last[:, :-2], -np.inf)
        alpha[t] = np.logaddexp(np.logaddexp(last[:, 2:], last[:, 1:-1]), two) + emitted[t]
    return alpha, states


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(float) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _loss(logits: Any, targets: Any) -> Any:
    alpha, _ = _walk(_log_softmax(logits), targets)
    return -np.logaddexp(alpha[-1, :, -1], alpha[-1, :, -2]).mean() / targets.shape[1]


def _gradient(logits: Any, targets: Any) -> Any:
    logp = _log_softmax(logits)
    alpha, states = _walk(logp, targets)
    beta = _walk(logp[::-1], targets[:, ::-1])[0][::-1, :, ::-1]
    total = np.logaddexp(alpha[-1, :, -1], alpha[-1, :, -2])[:, None]
    gradient = np.exp(logp)
    rows = np.arange(len(targets))
    for s in range(states.shape[1]):
        own = logp[:, rows, states[:, s]]
        gradient[:, rows, states[:, s]] -= np.exp(alpha[..., s] + beta[..., s] - own - total[:, 0])
    return gradient / targets.size


def forward(T: int, B: int, C: int, L: int, rng: np.random.Generator) -> Setup:
    """The loss alone."""
    logits, targets = _draw(T, B, C, L, rng)
    return Setup(
        drupe=peers.drupe_call(ops.ctc_loss, logits, targets),
        reference=lambda: _loss(logits, targets),
        tolerance=1e-5,
        peers={"torch": lambda: peers.torch_call(_torch, logits, targets)},
    )


def training(T: int, B: int, C: int, L: int, rng: np.random.Generator) -> Setup:
    """The loss and the gradient of the logits."""
    logits, targets = _draw(T, B, C, L, rng)
    leaf, labels, one = drupe.tensor(logits, requires_grad=True), peers.here(targets), np.ones((), np.float32)
    return Setup(
        drupe=peers.drupe_backward(lambda: ops.ctc_loss(leaf, labels), one, leaf),
        reference=lambda: _gradient(logits, targets),
        tolerance=3e-3,  # PyTorch's logarithms are exact to 1e-4 here, and so are its probabilities; drupe's to 1e-6
        peers={"torch": lambda: peers.torch_training(_torch, one, logits, targets)},
    )
