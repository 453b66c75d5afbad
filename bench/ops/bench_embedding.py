"""Rows of a table: BERT's words, and DeepFM's features hashed into a million rows."""

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
    """(V, D) at (rows, columns) indices; forward, the gradient as a table (BERT), and as unique rows (DeepFM)."""
    bert = (300, 24, (2, 16)) if quick else (30522, 768, (32, 128))
    deepfm = (1000, 16, (16, 4)) if quick else (1_000_000, 16, (2048, 26))
    for name, kind, (V, D, shape) in (("bert", "dense", bert), ("deepfm", "sparse", deepfm)):
        count = shape[0] * shape[1]
        described: dict[str, Any] = {
            "op": "embedding",
            "shapes": f"{shape[0]}x{shape[1]} from {V}x{D}",
            "dtype": "float32",
            "flops": count * D,
            "bytes_read": 4 * count * D + 8 * count,
        }
        yield Case(
            name=name,
            bytes_written=4 * count * D,
            working_set=4 * V * D,
            setup=partial(forward, V, D, shape),
            **described,
        )
        yield Case(
            name=f"{name} {kind} backward",
            bytes_written=4 * D * (V if kind == "dense" else count),
            setup=partial(dense_backward if kind == "dense" else sparse_backward, V, D, shape),
            **described,
        )


def _indices(V: int, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    """A few are frequent, as words are: Zipf's law."""
    return rng.permutation(V)[rng.zipf(1.2, shape) % V]


def _torch(torch: Any, indices: Any, weight: Any, sparse: bool = False) -> Any:
    return torch.nn.functional.embedding(indices, weight, sparse=sparse)


def _jax(jax: Any, indices: Any, weight: Any) -> Any:
    return weight[indices]


def forward(V: int, D: int, shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """``weight[indices]``."""
    weight = rng.random((V, D), dtype=np.float32)
    indices = _indices(V, shape, rng)
    nodes: list[dict[str, Any]] = [{"op": "Gather", "inputs": ["weight", "indices"], "outputs": ["y"]}]
    return Setup(
        drupe=peers.drupe_call(ops.embedding, weight, indices),
        reference=lambda: weight[indices],
        tolerance=0,
        peers={
            "numpy": lambda: lambda: weight[indices],
            "torch": lambda: peers.torch_call(_torch, indices, weight),
            "jax": lambda: peers.jax_call(_jax, indices, weight),
            **peers.onnx_peers(nodes, {"weight": weight, "indices": indices}),
        },
    )


def dense_backward(V: int, D: int, shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """The gradient of the whole table: each row's sum over its uses."""
    weight = np.zeros((V, D), np.float32)
    indices = _indices(V, shape, rng)
    dy = rng.standard_normal((*shape, D), dtype=np.float32)
    leaf = drupe.tensor(weight, requires_grad=True)
    y = ops.embedding(leaf, indices)

    def reference() -> Any:
        table = np.zeros((V, D))
        np.add.at(table, indices, dy)
        return table

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, leaf),
        reference=reference,
        tolerance=1e-5,
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, indices, weight),
            "jax": lambda: peers.jax_backward(_jax, dy, indices, weight),
        },
    )


def sparse_backward(V: int, D: int, shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """The same as unique rows in ascending order and their sums."""
    weight = np.zeros((V, D), np.float32)
    indices = _indices(V, shape, rng)
    dy = rng.standard_normal((*shape, D), dtype=np.float32)
    leaf = drupe.tensor(weight, requires_grad=True)
    y = ops.embedding(leaf, indices, sparse=True)

    def reference() -> Any:
        rows, inverse = np.unique(indices, return_inverse=True)
        sums = np.zeros((len(rows), D))
        np.add.at(sums, inverse, dy)
        return [rows, sums]

    def torch_peer() -> Prepared:
        back = peers.torch_backward(partial(_torch, sparse=True), dy, indices, weight)

        def call() -> Any:
            merged = back.call()[0].coalesce()
            return [merged.indices()[0], merged.values()]

        return Prepared(call)

    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, leaf),
        reference=reference,
        tolerance=1e-5,
        peers={"torch": torch_peer},
    )
