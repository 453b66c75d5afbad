"""Softmax along the last axis: attention's short rows and long ones; log_softmax over a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns, forward and backward."""
    for rows, columns, target in [(64, 128, 0.7)] if quick else [(12288, 128, 0.7), (12288, 2048, 0.8)]:
        yield replace(_case("forward", rows, columns, 1, forward), target=target)
        yield _case("backward", rows, columns, 2, backward)


def _case(name: str, rows: int, columns: int, reads: int, setup: Any) -> Case:
    size = rows * columns
    return Case(
        op="softmax",
        name=name,
        shapes=f"{rows}x{columns}",
        dtype="float32",
        flops=5 * size,
        bytes_read=4 * size * reads,
        bytes_written=4 * size,
        setup=partial(setup, rows, columns),
    )


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def forward(rows: int, columns: int, rng: np.random.Generator) -> Setup:
    """``exp(x - max) / sum``."""
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    nodes = [{"op": "Softmax", "inputs": ["x"], "outputs": ["y"], "axis": -1}]
    return Setup(
        drupe=peers.drupe_call(ops.softmax, x),
        reference=lambda: _softmax(x.astype(np.float64)),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _softmax(x),
            "torch": lambda: peers.torch_call(lambda torch, x: torch.softmax(x, -1), x),
            "jax": lambda: peers.jax_call(lambda jax, x: jax.nn.softmax(x), x),
            **peers.onnx_peers(nodes, {"x": x}),
        },
    )


def backward(rows: int, columns: int, rng: np.random.Generator) -> Setup:
    """``y (dy - sum(dy y))``."""
    a, dy = (rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    x = drupe.tensor(a, requires_grad=True)
    y = ops.softmax(x)

    def reference() -> Any:
        p = _softmax(a.astype(np.float64))
        return p * (dy - (dy * p).sum(-1, keepdims=True))

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, x),
        reference=reference,
        tolerance=1e-4,
        peers={
            "torch": lambda: peers.torch_backward(lambda torch, x: torch.softmax(x, -1), dy, a),
            "jax": lambda: peers.jax_backward(lambda jax, x: jax.nn.softmax(x), dy, a),
        },
    )
