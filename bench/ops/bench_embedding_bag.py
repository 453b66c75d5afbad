"""Bags of embeddings as recommenders look them up: 26 features of a million rows each, in one table."""
"""Bags over large tables: the forward pass, and the gradient as rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup

_FEATURES, _BATCH = 26, 2048


def cases(quick: bool) -> Iterator[Case]:
    """Bags of one row and of ten; forward, and the sparse gradient as (unique rows, sums)."""
    rows, width = (1000, 16) if quick else (1_000_000, 16)
    bags = (4 if quick else _FEATURES) * (16 if quick else _BATCH)
    table = rows * (4 if quick else _FEATURES)
    for length in (1, 10):
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
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """V rows of D, B bags of L; (V, D, B, L) as 26 merged tables of 16 columns and 4 of 128 have them."""
    sizes = (
        [(5000, 16, 64, 10)] if quick else [(8 << 20, 16, 53248, 1), (8 << 20, 16, 53248, 10), (4 << 20, 128, 8192, 10)]
    )
    for V, D, B, L in sizes:
        described: dict[str, Any] = {
            "op": "embedding_bag",
            "shapes": f"V{V} D{D} B{B} L{L}",
            "dtype": "float32",
            "flops": B * L * D,
            "working_set": 4 * V * D,
        }
        yield Case(
            name="sum",
            bytes_read=(4 * D + 8) * B * L,
            bytes_written=4 * D * B,
            setup=partial(forward, V, D, B, L),
            **described,
        )
        yield Case(
            name="sum sparse backward",
            bytes_read=written + 8 * length * bags,
            bytes_written=read,
            setup=partial(backward, table, width, bags, length),
            bytes_read=4 * D * B + 8 * B * L,
            bytes_written=(4 * D + 8) * B * L,
            setup=partial(backward, V, D, B, L),
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

    def torch_bag(torch: Any, indices: Any, offsets: Any) -> Any:
        return torch.nn.functional.embedding_bag(indices, torch.from_numpy(weight), offsets, mode="sum")

    return Setup(
        drupe=lambda: ops.embedding_bag(weight, indices, offsets),
        reference=lambda: weight[indices].astype(float).reshape(bags, length, width).sum(1),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: weight[indices].reshape(bags, length, width).sum(1),
            "torch": lambda: peers.torch_call(torch_bag, indices, offsets),
            "jax": lambda: peers.jax_call(_jax_sum(bags), weight, indices),
def _table(V: int, D: int, rng: np.random.Generator) -> Any:
    """A large table for little time: the rows repeat after a while."""
    block = rng.standard_normal((min(V, 4096), D), dtype=np.float32)
    return np.resize(block, (V, D))


def _draw(V: int, B: int, L: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return rng.integers(0, V, B * L), np.arange(0, B * L, L)


def forward(V: int, D: int, B: int, L: int, rng: np.random.Generator) -> Setup:
    """The sums of bags of L rows."""
    table, (indices, offsets) = _table(V, D, rng), _draw(V, B, L, rng)

    def torch_bag(torch: Any, table: Any, indices: Any, offsets: Any) -> Any:
        return torch.nn.functional.embedding_bag(indices, table, offsets, mode="sum")

    return Setup(
        drupe=lambda: ops.embedding_bag(table, indices, offsets),
        reference=lambda: table[indices].astype(np.float64).reshape(B, L, D).sum(1),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: np.add.reduceat(table[indices], offsets, axis=0),
            "torch": lambda: peers.torch_call(torch_bag, table, indices, offsets),
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
        rows = torch.from_numpy(weight).requires_grad_()
        chosen, starts, upstream = (peers.torch_tensor(a) for a in (indices, offsets, dy))
        output = torch.nn.functional.embedding_bag(chosen, rows, starts, mode="sum", sparse=True)

        def call() -> Any:
            (gradient,) = torch.autograd.grad(output, [rows], upstream, retain_graph=True)
            merged = gradient.coalesce()
            return [merged.indices()[0], merged.values()]

        return Prepared(call)

    return Setup(
        drupe=lambda: peers.drupe_backward(y, dy, leaf),
        reference=reference,
        tolerance=1e-5,
        peers={"torch": torch_peer},
def backward(V: int, D: int, B: int, L: int, rng: np.random.Generator) -> Setup:
    """The gradient of the table as (unique rows, sums)."""
    indices, offsets = _draw(V, B, L, rng)
    dy = rng.standard_normal((B, D), dtype=np.float32)
    leaf = drupe.zeros((V, D), requires_grad=True)
    # One pass forward, of which every call runs the backward again.
    y = ops.embedding_bag(leaf, indices, offsets, sparse=True)
    gradient = drupe.as_tensor(dy)

    def call() -> Any:
        leaf.grad = None
        y.backward(gradient, retain_graph=True)
        return leaf.grad

    def numpy_call() -> Any:
        rows, inverse = np.unique(indices, return_inverse=True)
        values = np.zeros((rows.size, D))
        np.add.at(values, inverse, dy[np.arange(B * L) // L])
        return [rows, values]

    def torch_call() -> Any:
        torch = peers.torch_module()
        table = torch.zeros((V, D), requires_grad=True)
        out = torch.nn.functional.embedding_bag(
            peers.torch_tensor(indices), table, peers.torch_tensor(offsets), mode="sum", sparse=True
        )
        gradient = peers.torch_tensor(dy)

        def run() -> Any:
            table.grad = None
            out.backward(gradient, retain_graph=True)
            summed = table.grad.coalesce()
            return [summed.indices()[0], summed.values()]

        return run

    return Setup(
        drupe=call, reference=numpy_call, tolerance=1e-5, peers={"numpy": lambda: numpy_call, "torch": torch_call}
    )
