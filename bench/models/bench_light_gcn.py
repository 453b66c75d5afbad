"""A step of training LightGCN as its paper does: three layers on a graph as large as Gowalla's, and Adam over all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import optim
from drupe.bench import peers
from drupe.bench.gowalla import gowalla
from drupe.bench.harness import Case, Prepared, Setup
from drupe.bench.ops.bench_spmm import torch_csr
from drupe.data import Interactions
from drupe.models.light_gcn import LightGCN, LightGCNConfig
from drupe.train import LOSSES

_LR = 1e-3


def cases(quick: bool) -> Iterator[Case]:
    """A batch of 2048 users with an item and another."""
    scale, D, K, B = 64 if quick else 1, 64, 3, 64 if quick else 2048
    nodes, entries = 29858 // scale + 40981 // scale, 2 * (810128 // scale)
    yield Case(
        op="light_gcn",
        name="training step",
        shapes=f"{nodes} nodes, {entries} entries, D{D} K{K} B{B}",
        dtype="float32",
        flops=2 * K * (2 * entries + 2 * nodes) * D + 12 * nodes * D,
        bytes_read=2 * K * (8 * entries + 8 * nodes + 8 * D * nodes) + 16 * D * nodes,
        bytes_written=2 * K * 4 * D * nodes + 12 * D * nodes,
        setup=partial(training, scale, D, K, B),
        target=0.25,
    )


def training(scale: int, D: int, K: int, B: int, rng: np.random.Generator) -> Setup:
    """Forward, loss, backward and Adam; the loss comes out. The others are drawn beforehand."""
    U, num_items, users, items = gowalla(rng, scale)
    model = LightGCN(LightGCNConfig(U, num_items, D, K), users, items)
    weight = model.weight.detach().numpy().copy()
    l2 = model.config.l2
    chosen = rng.choice(users.size, B, replace=False)
    batch = [x[chosen] for x in Interactions(users, items, num_items).sample(rng)[0]]
    model.to(drupe.get_default_device())
    targets = drupe.ones((B,))
    optimizer = optim.Adam(model.parameters(), lr=_LR)
    loss_of = LOSSES["bpr"].function

    def torch(*, symmetric: bool) -> Prepared:
        torch = peers.torch_module()
        adjacency = torch_csr(model.graph)
        multiply = _symmetric_product(torch, adjacency) if symmetric else partial(torch.sparse.mm, adjacency)
        tables = [torch.nn.Parameter(peers.torch_tensor(part)) for part in (weight[:U].copy(), weight[U:].copy())]
        adam = torch.optim.Adam(tables, lr=_LR, fused=True)
        ids = [peers.torch_tensor(x) for x in batch]

        def torch_loss() -> Any:
            layers = [torch.cat(tables)]
            for _ in range(K):
                layers.append(multiply(layers[-1]))
            user, item = torch.stack(layers, 1).mean(1).split([U, num_items])
            u, i, j = user[ids[0]], item[ids[1]], item[ids[2]]
            own = tables[0][ids[0]], tables[1][ids[1]], tables[1][ids[2]]
            penalty = sum(part.pow(2).sum() for part in own) * (l2 / 2 / B)
            return torch.nn.functional.softplus((u * j).sum(1) - (u * i).sum(1)).mean() + penalty

        return peers.torch_step(torch_loss, adam)

    return Setup(
        drupe=peers.drupe_step(lambda: loss_of(model(*batch), targets), optimizer),
        peers={"torch": lambda: torch(symmetric=False), "torch:symmetric": lambda: torch(symmetric=True)},
        tolerance=1e-5,
    )


def _symmetric_product(torch: Any, adjacency: Any) -> Callable[[Any], Any]:
    """Return the product whose gradient is told that the matrix is its own transpose, which torch cannot know."""

    class Product(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_: Any, x: Any) -> Any:
            return torch.sparse.mm(adjacency, x)

        @staticmethod
        def backward(_: Any, dy: Any) -> Any:
            return torch.sparse.mm(adjacency, dy)

    product: Callable[[Any], Any] = Product.apply
    return product
