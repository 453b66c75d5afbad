"""The second-order term of DeepFM: 26 fields of 16 features."""

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
    """(B, F, E), forward and backward."""
    B, F, E = (64, 4, 16) if quick else (4096, 26, 16)
    size = B * F * E
    for name, setup, written in (("forward", forward, B), ("backward", backward, size)):
        yield Case(
            op="fm_interaction",
            name=name,
            shapes=f"{B}x{F}x{E}",
            dtype="float32",
            flops=3 * size,
            bytes_read=4 * size,
            bytes_written=4 * written,
            setup=partial(setup, (B, F, E)),
        )


def _terms(xp: Any, v: Any) -> Any:
    total, squares = v.sum(1), (v * v).sum(1)
    return 0.5 * (total * total - squares).sum(1)


def forward(shape: tuple[int, int, int], rng: np.random.Generator) -> Setup:
    """The sum of all pairs' products."""
    v = rng.standard_normal(shape, dtype=np.float32)
    return Setup(
        drupe=peers.drupe_call(ops.fm_interaction, v),
        reference=lambda: _terms(np, v.astype(float)),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _terms(np, v),
            "torch": lambda: peers.torch_call(_terms, v),
            "torch:compile": lambda: peers.torch_call(_terms, v, compiled=True),
            "jax": lambda: peers.jax_call(_terms, v),
        },
    )


def backward(shape: tuple[int, int, int], rng: np.random.Generator) -> Setup:
    """``dy (sum - v)``."""
    v, dy = rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(shape[0], dtype=np.float32)
    leaf = drupe.tensor(v, requires_grad=True)
    y = ops.fm_interaction(leaf)
    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, leaf),
        reference=lambda: dy[:, None, None] * (v.astype(float).sum(1, keepdims=True) - v),
        tolerance=1e-5,
        peers={
            "torch": lambda: peers.torch_backward(_terms, dy, v),
            "jax": lambda: peers.jax_backward(_terms, dy, v),
        },
    )
