"""Backward and optimizer step of a recommender's tables, in one pass over the rows that a batch touches.

Of bags, and of rows as they are, which are bags of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup

_FEATURES, _BATCH = 26, 2048
_LR, _EPS = 0.01, 1e-8


def cases(quick: bool) -> Iterator[Case]:
    """Bags of one row and of ten, and single rows, by each rule."""
    rows, width = (1000, 16) if quick else (100_000, 16)
    bags = (4 if quick else _FEATURES) * (16 if quick else _BATCH)
    table = rows * (4 if quick else _FEATURES)
    states = {"rowwise_adagrad": 1 / width, "sgd": 0.0, "adam": 2.0}
    for op, length in (("embedding_bag_step", 1), ("embedding_bag_step", 10), ("embedding_step", 1)):
        touched = table * -np.expm1(-bags * length / table)  # about as many rows
        for rule, state in states.items():
            moved = 4 * width * touched * (1 + state)
            yield Case(
                op=op,
                name=rule if op == "embedding_step" else f"{rule} bags of {length}",
                shapes=f"{bags} {'rows' if op == 'embedding_step' else f'bags of {length}'} from {table}x{width}",
                dtype="float32",
                flops=2 * bags * length * width,
                bytes_read=moved + 4 * width * bags + 8 * length * bags,
                bytes_written=moved,
                setup=partial(step, op, rule, table, width, bags, length),
            )


def _first_step(rule: str, rows: Any, g: Any) -> Any:
    """The rows after the first step."""
    if rule == "sgd":
        return rows - _LR * g
    if rule == "rowwise_adagrad":
        return rows - _LR / (np.sqrt((g * g).mean(1, keepdims=True)) + _EPS) * g
    return rows - _LR * g / (np.abs(g) + _EPS)


def step(op: str, rule: str, table: int, width: int, bags: int, length: int, rng: np.random.Generator) -> Setup:
    """Every contender updates a table of its own; they are compared after the first step."""
    weight = rng.standard_normal((table, width), dtype=np.float32)
    indices, offsets = rng.integers(0, table, bags * length), np.arange(0, bags * length, length)
    dy = rng.standard_normal((bags, width), dtype=np.float32)
    shapes: list[tuple[int, ...]] = (
        [(table,)] if rule == "rowwise_adagrad" else [(table, width)] * (2 * (rule == "adam"))
    )
    chosen = [indices] if op == "embedding_step" else [indices, offsets]
    own, *given = (peers.here(a) for a in (weight.copy(), dy, *chosen))
    states = [peers.here(np.zeros(shape, np.float32)) for shape in shapes]

    def call() -> Any:
        getattr(ops, op)(own, *given, states, optimizer=rule, lr=_LR, eps=_EPS)
        return own

    def reference() -> Any:
        rows, inverse = np.unique(indices, return_inverse=True)
        sums = np.zeros((len(rows), width))
        np.add.at(sums, inverse, np.repeat(dy.astype(float), length, axis=0))
        new = weight.astype(float)
        new[rows] = _first_step(rule, new[rows], sums)
        return new

    def torch_peer() -> Prepared:
        torch = peers.torch_module()
        kind = partial(torch.nn.EmbeddingBag, mode="sum") if len(chosen) > 1 else torch.nn.Embedding
        module = kind(table, width, sparse=True, _weight=peers.torch_tensor(weight))
        leaves = list(module.parameters())
        if rule == "sgd":
            optimizer = torch.optim.SGD(leaves, lr=_LR)
        else:  # adds eps to what is not yet divided by the first step's sqrt(1 - beta2)
            optimizer = torch.optim.SparseAdam(leaves, lr=_LR, eps=_EPS * (1 - 0.999) ** 0.5)
        output = module(*map(peers.torch_tensor, chosen))
        gradient = peers.torch_tensor(dy)

        def run() -> Any:
            optimizer.zero_grad()
            output.backward(gradient, retain_graph=True)
            optimizer.step()
            return module.weight

        return Prepared(run)

    # torch's Adagrad has a state for each element: another result.
    builders = {} if rule == "rowwise_adagrad" else {"torch": torch_peer}
    return Setup(drupe=call, reference=reference, tolerance=1e-4, peers=builders)
