"""Broadcasting sums: two arrays of one shape, a bias along the rows, and one along the columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns; what is added has the same shape, or one row, or one column."""
    for rows, columns in [(64, 128)] if quick else [(1024, 768), (8192, 3072)]:
        for name, other in [("same", (rows, columns)), ("row", (columns,)), ("column", (rows, 1))]:
            size = rows * columns
            yield Case(
                op="add",
                name=name,
                shapes=f"{rows}x{columns}",
                dtype="float32",
                flops=size,
                bytes_read=4 * (size + int(np.prod(other))),
                bytes_written=4 * size,
                setup=partial(forward, (rows, columns), other),
            )


def forward(shape: tuple[int, ...], other: tuple[int, ...], rng: np.random.Generator) -> Setup:
    """``a + b``."""
    a = rng.standard_normal(shape, dtype=np.float32)
    b = rng.standard_normal(other, dtype=np.float32)
    nodes = [{"op": "Add", "inputs": ["a", "b"], "outputs": ["y"]}]
    return Setup(
        drupe=peers.drupe_call(ops.add, a, b),
        reference=lambda: a.astype(np.float64) + b,
        tolerance=1e-6,
        peers={
            "numpy": lambda: lambda: a + b,
            "torch": lambda: peers.torch_call(lambda torch, a, b: a + b, a, b),
            "jax": lambda: peers.jax_call(lambda jax, a, b: a + b, a, b),
            **peers.onnx_peers(nodes, {"a": a, "b": b}),
        },
    )
