"""The product of LightGCN: the normalised adjacency of a graph as large as Gowalla's, and 64 columns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.gowalla import gowalla
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """The product alone, and the mean of three layers, forward and backward."""
    scale, D = 64 if quick else 1, 64
    nodes, entries = 29858 // scale + 40981 // scale, 2 * (810128 // scale)
    described: dict[str, Any] = {"op": "spmm", "shapes": f"{nodes}^2, {entries} entries, {D} columns"}
    described |= {"dtype": "float32", "target": 0.5}
    yield Case(
        name="product",
        flops=2 * entries * D,
        bytes_read=8 * entries + 8 * nodes + 4 * D * nodes,
        bytes_written=4 * D * nodes,
        setup=partial(product, scale, D),
        **described,
    )
    yield Case(
        name="propagate 3 forward and backward",
        flops=6 * (2 * entries + 2 * nodes) * D,
        bytes_read=6 * (8 * entries + 8 * nodes + 8 * D * nodes),
        bytes_written=6 * 4 * D * nodes,
        setup=partial(propagate, scale, D),
        **described,
    )


def adjacency(scale: int, rng: np.random.Generator) -> drupe.CsrMatrix:
    """Return the graph's normalised adjacency."""
    U, num_items, users, items = gowalla(rng, scale)
    return drupe.CsrMatrix.normalized_adjacency(users, items + U, U + num_items)


def torch_csr(a: drupe.CsrMatrix) -> Any:
    """Return the same matrix in torch."""
    torch = peers.torch_module()
    assert a.values is not None
    parts = (a.indptr.numpy(), a.indices.numpy().astype(np.int64), a.values.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        return torch.sparse_csr_tensor(*(peers.torch_tensor(part) for part in parts), a.shape)


def _product(a: drupe.CsrMatrix, x: Any) -> Any:
    """Return ``A x`` in float64, column by column."""
    assert a.values is not None
    cols, values = a.indices.numpy(), a.values.numpy().astype(float)
    rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr.numpy()))
    columns = [np.bincount(rows, values * x[cols, c], a.shape[0]) for c in range(x.shape[1])]
    return np.stack(columns, axis=1)


def product(scale: int, D: int, rng: np.random.Generator) -> Setup:
    """``y = A x``."""
    a = adjacency(scale, rng)
    x = rng.standard_normal((a.shape[1], D), dtype=np.float32)

    def torch_peer() -> Any:
        theirs = torch_csr(a)
        return peers.torch_call(lambda torch, x: torch.sparse.mm(theirs, x), x)

    return Setup(
        drupe=peers.drupe_call(partial(ops.spmm, a), x),
        reference=lambda: _product(a, x),
        tolerance=1e-5,
        peers={"torch": torch_peer},
    )


def propagate(scale: int, D: int, rng: np.random.Generator) -> Setup:
    """The mean of ``x, A x, A A x, A A A x``, and the gradient of x."""
    a = adjacency(scale, rng)
    x, dy = (rng.standard_normal((a.shape[1], D), dtype=np.float32) for _ in range(2))
    leaf, upstream = drupe.tensor(x, requires_grad=True), drupe.tensor(dy)

    def run() -> Any:
        leaf.grad = None
        y = ops.propagate(a, leaf, [0.25] * 4)
        y.backward(upstream)
        return [leaf.grad]

    def reference() -> Any:
        total = power = dy.astype(float)
        for _ in range(3):
            power = _product(a, power)
            total = total + power
        return [total / 4]

    def mean(torch: Any, x: Any, theirs: Any) -> Any:
        layers = [x]
        for _ in range(3):
            layers.append(torch.sparse.mm(theirs, layers[-1]))
        return torch.stack(layers).mean(0)

    def torch_peer() -> Any:
        theirs = torch_csr(a)
        return peers.torch_training(lambda torch, x: mean(torch, x, theirs), dy, x)

    return Setup(drupe=run, reference=reference, tolerance=1e-5, peers={"torch": torch_peer})
