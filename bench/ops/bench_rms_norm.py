"""Root mean square normalisation of hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import IN_CACHE, IN_MEMORY, TOLERANCE, exact, normal, numpy_dtype
from drupe.bench.harness import Case, Setup

_BACKWARD_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # torch adds up the weight's gradient in bfloat16


def cases(quick: bool) -> Iterator[Case]:
    """Rows by features, forward and backward (of x and weight); those of a BERT have the targets."""
    small, large = ((64, 96), (16, 256)) if quick else (IN_CACHE, IN_MEMORY)
    for (rows, features), dtype in ((small, "float32"), (large, "float32"), (small, "bfloat16")):
        size, width = rows * features, numpy_dtype(dtype).itemsize
        aimed = ((rows, features), dtype) == (small, "float32")
        for name, setup, flops, reads, target in (("forward", forward, 4, 1, 0.7), ("backward", backward, 10, 2, 0.25)):
            yield Case(
                op="rms_norm",
                name=name,
                shapes=f"{rows}x{features}",
                dtype=dtype,
                flops=flops * size,
                bytes_read=width * (size * reads + features),
                bytes_written=width * size,
                setup=partial(setup, rows, features, dtype),
                target=target if aimed else None,
            )


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
        tolerance=_BACKWARD_TOLERANCE[dtype],
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, *arrays),
            "jax": lambda: peers.jax_backward(_jax, dy, *arrays),
        },
    )
