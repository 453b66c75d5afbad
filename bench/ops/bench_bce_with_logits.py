"""Binary cross entropy of logits: DeepFM's clicks, and ImageNet's classes as ResNet-50 is trained by some."""

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
    """Rows by classes, forward and backward (of the logits), mean over all."""
    for rows, classes in [(64, 10)] if quick else [(4096, 1), (2048, 1000)]:
        size = rows * classes
        for name, setup, flops, written in (("forward", forward, 8, 0), ("backward", backward, 5, size)):
            yield Case(
                op="bce_with_logits",
                name=name,
                shapes=f"{rows}x{classes}",
                dtype="float32",
                flops=flops * size,
                bytes_read=8 * size,
                bytes_written=4 * written,
                setup=partial(setup, (rows, classes)),
            )


def _draw(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Any, Any]:
    return 4 * rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 2, shape).astype(np.float32)


def _loss(x: Any, t: Any) -> Any:
    return np.mean(np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))))


def _torch(torch: Any, x: Any, t: Any) -> Any:
    return torch.nn.functional.binary_cross_entropy_with_logits(x, t)


def _jax(jax: Any, x: Any, t: Any) -> Any:
    return (jax.nn.softplus(x) - x * t).mean()


def forward(shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """``mean(-t log sigmoid(x) - (1 - t) log sigmoid(-x))``."""
    x, t = _draw(shape, rng)
    return Setup(
        drupe=peers.drupe_call(ops.bce_with_logits, x, t),
        reference=lambda: _loss(x.astype(float), t),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _loss(x, t),
            "torch": lambda: peers.torch_call(_torch, x, t),
            "jax": lambda: peers.jax_call(_jax, x, t),
        },
    )


def backward(shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """``(sigmoid(x) - t) / size``."""
    x, t = _draw(shape, rng)
    logits = drupe.tensor(x, requires_grad=True)
    loss = ops.bce_with_logits(logits, t)
    one = np.ones((), np.float32)
    return Setup(
        drupe=peers.drupe_backward(lambda: loss, one, logits),
        reference=lambda: (1 / (1 + np.exp(-x.astype(float))) - t) / x.size,
        tolerance=1e-5,
        peers={
            # The targets are no argument: they need no gradient.
            "torch": lambda: peers.torch_backward(lambda torch, x: _torch(torch, x, peers.torch_tensor(t)), one, x),
            "jax": lambda: peers.jax_backward(lambda jax, x: _jax(jax, x, t), one, x),
        },
    )
