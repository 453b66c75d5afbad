"""Sums over the rows (a bias' gradient), over the columns, and over everything."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns."""
    for rows, columns in [(64, 128)] if quick else [(1024, 768), (8192, 3072)]:
        for name, axis in [("axis 0", (0,)), ("axis 1", (1,)), ("all", (0, 1))]:
            results = int(np.prod([extent for i, extent in enumerate((rows, columns)) if i not in axis]))
            yield Case(
                op="sum",
                name=name,
                shapes=f"{rows}x{columns}",
                dtype="float32",
                flops=rows * columns,
                bytes_read=4 * rows * columns,
                bytes_written=4 * results,
                setup=partial(forward, (rows, columns), axis),
            )


def forward(shape: tuple[int, ...], axis: tuple[int, ...], rng: np.random.Generator) -> Setup:
    """``sum(x)`` along axes."""
    x = rng.standard_normal(shape, dtype=np.float32)
    return Setup(
        drupe=peers.drupe_call(partial(ops.sum, axis=axis), x),
        reference=lambda: x.astype(np.float64).sum(axis=axis),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: x.sum(axis=axis),
            "torch": lambda: peers.torch_call(lambda torch, x: x.sum(dim=axis), x),
            "jax": lambda: peers.jax_call(lambda jax, x: x.sum(axis=axis), x),
        },
    )
