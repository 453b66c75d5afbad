"""Root mean square normalisation of hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import TOLERANCE, exact, normal
from drupe.bench.harness import Case, Setup
from drupe.bench.ops.bench_layer_norm import BACKWARD_TOLERANCE, norm_cases


def cases(quick: bool) -> Iterator[Case]:
    """Rows by features, forward and backward (of x and weight)."""
    return norm_cases("rms_norm", 1, (forward, 4, 0.7), (backward, 10, 0.25), quick=quick)


def _rms_norm(x: Any, weight: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def _torch(torch: Any, x: Any, weight: Any) -> Any:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)


def _jax(jax: Any, x: Any, weight: Any) -> Any:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def _draw(rows: int, features: int, dtype: str, rng: np.random.Generator) -> list[Any]:
    return [normal(rng, shape, dtype) for shape in ((rows, features), (features,))]


def forward(rows: int, features: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``x / sqrt(mean(x^2) + eps) weight``."""
    x, weight = _draw(rows, features, dtype, rng)
    nodes: list[dict[str, Any]] = [
        {"op": "Mul", "inputs": ["x", "x"], "outputs": ["square"]},
        {"op": "ReduceMean", "inputs": ["square", "axes"], "outputs": ["mean"], "keepdims": 1},
        {"op": "Add", "inputs": ["mean", "eps"], "outputs": ["shifted"]},
        {"op": "Sqrt", "inputs": ["shifted"], "outputs": ["root"]},
        {"op": "Div", "inputs": ["x", "root"], "outputs": ["normal"]},
        {"op": "Mul", "inputs": ["normal", "weight"], "outputs": ["y"]},
    ]
    constants = {"axes": np.array([-1], np.int64), "eps": np.array(1e-5, np.float32), "weight": weight}
    rivals: dict[str, Any] = {
        "torch": lambda: peers.torch_call(_torch, x, weight),
        "jax": lambda: peers.jax_call(_jax, x, weight),
    }
    if dtype == "float32":
        rivals = {"numpy": lambda: lambda: _rms_norm(x, weight)} | rivals
        rivals |= peers.onnx_peers(nodes, {"x": x}, constants)
    return Setup(
        drupe=peers.drupe_call(ops.rms_norm, x, weight),
        reference=lambda: _rms_norm(exact(x), exact(weight)),
        tolerance=TOLERANCE[dtype],
        peers=rivals,
    )


def backward(rows: int, features: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The gradients of x and weight."""
    arrays = _draw(rows, features, dtype, rng)
    dy = normal(rng, (rows, features), dtype)
    leaves = [drupe.tensor(a, requires_grad=True) for a in arrays]
    y = ops.rms_norm(*leaves)

    def reference() -> Any:
        x, weight, upstream = map(exact, (*arrays, dy))
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        unit, g = x * scale, upstream * weight
        return [scale * (g - unit * (g * unit).mean(-1, keepdims=True)), (upstream * unit).sum(0)]

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, *leaves),
        reference=reference,
        tolerance=BACKWARD_TOLERANCE[dtype],
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, *arrays),
            "jax": lambda: peers.jax_backward(_jax, dy, *arrays),
        },
    )
