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

_WEIGHTS = [0.25] * 4


def cases(quick: bool) -> Iterator[Case]:
    """The product alone, and the mean of three layers: forward and backward; of all rows, and of a batch's."""
    scale, D = 64 if quick else 1, 64
    nodes, entries = 29858 // scale + 40981 // scale, 2 * (810128 // scale)
    described: dict[str, Any] = {"shapes": f"{nodes}^2, {entries} entries, {D} columns", "dtype": "float32"}
    yield Case(
        op="spmm",
        name="product",
        flops=2 * entries * D,
        bytes_read=8 * entries + 8 * nodes + 4 * D * nodes,
        bytes_written=4 * D * nodes,
        setup=partial(product, scale, D),
        target=0.5,
        **described,
    )
    yield Case(
        op="spmm",
        name="propagate 3 forward and backward",
        flops=6 * (2 * entries + 2 * nodes) * D,
        bytes_read=6 * (8 * entries + 8 * nodes + 8 * D * nodes),
        bytes_written=6 * 4 * D * nodes,
        setup=partial(propagate, scale, D),
        target=0.5,
        **described,
    )
    for name, rows in (("3 layers", nodes), ("3 layers of a batch", 32 if quick else 4096)):
        products = 2 + rows / nodes
        yield Case(
            op="propagate",
            name=name,
            flops=products * (2 * entries + 2 * nodes) * D,
            bytes_read=products * (8 * entries + 8 * nodes + 8 * D * nodes),
            bytes_written=products * 4 * D * nodes,
            setup=partial(layers, scale, D, rows),
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


def _mean(a: drupe.CsrMatrix, x: Any) -> Any:
    """Return the mean of ``x, A x, A A x, A A A x`` in float64."""
    total = power = x.astype(float)
    for _ in _WEIGHTS[1:]:
        power = _product(a, power)
        total = total + power
    return total / len(_WEIGHTS)


def _torch_mean(torch: Any, a: Any, x: Any) -> Any:
    powers = [x]
    for _ in _WEIGHTS[1:]:
        powers.append(torch.sparse.mm(a, powers[-1]))
    return torch.stack(powers).mean(0)


def propagate(scale: int, D: int, rng: np.random.Generator) -> Setup:
    """The mean of ``x, A x, A A x, A A A x``, and the gradient of x."""
    a = adjacency(scale, rng)
    x, dy = (rng.standard_normal((a.shape[1], D), dtype=np.float32) for _ in range(2))
    leaf, upstream = drupe.tensor(x, requires_grad=True), drupe.tensor(dy)

    def run() -> Any:
        leaf.grad = None
        y = ops.propagate(a, leaf, _WEIGHTS)
        y.backward(upstream)
        return [leaf.grad]

    def torch_peer() -> Any:
        theirs = torch_csr(a)
        return peers.torch_training(lambda torch, x: _torch_mean(torch, theirs, x), dy, x)

    return Setup(drupe=run, reference=lambda: [_mean(a, dy)], tolerance=1e-5, peers={"torch": torch_peer})


def layers(scale: int, D: int, count: int, rng: np.random.Generator) -> Setup:
    """The mean alone, in some of the rows or in all of them."""
    a = adjacency(scale, rng)
    x = rng.standard_normal((a.shape[1], D), dtype=np.float32)
    rows = None if count == len(x) else rng.permutation(len(x))[:count]
    chosen = slice(None) if rows is None else rows

    def torch_peer() -> Any:
        theirs, wanted = torch_csr(a), chosen if rows is None else peers.torch_tensor(rows)
        return peers.torch_call(lambda torch, x: _torch_mean(torch, theirs, x)[wanted], x)

    return Setup(
        drupe=peers.drupe_call(lambda x: ops.propagate(a, x, _WEIGHTS, rows=rows), x),
        reference=lambda: _mean(a, x)[chosen],
        tolerance=1e-5,
        peers={"torch": torch_peer},
    )
