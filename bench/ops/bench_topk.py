"""The largest elements of long rows, as in sampling from a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns, and k."""
    for rows, columns, k in [(8, 1000, 5)] if quick else [(64, 50257, 1), (64, 50257, 50)]:
        yield Case(
            op="topk",
            name=f"k {k}",
            shapes=f"{rows}x{columns}",
            dtype="float32",
            flops=rows * columns,
            bytes_read=4 * rows * columns,
            bytes_written=12 * rows * k,
            setup=partial(forward, (rows, columns), k),
        )


def _numpy(x: Any, k: int) -> Any:
    best = np.take_along_axis(x, np.argpartition(x, -k, axis=-1)[:, -k:], -1)
    return -np.sort(-best, axis=-1)


def forward(shape: tuple[int, ...], k: int, rng: np.random.Generator) -> Setup:
    """The k largest of each row, in order."""
    x = rng.standard_normal(shape, dtype=np.float32)
    return Setup(
        drupe=peers.drupe_call(lambda x: ops.topk(x, k)[0], x),
        reference=lambda: _numpy(x.astype(np.float64), k),
        tolerance=1e-6,
        peers={
            "numpy": lambda: lambda: _numpy(x, k),
            "torch": lambda: peers.torch_call(lambda torch, x: torch.topk(x, k)[0], x),
            "jax": lambda: peers.jax_call(lambda jax, x: jax.lax.top_k(x, k)[0], x),
        },
    )
