"""Squared error between the hidden states of two BERTs, as in distillation."""

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
    """Rows by features, forward and backward (of the first), mean over all."""
    rows, features = (64, 96) if quick else (4096, 768)
    size = rows * features
    for name, setup, written in (("forward", forward, 0), ("backward", backward, size)):
        yield Case(
            op="mse",
            name=name,
            shapes=f"{rows}x{features}",
            dtype="float32",
            flops=3 * size if setup is forward else 2 * size,
            bytes_read=8 * size,
            bytes_written=4 * written,
            setup=partial(setup, (rows, features)),
        )


def _draw(shape: tuple[int, int], rng: np.random.Generator) -> list[Any]:
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(2)]


def _torch(torch: Any, a: Any, b: Any) -> Any:
    return torch.nn.functional.mse_loss(a, b)


def _jax(jax: Any, a: Any, b: Any) -> Any:
    return ((a - b) ** 2).mean()


def forward(shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """``mean((a - b)^2)``."""
    a, b = _draw(shape, rng)
    return Setup(
        drupe=peers.drupe_call(ops.mse, a, b),
        reference=lambda: ((a.astype(float) - b) ** 2).mean(),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: ((a - b) ** 2).mean(),
            "torch": lambda: peers.torch_call(_torch, a, b),
            "jax": lambda: peers.jax_call(_jax, a, b),
        },
    )


def backward(shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """``2 (a - b) / size``."""
    a, b = _draw(shape, rng)
    leaf = drupe.tensor(a, requires_grad=True)
    loss = ops.mse(leaf, b)
    one = np.ones((), np.float32)
    return Setup(
        drupe=peers.drupe_backward(lambda: loss, one, leaf),
        reference=lambda: 2 * (a.astype(float) - b) / a.size,
        tolerance=1e-5,
        peers={
            # The teacher is no argument: it needs no gradient.
            "torch": lambda: peers.torch_backward(lambda torch, a: _torch(torch, a, peers.torch_tensor(b)), one, a),
            "jax": lambda: peers.jax_backward(lambda jax, a: _jax(jax, a, b), one, a),
        },
    )
