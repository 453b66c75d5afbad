"""Cross entropy over a vocabulary: GPT-2's 50257 words."""

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
    """Rows by classes, forward and backward, mean over the rows."""
    rows, classes = (32, 100) if quick else (1024, 50257)
    size = rows * classes
    for name, setup, written, target in (("forward", forward, 0, 0.6), ("backward", backward, size, 0.9)):
        yield Case(
            op="cross_entropy",
            name=name,
            shapes=f"{rows}x{classes}",
            dtype="float32",
            flops=4 * size,
            bytes_read=4 * size,
            bytes_written=4 * written,
            setup=partial(setup, rows, classes),
            target=target,
        )


def _draw(rows: int, classes: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return rng.standard_normal((rows, classes), dtype=np.float32), rng.integers(0, classes, rows)


def _loss(x: Any, labels: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(x)), labels])


def _torch(torch: Any, x: Any, labels: Any) -> Any:
    return torch.nn.functional.cross_entropy(x, labels)


def _jax(jax: Any, x: Any, labels: Any) -> Any:
    picked = jax.numpy.take_along_axis(x, labels[:, None], -1)[:, 0]
    return (jax.scipy.special.logsumexp(x, -1) - picked).mean()


def forward(rows: int, classes: int, rng: np.random.Generator) -> Setup:
    """``mean(log sum exp(x) - x[label])``."""
    x, labels = _draw(rows, classes, rng)
    return Setup(
        drupe=peers.drupe_call(ops.cross_entropy, x, labels),
        reference=lambda: _loss(x.astype(float), labels),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _loss(x, labels),
            "torch": lambda: peers.torch_call(_torch, x, labels),
            "torch:compile": lambda: peers.torch_call(_torch, x, labels, compiled=True),
            "jax": lambda: peers.jax_call(_jax, x, labels),
        },
    )


def backward(rows: int, classes: int, rng: np.random.Generator) -> Setup:
    """``(softmax(x) - onehot(label)) / rows``."""
    x, labels = _draw(rows, classes, rng)
    logits = drupe.tensor(x, requires_grad=True)
    loss = ops.cross_entropy(logits, labels)
    one = np.ones((), np.float32)

    def reference() -> Any:
        e = np.exp(x - x.max(-1, keepdims=True))
        e /= e.sum(-1, keepdims=True)
        e[np.arange(rows), labels] -= 1
        return e / rows

    return Setup(
        drupe=peers.drupe_backward(lambda: loss, one, logits),
        reference=reference,
        tolerance=1e-5,
        peers={
            "torch": lambda: peers.torch_backward(_torch, one, x, labels),
            "jax": lambda: peers.jax_backward(_jax, one, x, labels),
        },
    )
