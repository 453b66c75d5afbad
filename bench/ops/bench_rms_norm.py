"""Root mean square normalisation of hidden states."""

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
    """Rows by features, forward and backward (of x and weight)."""
    rows, features = (64, 96) if quick else (1024, 768)
    size = rows * features
    for name, setup, flops, reads, target in (("forward", forward, 4, 1, 0.7), ("backward", backward, 10, 2, 0.25)):
        yield Case(
            op="rms_norm",
            name=name,
            shapes=f"{rows}x{features}",
            dtype="float32",
            flops=flops * size,
            bytes_read=4 * (size * reads + features),
            bytes_written=4 * size,
            setup=partial(setup, rows, features),
            target=target,
        )


def _rms_norm(x: Any, weight: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def _torch(torch: Any, x: Any, weight: Any) -> Any:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)


def _jax(jax: Any, x: Any, weight: Any) -> Any:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def _draw(rows: int, features: int, rng: np.random.Generator) -> list[Any]:
    return [rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, features), features)]


def forward(rows: int, features: int, rng: np.random.Generator) -> Setup:
    """``x / sqrt(mean(x^2) + eps) weight``."""
    x, weight = _draw(rows, features, rng)
    nodes: list[dict[str, Any]] = [
        {"op": "Mul", "inputs": ["x", "x"], "outputs": ["square"]},
        {"op": "ReduceMean", "inputs": ["square", "axes"], "outputs": ["mean"], "keepdims": 1},
        {"op": "Add", "inputs": ["mean", "eps"], "outputs": ["shifted"]},
        {"op": "Sqrt", "inputs": ["shifted"], "outputs": ["root"]},
        {"op": "Div", "inputs": ["x", "root"], "outputs": ["normal"]},
        {"op": "Mul", "inputs": ["normal", "weight"], "outputs": ["y"]},
    ]
    constants = {"axes": np.array([-1], np.int64), "eps": np.array(1e-5, np.float32), "weight": weight}
    return Setup(
        drupe=peers.drupe_call(ops.rms_norm, x, weight),
        reference=lambda: _rms_norm(x.astype(float), weight),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _rms_norm(x, weight),
            "torch": lambda: peers.torch_call(_torch, x, weight),
            "jax": lambda: peers.jax_call(_jax, x, weight),
            **peers.onnx_peers(nodes, {"x": x}, constants),
        },
    )


def backward(rows: int, features: int, rng: np.random.Generator) -> Setup:
    """The gradients of x and weight."""
    arrays = _draw(rows, features, rng)
    dy = rng.standard_normal((rows, features), dtype=np.float32)
    leaves = [drupe.tensor(a, requires_grad=True) for a in arrays]
    y = ops.rms_norm(*leaves)

    def reference() -> Any:
        x, weight = (a.astype(float) for a in arrays)
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        normal, g = x * scale, dy * weight
        return [scale * (g - normal * (g * normal).mean(-1, keepdims=True)), (dy * normal).sum(0)]

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, *leaves),
        reference=reference,
        tolerance=1e-4,
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, *arrays),
            "jax": lambda: peers.jax_backward(_jax, dy, *arrays),
        },
    )
