"""Bags of embeddings as recommenders look them up: some features of a million rows each, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Bags of one row and of ten, in narrow rows and wide; forward, and the sparse gradient as (unique rows, sums)."""
    rows, batch = (1000, 16) if quick else (1_000_000, 2048)
    for features, width, length, targets in (
        (26, 16, 1, (0.6, 0.6)),
        (26, 16, 10, (0.6, 0.6)),
        (4, 128, 10, (0.8, 0.6)),
    ):
        bags, table = features * batch, features * rows
        read, written = 4 * width * length * bags + 8 * length * bags, 4 * width * bags
        described: dict[str, Any] = {
            "op": "embedding_bag",
            "shapes": f"{bags} bags of {length} from {table}x{width}",
            "dtype": "float32",
            "flops": bags * length * width,
        }
        yield Case(
            name="sum",
            bytes_read=read,
            bytes_written=written,
            working_set=4 * table * width,
            setup=partial(forward, table, width, bags, length),
            target=targets[0],
            **described,
        )
        yield Case(
            name="sum sparse backward",
            bytes_read=written + 8 * length * bags,
            bytes_written=read,
            setup=partial(backward, table, width, bags, length),
            target=targets[1],
            **described,
        )


def _draw(table: int, bags: int, length: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return rng.integers(0, table, bags * length), np.arange(0, bags * length, length)


def _jax_sum(bags: int) -> Any:
    def bag(jax: Any, weight: Any, indices: Any) -> Any:
        return weight[indices].reshape(bags, -1, weight.shape[1]).sum(1)

    return bag


def forward(table: int, width: int, bags: int, length: int, rng: np.random.Generator) -> Setup:
    """``y[b] = sum of weight[i] over bag b``."""
    weight = rng.random((table, width), dtype=np.float32)
    indices, offsets = _draw(table, bags, length, rng)

    def torch_bag(torch: Any, weight: Any, indices: Any, offsets: Any) -> Any:
        return torch.nn.functional.embedding_bag(indices, weight, offsets, mode="sum")

    held = drupe.tensor(weight)  # as nn.EmbeddingBag holds it
    return Setup(
        drupe=peers.drupe_call(partial(ops.embedding_bag, held), indices, offsets),
        reference=lambda: weight[indices].astype(float).reshape(bags, length, width).sum(1),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: weight[indices].reshape(bags, length, width).sum(1),
            "torch": lambda: peers.torch_call(torch_bag, weight, indices, offsets),
            "jax": lambda: peers.jax_call(_jax_sum(bags), weight, indices),
        },
    )


def backward(table: int, width: int, bags: int, length: int, rng: np.random.Generator) -> Setup:
    """The gradient of the table, as unique rows in ascending order and their sums."""
    weight = np.zeros((table, width), np.float32)
    indices, offsets = _draw(table, bags, length, rng)
    dy = rng.standard_normal((bags, width), dtype=np.float32)
    leaf = drupe.tensor(weight, requires_grad=True)
    y = ops.embedding_bag(leaf, indices, offsets, sparse=True)

    def reference() -> Any:
        rows, inverse = np.unique(indices, return_inverse=True)
        sums = np.zeros((len(rows), width))
        np.add.at(sums, inverse, np.repeat(dy.astype(float), length, axis=0))
        return [rows, sums]

    def torch_peer() -> Prepared:
        torch = peers.torch_module()
        rows = peers.torch_tensor(weight, requires_grad=True)
        chosen, starts, upstream = (peers.torch_tensor(a) for a in (indices, offsets, dy))
        output = torch.nn.functional.embedding_bag(chosen, rows, starts, mode="sum", sparse=True)

        def call() -> Any:
            (gradient,) = torch.autograd.grad(output, [rows], upstream, retain_graph=True)
            merged = gradient.coalesce()
            return [merged.indices()[0], merged.values()]

        return Prepared(call)

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, leaf),
        reference=reference,
        tolerance=1e-5,
        peers={"torch": torch_peer},
    )
