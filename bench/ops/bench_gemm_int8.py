"""Products of quantised matrices (a square one, a BERT layer, one row of decoding), and quantisation.

Then products of a few rows of floats with a quantised weight, beside torch's with the weight in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup

_MOST = {"int8": 127, "int4": 7}


def cases(quick: bool) -> Iterator[Case]:
    """Products of (M, K) with (N, K), as ``nn.Linear`` keeps its weights, and the quantisation of either."""
    sizes = [(64, 96, 128)] if quick else [(1024, 1024, 1024), (1024, 3072, 768), (1, 4096, 4096)]
    for M, N, K in sizes:
        yield Case(
            op="gemm_int8",
            name="linear",
            shapes=f"{M}x{N}x{K}",
            dtype="int8",
            flops=2 * M * N * K,
            bytes_read=M * K + N * K + 4 * (M + 2 * N),
            bytes_written=4 * M * N,
            setup=partial(linear, M, N, K),
        )
    M, N, K = sizes[0]
    yield Case(
        op="quantize_int8",
        name="rows",
        shapes=f"{M}x{K}",
        dtype="float32",
        flops=4 * M * K,
        bytes_read=4 * M * K,
        bytes_written=M * K + 4 * M,
        setup=partial(quantize, M, K),
    )
    N, K = (96, 128) if quick else (4096, 4096)
    for dtype, most in _MOST.items():
        integers = N * K * most.bit_length() // 8 + N * K // 8  # a bit is the sign's
        described: dict[str, Any] = {"dtype": "float32", "cpu_only": True}
        yield Case(
            op="quantize_weight",
            name=dtype,
            shapes=f"{N}x{K}",
            flops=4 * N * K,
            bytes_read=4 * N * K,
            bytes_written=integers,
            setup=partial(quantize_weight, N, K, dtype),
            **described,
        )
        for M in (1, 16):
            yield Case(
                op="gemm_quantized",
                name=dtype,
                shapes=f"{M}x{N}x{K}",
                flops=2 * M * N * K,
                bytes_read=integers + 4 * M * K,
                bytes_written=4 * M * N,
                setup=partial(quantized_linear, M, N, K, dtype),
                **described,
            )


def _quantized(w: Any, most: int, group: int) -> tuple[Any, Any]:
    """Return ``round(w / scale)`` with ``scale = max|w| / most`` of so many neighbours, and the scales."""
    parts = w.reshape(len(w), -1, group)
    scale = np.abs(parts).max(-1) / np.float32(most)
    return np.rint(parts / scale[..., None]).astype(np.int8).reshape(w.shape), scale


def _torch_quantized(torch: Any, w: Any, most: int, group: int) -> tuple[Any, Any]:
    parts = w.reshape(len(w), -1, group)
    scale = parts.abs().amax(-1) / most
    return torch.round(parts / scale[..., None]).to(torch.int8).reshape(w.shape), scale


def linear(M: int, N: int, K: int, rng: np.random.Generator) -> Setup:
    """``scale_a scale_b (a w^T) + bias``."""
    a, w = (rng.integers(-127, 128, shape, np.int8) for shape in ((M, K), (N, K)))
    left, right = (rng.uniform(0.001, 0.01, size).astype(np.float32) for size in (M, N))
    bias = rng.standard_normal(N, dtype=np.float32)

    def torch_linear(torch: Any, a: Any, w: Any, left: Any, right: Any, bias: Any) -> Any:
        return torch._int_mm(a, w.T) * left[:, None] * right + bias

    return Setup(
        drupe=peers.drupe_call(
            lambda a, w, left, right, bias: ops.gemm_int8(a, w, left, right, bias, transpose_b=True),
            a,
            w,
            left,
            right,
            bias,
        ),
        reference=lambda: (a.astype(np.float64) @ w.T.astype(np.float64)) * left[:, None] * right + bias,
        tolerance=1e-6,
        peers={"torch": lambda: peers.torch_call(torch_linear, a, w, left, right, bias)},
    )


def quantize(M: int, K: int, rng: np.random.Generator) -> Setup:
    """``round(x / scale)`` with ``scale = max|x| / 127`` of each row."""
    x = rng.standard_normal((M, K), dtype=np.float32)

    def numpy() -> Any:
        q, scale = _quantized(x, 127, K)
        return q, scale[:, 0]

    def torch(torch: Any, x: Any) -> Any:
        q, scale = _torch_quantized(torch, x, 127, K)
        return q, scale[:, 0]

    return Setup(
        drupe=peers.drupe_call(ops.quantize_int8, x),
        reference=numpy,
        tolerance=1e-6,
        peers={
            "numpy": lambda: numpy,
            "torch": lambda: peers.torch_call(torch, x),
            "torch:compile": lambda: peers.torch_call(torch, x, compiled=True),
        },
    )


def _group(dtype: str, K: int) -> int:
    """How many neighbours share a scale by default."""
    return K if dtype == "int8" else 64


def quantize_weight(N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The same of a weight, packed; the peers' is not."""
    w = rng.standard_normal((N, K), dtype=np.float32)
    how = _MOST[dtype], _group(dtype, K)
    return Setup(
        drupe=peers.drupe_call(partial(ops.quantize_weight, dtype=dtype, transpose_b=True), w),
        reference=lambda: _quantized(w, *how),
        tolerance=1e-6,
        view=lambda weight: [weight.values, weight.scales],
        peers={
            "numpy": lambda: lambda: _quantized(w, *how),
            "torch": lambda: peers.torch_call(lambda torch, w: _torch_quantized(torch, w, *how), w),
        },
    )


def quantized_linear(M: int, N: int, K: int, dtype: str, rng: np.random.Generator) -> Setup:
    """``x w^T`` with a weight in few bits; torch's kernels for that are its own, without a public name."""
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((M, K), (N, K)))
    weight = ops.quantize_weight(w, dtype, transpose_b=True)
    q, scale = _quantized(w, _MOST[dtype], _group(dtype, K))
    dequantised = q * np.repeat(scale, _group(dtype, K), axis=1)

    def packed() -> Any:
        torch = peers.torch_module()
        if dtype == "int8":
            return peers.torch_call(lambda torch, *arrays: torch._weight_int8pack_mm(*arrays), x, q, scale[:, 0])
        codes = torch._convert_weight_to_int4pack_for_cpu(peers.torch_tensor(q.astype(np.int32) + 8), 1)
        affine = peers.torch_tensor(np.stack([scale.T, np.zeros_like(scale.T)], -1))  # (groups, N, 2)
        return peers.torch_call(lambda torch, x: torch._weight_int4pack_mm_for_cpu(x, codes, 64, affine), x)

    return Setup(
        drupe=peers.drupe_call(lambda x: ops.gemm_quantized(x, weight), x),
        reference=lambda: x.astype(float) @ dequantised.T.astype(float),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: x @ dequantised.T,
            "torch": lambda: peers.torch_call(lambda torch, x, w: torch.nn.functional.linear(x, w), x, dequantised),
            f"torch:{dtype}": packed,
        },
    )
