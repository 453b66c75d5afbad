"""Matrix products: square, tall, a BERT layer with its epilogue, batched, and in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup

_BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float64": 1e-13}


def cases(quick: bool) -> Iterator[Case]:
    """Products of (M, K) with (K, N), and with a leading batch."""
    sizes = [(256, 256, 256)] if quick else [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 64, 1024), (8, 4096, 4096)]
    for M, N, K in sizes:
        yield _case("product", M, N, K, "float32", product)
    M, N, K = (128, 256, 192) if quick else (1024, 3072, 768)
    yield replace(_case("linear bias gelu", M, N, K, "float32", linear_gelu), target=0.95)
    M, N, K = sizes[0]
    yield _case("product", M, N, K, "bfloat16", product)
    yield _case("product", M // 2, N // 2, K // 2, "float64", product)


def _case(name: str, M: int, N: int, K: int, dtype: str, setup: Any) -> Case:
    width = _BYTES[dtype]
    return Case(
        op="gemm",
        name=name,
        shapes=f"{M}x{N}x{K}",
        dtype=dtype,
        flops=2 * M * N * K,
        bytes_read=width * (M * K + K * N),
        bytes_written=width * M * N,
        setup=partial(setup, M, N, K, dtype),
    )


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return rng.standard_normal(shape, dtype=np.float32).astype(kind)


def product(M: int, N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``a @ b``."""
    a, b = _draw(rng, (M, K), dtype), _draw(rng, (K, N), dtype)
    rivals: dict[str, Any] = {
        "torch": lambda: peers.torch_call(lambda torch, a, b: a @ b, a, b),
        "jax": lambda: peers.jax_call(lambda jax, a, b: a @ b, a, b),
    }
    if dtype != "bfloat16":
        rivals = {"numpy": lambda: lambda: a @ b} | rivals
    if dtype == "float32":
        rivals |= peers.onnx_peers([{"op": "MatMul", "inputs": "ab", "outputs": "y"}], {"a": a}, {"b": b})
    return Setup(
        drupe=peers.drupe_call(ops.gemm, a, b),
        reference=lambda: a.astype(np.float64) @ b.astype(np.float64),
        tolerance=_TOLERANCE[dtype],
        peers=rivals,
    )


def linear_gelu(M: int, N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``gelu(x w^T + bias)`` with constant weights, packed once as ``nn.Linear`` packs them, (N, K)."""
    x, w, bias = _draw(rng, (M, K), dtype), _draw(rng, (N, K), dtype), _draw(rng, (N,), dtype)
    packed = ops.pack_weight(drupe.as_tensor(w).to(drupe.get_default_device()), transpose_b=True)

    def numpy_call() -> Any:
        from math import erf

        z = x.astype(np.float64) @ w.T.astype(np.float64) + bias
        return 0.5 * z * (1 + np.vectorize(erf)(z / np.sqrt(2)))

    def torch_linear(torch: Any, x: Any, w: Any, bias: Any) -> Any:
        functional = torch.nn.functional
        return functional.gelu(functional.linear(x, w, bias))

    def jax_linear(jax: Any, x: Any, w: Any, bias: Any) -> Any:
        return jax.nn.gelu(x @ w.T + bias, approximate=False)

    nodes: list[dict[str, Any]] = [
        {"op": "MatMul", "inputs": ["x", "wt"], "outputs": ["p"]},
        {"op": "Add", "inputs": ["p", "bias"], "outputs": ["z"]},
        {"op": "Gelu", "inputs": ["z"], "outputs": ["y"]},
    ]
    return Setup(
        drupe=peers.drupe_call(
            lambda x, bias: ops.gemm(x, packed, bias=bias, transpose_b=True, activation="gelu"), x, bias
        ),
        reference=numpy_call,
        tolerance=_TOLERANCE[dtype],
        peers={
            "torch": lambda: peers.torch_call(torch_linear, x, w, bias),
            "torch:compile": lambda: peers.torch_call(torch_linear, x, w, bias, compiled=True),
            "jax": lambda: peers.jax_call(jax_linear, x, w, bias),
            **peers.onnx_peers(nodes, {"x": x}, {"wt": np.ascontiguousarray(w.T), "bias": bias}),
        },
    )
