"""Matrix products: square, tall, a BERT layer with its epilogue, batched, in bfloat16; and the packing of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import TOLERANCE, Shape, exact, normal, numpy_dtype, text
from drupe.bench.harness import Case, Setup

_PROBES = 32  # rows that are multiplied with a packed weight, to check it


def cases(quick: bool) -> Iterator[Case]:
    """Products of (M, K) with (K, N), and with leading dimensions; weights to pack."""
    sizes = [(256, 256, 256)] if quick else [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 64, 1024), (8, 4096, 4096)]
    for M, N, K in sizes:
        yield _case("product", M, N, K, "float32", product)
    M, N, K = (128, 256, 192) if quick else (1024, 3072, 768)
    yield replace(_case("linear bias gelu", M, N, K, "float32", linear_gelu), target=0.95)
    M, N, K = sizes[0]
    yield _case("product", M, N, K, "bfloat16", product)
    yield _case("product", M // 2, N // 2, K // 2, "float64", product)
    yield from _matmul_cases(quick)
    for dtype in ("float32", "bfloat16"):
        N, K = (96, 64) if quick else (3072, 768)
        yield Case(
            op="pack_weight",
            name="linear",
            shapes=f"{N}x{K}",
            dtype=dtype,
            flops=N * K,
            bytes_read=numpy_dtype(dtype).itemsize * N * K,
            bytes_written=numpy_dtype(dtype).itemsize * N * K,
            setup=partial(pack, N, K, dtype),
            cpu_only=True,
        )


def _matmul_cases(quick: bool) -> Iterator[Case]:
    """Logits of attention; a weight for the whole batch; one operand for all of the other's; a vector; a tiny one."""
    B, H, S, D = (2, 2, 16, 8) if quick else (8, 12, 128, 64)
    features = H * D
    wide = 64 if quick else 4096
    shapes: dict[str, tuple[Shape, Shape]] = {
        "batched": ((B, H, S, D), (B, H, D, S)),
        "weight": ((B, S, features), (features, features)),
        "broadcast": ((B, 1, S, D), (H, D, S)),
        "vector": ((wide, wide), (wide,)),
        "tiny": ((4, 4), (4, 4)),
    }
    for name, (left, right) in shapes.items():
        rows = left[:-2] if len(right) == 1 else np.broadcast_shapes(left[:-2], right[:-2])
        result = int(np.prod(rows)) * left[-2] * (1 if len(right) == 1 else right[-1])
        yield Case(
            op="matmul",
            name=name,
            shapes=f"{text(left)} {text(right)}",
            dtype="float32",
            flops=2 * left[-1] * result,
            bytes_read=4 * int(np.prod(left) + np.prod(right)),
            bytes_written=4 * result,
            setup=partial(_product, "matmul", left, right, "float32"),
        )


def _case(name: str, M: int, N: int, K: int, dtype: str, setup: Any) -> Case:
    width = numpy_dtype(dtype).itemsize
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


def product(M: int, N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``a @ b``."""
    return _product("gemm", (M, K), (K, N), dtype, rng)


def _product(op: str, left: Shape, right: Shape, dtype: str, rng: np.random.Generator) -> Setup:
    a, b = normal(rng, left, dtype), normal(rng, right, dtype)
    own = drupe.tensor(a), drupe.tensor(b)
    rivals: dict[str, Any] = {
        "torch": lambda: peers.torch_call(lambda torch, a, b: a @ b, a, b),
        "jax": lambda: peers.jax_call(lambda jax, a, b: a @ b, a, b),
    }
    if dtype != "bfloat16":
        rivals = {"numpy": lambda: lambda: a @ b} | rivals
    if dtype == "float32":
        rivals |= peers.onnx_peers([{"op": "MatMul", "inputs": "ab", "outputs": "y"}], {"a": a}, {"b": b})
    return Setup(
        drupe=lambda: getattr(ops, op)(*own),
        reference=lambda: exact(a) @ exact(b),
        tolerance=TOLERANCE[dtype],
        peers=rivals,
    )


def linear_gelu(M: int, N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``gelu(x w^T + bias)`` with constant weights, packed once as ``nn.Linear`` packs them, (N, K)."""
    x, w, bias = (normal(rng, shape, dtype) for shape in ((M, K), (N, K), (N,)))
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
        tolerance=TOLERANCE[dtype],
        peers={
            "torch": lambda: peers.torch_call(torch_linear, x, w, bias),
            "torch:compile": lambda: peers.torch_call(torch_linear, x, w, bias, compiled=True),
            "jax": lambda: peers.jax_call(jax_linear, x, w, bias),
            **peers.onnx_peers(nodes, {"x": x}, {"wt": np.ascontiguousarray(w.T), "bias": bias}),
        },
    )


def pack(N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """An (N, K) in the order of the kernels; torch's in oneDNN's. Products with it are compared."""
    w, probe = normal(rng, (N, K), dtype), normal(rng, (_PROBES, K), dtype)

    def torch(torch: Any, w: Any) -> Any:
        return torch.ops.mkldnn._reorder_linear_weight(w, _PROBES)

    def with_probe(packed: Any) -> Any:
        return exact(probe) @ packed.to_dense().double().numpy().T

    return Setup(
        drupe=peers.drupe_call(partial(ops.pack_weight, transpose_b=True), w),
        reference=lambda: exact(probe) @ exact(w).T,
        tolerance=TOLERANCE[dtype],
        view=lambda packed: ops.gemm(probe, packed, transpose_b=True),
        peers=peers.with_view({"torch": lambda: peers.torch_call(torch, w)}, with_probe),
    )
