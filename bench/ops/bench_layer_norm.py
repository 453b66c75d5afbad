"""Layer normalisation of BERT's hidden states."""

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
    """Rows by features, forward and backward (of x, weight and bias)."""
    rows, features = (64, 96) if quick else (1024, 768)
    size = rows * features
    for name, setup, flops, reads, target in (("forward", forward, 8, 1, 0.6), ("backward", backward, 14, 2, 0.6)):
        yield Case(
            op="layer_norm",
            name=name,
            shapes=f"{rows}x{features}",
            dtype="float32",
            flops=flops * size,
            bytes_read=4 * (size * reads + 2 * features),
            bytes_written=4 * size,
            setup=partial(setup, rows, features),
            target=target,
        )


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * weight + bias


def _torch(torch: Any, x: Any, weight: Any, bias: Any) -> Any:
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)


def _jax(jax: Any, x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * weight + bias


def _draw(rows: int, features: int, rng: np.random.Generator) -> list[Any]:
    return [rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, features), features, features)]


def forward(rows: int, features: int, rng: np.random.Generator) -> Setup:
    """``(x - mean) / sqrt(var + eps) weight + bias``."""
    x, weight, bias = _draw(rows, features, rng)
    nodes: list[dict[str, Any]] = [
        {"op": "LayerNormalization", "inputs": ["x", "weight", "bias"], "outputs": ["y"], "axis": -1, "epsilon": 1e-5}
    ]
    return Setup(
        drupe=peers.drupe_call(ops.layer_norm, x, weight, bias),
        reference=lambda: _layer_norm(x.astype(float), weight, bias),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _layer_norm(x, weight, bias),
            "torch": lambda: peers.torch_call(_torch, x, weight, bias),
            "jax": lambda: peers.jax_call(_jax, x, weight, bias),
            **peers.onnx_peers(nodes, {"x": x}, {"weight": weight, "bias": bias}),
        },
    )


def backward(rows: int, features: int, rng: np.random.Generator) -> Setup:
    """The gradients of x, weight and bias."""
    arrays = _draw(rows, features, rng)
    dy = rng.standard_normal((rows, features), dtype=np.float32)
    leaves = [drupe.tensor(a, requires_grad=True) for a in arrays]
    y = ops.layer_norm(*leaves)

    def reference() -> Any:
        x, weight, _ = (a.astype(float) for a in arrays)
        centred = x - x.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        normal, g = centred * scale, dy * weight
        dx = scale * (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True))
        return [dx, (dy * normal).sum(0), dy.sum(0, dtype=float)]

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, *leaves),
        reference=reference,
        tolerance=1e-4,
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, *arrays),
            "jax": lambda: peers.jax_backward(_jax, dy, *arrays),
        },
    )
