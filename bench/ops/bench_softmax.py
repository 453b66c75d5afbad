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
        yield replace(_case("softmax", "forward", rows, columns, 1, forward), target=target)
        yield _case("softmax", "backward", rows, columns, 2, backward)
    for rows, columns in [(16, 1000)] if quick else [(12288, 128), (512, 50257)]:
        yield _case("log_softmax", "forward", rows, columns, 1, forward)
        yield _case("log_softmax", "backward", rows, columns, 2, backward)


def _case(op: str, name: str, rows: int, columns: int, reads: int, setup: Any) -> Case:
    size = rows * columns
    return Case(
        op=op,
        name=name,
        shapes=f"{rows}x{columns}",
        dtype="float32",
        flops=5 * size,
        bytes_read=4 * size * reads,
        bytes_written=4 * size,
        setup=partial(setup, op, rows, columns),
    )


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def _log_softmax(x: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


_FORMULAS = {"softmax": _softmax, "log_softmax": _log_softmax}
_ONNX = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}


def _torch(op: str, torch: Any, x: Any) -> Any:
    return getattr(torch, op)(x, -1)


def _jax(op: str, jax: Any, x: Any) -> Any:
    return getattr(jax.nn, op)(x)


def forward(op: str, rows: int, columns: int, rng: np.random.Generator) -> Setup:
    """``exp(x - max) / sum``, or its logarithm."""
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    nodes = [{"op": _ONNX[op], "inputs": ["x"], "outputs": ["y"], "axis": -1}]
    return Setup(
        drupe=peers.drupe_call(getattr(ops, op), x),
        reference=lambda: _FORMULAS[op](x.astype(np.float64)),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _FORMULAS[op](x),
            "torch": lambda: peers.torch_call(partial(_torch, op), x),
            "jax": lambda: peers.jax_call(partial(_jax, op), x),
            **peers.onnx_peers(nodes, {"x": x}),
        },
    )


def backward(op: str, rows: int, columns: int, rng: np.random.Generator) -> Setup:
    """``y (dy - sum(dy y))``; of the logarithm ``dy - e^y sum(dy)``."""
    a, dy = (rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    x = drupe.tensor(a, requires_grad=True)
    y = getattr(ops, op)(x)

    def reference() -> Any:
        p = _softmax(a.astype(np.float64))
        if op == "log_softmax":
            return dy - p * dy.sum(-1, keepdims=True, dtype=float)
        return p * (dy - (dy * p).sum(-1, keepdims=True))

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, x),
        reference=reference,
        tolerance=1e-4,
        peers={
            "torch": lambda: peers.torch_backward(partial(_torch, op), dy, a),
            "jax": lambda: peers.jax_backward(partial(_jax, op), dy, a),
        },
    )
