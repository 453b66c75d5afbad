"""Layer normalisation of BERT's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import IN_CACHE, IN_MEMORY, TOLERANCE, exact, normal, numpy_dtype
from drupe.bench.harness import Case, Setup

BACKWARD_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # torch adds up the weight's gradient in bfloat16


def cases(quick: bool) -> Iterator[Case]:
    """Rows by features, forward and backward (of x, weight and bias)."""
    return norm_cases("layer_norm", 2, (forward, 8, 0.6), (backward, 14, 0.6), quick=quick)


def norm_cases(
    op: str,
    parameters: int,
    forward: tuple[Callable[..., Setup], int, float],
    backward: tuple[Callable[..., Setup], int, float],
    *,
    quick: bool,
) -> Iterator[Case]:
    """Return the cases of a norm of rows; those of a BERT in float32 have the targets.

    Args:
        op: the norm.
        parameters: how many it has, of one row each.
        forward: its setup, which takes rows, features and dtype; its flops an element; its target.
        backward: the same.
        quick: the small sizes.
    """
    small, large = ((64, 96), (16, 256)) if quick else (IN_CACHE, IN_MEMORY)
    for (rows, features), dtype in ((small, "float32"), (large, "float32"), (small, "bfloat16")):
        size, width = rows * features, numpy_dtype(dtype).itemsize
        aimed = ((rows, features), dtype) == (small, "float32")
        for name, reads, (setup, flops, target) in (("forward", 1, forward), ("backward", 2, backward)):
            yield Case(
                op=op,
                name=name,
                shapes=f"{rows}x{features}",
                dtype=dtype,
                flops=flops * size,
                bytes_read=width * (size * reads + parameters * features),
                bytes_written=width * size,
                setup=partial(setup, rows, features, dtype),
                target=target if aimed else None,
            )


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * weight + bias


def _torch(torch: Any, x: Any, weight: Any, bias: Any) -> Any:
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)


def _jax(jax: Any, x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * weight + bias


def _draw(rows: int, features: int, dtype: str, rng: np.random.Generator) -> list[Any]:
    return [normal(rng, shape, dtype) for shape in ((rows, features), (features,), (features,))]


def forward(rows: int, features: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``(x - mean) / sqrt(var + eps) weight + bias``."""
    x, weight, bias = _draw(rows, features, dtype, rng)
    nodes: list[dict[str, Any]] = [
        {"op": "LayerNormalization", "inputs": ["x", "weight", "bias"], "outputs": ["y"], "axis": -1, "epsilon": 1e-5}
    ]
    rivals: dict[str, Any] = {
        "torch": lambda: peers.torch_call(_torch, x, weight, bias),
        "jax": lambda: peers.jax_call(_jax, x, weight, bias),
    }
    if dtype == "float32":
        rivals = {"numpy": lambda: lambda: _layer_norm(x, weight, bias)} | rivals
        rivals |= peers.onnx_peers(nodes, {"x": x}, {"weight": weight, "bias": bias})
    return Setup(
        drupe=peers.drupe_call(ops.layer_norm, x, weight, bias),
        reference=lambda: _layer_norm(exact(x), exact(weight), exact(bias)),
        tolerance=TOLERANCE[dtype],
        peers=rivals,
    )


def backward(rows: int, features: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The gradients of x, weight and bias."""
    arrays = _draw(rows, features, dtype, rng)
    dy = normal(rng, (rows, features), dtype)
    leaves = [drupe.tensor(a, requires_grad=True) for a in arrays]
    y = ops.layer_norm(*leaves)

    def reference() -> Any:
        x, weight, _, upstream = map(exact, (*arrays, dy))
        centred = x - x.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        unit, g = centred * scale, upstream * weight
        dx = scale * (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True))
        return [dx, (upstream * unit).sum(0), upstream.sum(0)]

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, *leaves),
        reference=reference,
        tolerance=BACKWARD_TOLERANCE[dtype],
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, *arrays),
            "jax": lambda: peers.jax_backward(_jax, dy, *arrays),
        },
    )
