"""Products of quantised matrices (a square one, a BERT layer, one row of decoding), and quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Products of (M, K) with (N, K), as ``nn.Linear`` keeps its weights, and the quantisation of an (M, K)."""
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
        op="gemm_int8",
        name="quantize",
        shapes=f"{M}x{K}",
        dtype="float32",
        flops=4 * M * K,
        bytes_read=4 * M * K,
        bytes_written=M * K + 4 * M,
        setup=partial(quantize, M, K),
    )


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

    def numpy_quantize() -> Any:
        scale = np.abs(x).max(-1) / np.float32(127)
        return np.rint(x / scale[:, None]).astype(np.int8), scale

    def torch_quantize(torch: Any, x: Any) -> Any:
        scale = x.abs().amax(-1) / 127
        return torch.round(x / scale[:, None]).to(torch.int8), scale

    return Setup(
        drupe=peers.drupe_call(ops.quantize_int8, x),
        reference=numpy_quantize,
        tolerance=1e-6,
        peers={
            "numpy": lambda: numpy_quantize,
            "torch": lambda: peers.torch_call(torch_quantize, x),
            "torch:compile": lambda: peers.torch_call(torch_quantize, x, compiled=True),
        },
    )
