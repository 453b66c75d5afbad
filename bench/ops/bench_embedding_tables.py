"""Lookups in the tables of a recommender's columns, each by its own ids: one call for all of them.

Torch has a module for each table (``torch``), and one for all of them, with ids that are shifted before
(``torch:merged``): an addition of the tables' starts, which its times contain.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup

_LR = 0.01


def cases(quick: bool) -> Iterator[Case]:
    """Bags of one, of ten, and of nought to eight between offsets; a step by SGD; ids hashed, and made rows."""
    rows, batch, features, width = (1000, 16, 4, 16) if quick else (1_000_000, 2048, 26, 16)
    tables = (rows,) * features
    bags = batch * features
    stepped = tuple(size // 10 for size in tables)  # whose table is compared as a whole
    for kind, length in (("one", 1), ("ten", 10), ("lists", 4)):
        read, written = 4 * width * length * bags + 8 * length * bags, 4 * width * bags
        drawn = f"{batch}x{features} bags of {length} from {features}x"
        yield Case(
            op="embedding_tables",
            name=f"sum {kind}",
            shapes=f"{drawn}{rows}x{width}",
            dtype="float32",
            flops=bags * length * width,
            bytes_read=read,
            bytes_written=written,
            working_set=4 * rows * features * width,
            setup=partial(forward, tables, width, batch, kind, length),
        )
        yield Case(
            op="embedding_tables",
            name=f"sgd step {kind}",
            shapes=f"{drawn}{stepped[0]}x{width}",
            dtype="float32",
            flops=2 * bags * length * width,
            bytes_read=read + written,
            bytes_written=4 * width * length * bags,
            working_set=4 * stepped[0] * features * width,
            setup=partial(step, stepped, width, batch, kind, length),
        )
    for op, flops in (("hash_ids", 9), ("table_rows", 1)):  # SplitMix64 and the product's high half; an addition
        yield Case(
            op=op,
            name="one",
            shapes=f"{batch}x{features}",
            dtype="int64",
            flops=flops * bags,
            bytes_read=8 * bags,
            bytes_written=8 * bags,
            setup=partial(hashes if op == "hash_ids" else shifted, tables, batch),
        )


class _Bags:
    """Ids of every table's bags, each a list of `length` on average: what drupe takes, and what torch takes."""

    def __init__(self, tables: tuple[int, ...], batch: int, kind: str, length: int, rng: np.random.Generator) -> None:
        T = len(tables)
        lengths = rng.integers(0, 2 * length + 1, (T, batch)) if kind == "lists" else np.full((T, batch), length)
        self.flat = np.concatenate([rng.integers(0, rows, n.sum()) for rows, n in zip(tables, lengths, strict=True)])
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1].reshape(T, batch)
        self.starts = np.cumsum((0, *tables[:-1]))
        self.table = np.repeat(np.arange(T), lengths.sum(1))
        self.each = [
            (self.flat[self.table == t], self.offsets[t] - self.offsets[t, 0]) for t in range(T)
        ]  # of torch's modules
        self.given: tuple[Any, ...] = (self.flat, self.offsets)
        if kind == "one":
            self.given = (np.ascontiguousarray(self.flat.reshape(T, batch).T),)
        elif kind == "ten":
            self.given = (np.ascontiguousarray(self.flat.reshape(T, batch, length).transpose(1, 0, 2)),)
        self.places = np.repeat((np.arange(batch) * T + np.arange(T)[:, None]).reshape(-1), lengths.reshape(-1))

    def sums(self, weight: Any) -> Any:
        y = np.zeros((self.offsets.size, weight.shape[1]))
        np.add.at(y, self.places, weight[self.flat + self.starts[self.table]].astype(float))
        return y.reshape(self.offsets.shape[1], -1, weight.shape[1])


def _modules(torch: Any, weight: Any, tables: tuple[int, ...]) -> list[Any]:
    ends = np.cumsum(tables)
    parts = [weight[end - rows : end] for end, rows in zip(ends, tables, strict=True)]
    return [
        torch.nn.EmbeddingBag.from_pretrained(peers.torch_tensor(part), False, mode="sum", sparse=True)
        for part in parts
    ]


def forward(tables: tuple[int, ...], width: int, batch: int, kind: str, length: int, rng: np.random.Generator) -> Setup:
    """(batch, tables, width); torch's in the order that it has them at once."""
    weight = rng.random((sum(tables), width), dtype=np.float32)
    bags = _Bags(tables, batch, kind, length, rng)
    held = drupe.tensor(weight)

    def each() -> Prepared:
        torch = peers.torch_module()
        modules = _modules(torch, weight, tables)
        inputs = [tuple(map(peers.torch_tensor, pair)) for pair in bags.each]

        def call() -> Any:
            with torch.inference_mode():
                return torch.stack([m(*pair) for m, pair in zip(modules, inputs, strict=True)], 1)

        return Prepared(call)

    def merged() -> Prepared:
        torch = peers.torch_module()
        table = peers.torch_tensor(weight)
        if kind == "lists":
            ids, shift = bags.flat, bags.starts[bags.table]
            places = bags.offsets.reshape(-1)
        else:
            ids, shift = bags.given[0], bags.starts.reshape(1, -1, *[1] * (kind == "ten"))
            places = np.arange(0, ids.size, length)
        ids, shift, places = map(peers.torch_tensor, (ids, shift, places))

        def call() -> Any:
            with torch.inference_mode():
                y = torch.nn.functional.embedding_bag((ids + shift).reshape(-1), table, places, mode="sum")
            return y.reshape(-1, batch, width).transpose(0, 1) if kind == "lists" else y.reshape(batch, -1, width)

        return Prepared(call)

    return Setup(
        drupe=peers.drupe_call(lambda *given: ops.embedding_bag(held, *given, tables=tables), *bags.given),
        reference=lambda: bags.sums(weight),
        tolerance=1e-5,
        peers={"torch": each, "torch:merged": merged},
    )


def step(tables: tuple[int, ...], width: int, batch: int, kind: str, length: int, rng: np.random.Generator) -> Setup:
    """Gradient and SGD in one, in place; compared after the first step."""
    weight = rng.random((sum(tables), width), dtype=np.float32)
    bags = _Bags(tables, batch, kind, length, rng)
    dy = rng.standard_normal((batch, len(tables), width), dtype=np.float32)
    own, upstream, *given = (peers.here(a) for a in (weight.copy(), dy, *bags.given))

    def call() -> Any:
        ops.embedding_bag_step(own, upstream, *given, optimizer="sgd", tables=tables, lr=_LR)
        return own

    def reference() -> Any:
        new = weight.astype(float)
        np.subtract.at(new, bags.flat + bags.starts[bags.table], _LR * dy.reshape(-1, width)[bags.places])
        return new

    def torch_peer() -> Prepared:
        torch = peers.torch_module()
        modules = _modules(torch, weight, tables)
        outputs = [m(*map(peers.torch_tensor, pair)) for m, pair in zip(modules, bags.each, strict=True)]
        gradients = [peers.torch_tensor(np.ascontiguousarray(dy[:, t])) for t in range(len(tables))]
        optimizer = torch.optim.SGD([m.weight for m in modules], lr=_LR)

        def run() -> Any:
            optimizer.zero_grad()
            torch.autograd.backward(outputs, gradients, retain_graph=True)
            optimizer.step()
            return [m.weight for m in modules]

        return Prepared(run, lambda output: [np.concatenate([w.detach().cpu().numpy() for w in output])])

    return Setup(drupe=call, reference=reference, tolerance=1e-4, peers={"torch": torch_peer})


def hashes(tables: tuple[int, ...], batch: int, rng: np.random.Generator) -> Setup:
    """Rows of raw ids; in NumPy with the upper half of the product by parts, as it has no other."""
    ids = rng.integers(-(2**63), 2**63 - 1, (batch, len(tables)))
    rows = np.array(tables, np.uint64)

    def numpy() -> Any:
        z = ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        low = (z & np.uint64(0xFFFFFFFF)) * rows >> np.uint64(32)
        return ((z >> np.uint64(32)) * rows + low >> np.uint64(32)).astype(np.int64)

    return Setup(
        drupe=peers.drupe_call(lambda given: ops.hash_ids(given, tables), ids),
        reference=numpy,
        tolerance=0,
        peers={"numpy": lambda: numpy},
    )


def shifted(tables: tuple[int, ...], batch: int, rng: np.random.Generator) -> Setup:
    """Ids and the starts of their tables; drupe alone looks whether they are in range."""
    ids = np.stack([rng.integers(0, rows, batch) for rows in tables], 1)
    starts = np.cumsum((0, *tables[:-1]))
    return Setup(
        drupe=peers.drupe_call(lambda given: ops.table_rows(given, tables), ids),
        reference=lambda: ids + starts,
        tolerance=0,
        peers={
            "numpy": lambda: lambda: ids + starts,
            "torch": lambda: peers.torch_call(lambda torch, ids, starts: ids + starts, ids, starts),
            "jax": lambda: peers.jax_call(lambda jax, ids, starts: ids + starts, ids, starts),
        },
    )
