"""LightGCN: embeddings of users and items, smoothed over the graph of who took what; nothing else is trained.

Reference:
    X. He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", arXiv:2002.02126.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import nn, ops
from drupe.autograd import no_grad
from drupe.nn import Module, Parameter
from drupe.nn.module import Incompatible
from drupe.sparse import CsrMatrix
from drupe.tensor import DtypeLike, Tensor, empty
from drupe.train import Model


@dataclass(frozen=True)
class LightGCNConfig:
    """Sizes of a LightGCN.

    Attributes:
        users: U, how many users there are.
        items: I, how many items.
        embedding_size: D, of every user's and item's vector.
        layers: K, how often the vectors go over the graph; 0 is matrix factorization.
        l2: the penalty on the vectors of a batch, before they are smoothed.
    """

    users: int
    items: int
    embedding_size: int = 64
    layers: int = 3
    l2: float = 1e-4

    def __post_init__(self) -> None:
        if min(self.users, self.items, self.embedding_size) < 1:
            raise ValueError("[LightGCNConfig] users, items and embedding_size must be 1 or more")
        if self.layers < 0 or not self.l2 >= 0:
            raise ValueError("[LightGCNConfig] layers and l2 must not be negative")


class LightGCN(Model):
    """Score of a user and an item: the product of their vectors ``1 / (K + 1) sum_{k <= K} (D^-1/2 A D^-1/2)^k E``.

    A is the adjacency of the graph of users and items, D has the nodes' degrees, E are the embeddings. ``fit`` takes a
    :class:`drupe.data.Interactions`; it saves and loads the embeddings under the names of the authors' code,
    ``embedding_user.weight`` and ``embedding_item.weight``.

    Args:
        config: the sizes.
        users: (N,) integers in [0, U): the training interactions, whose edges the graph has.
        items: (N,) integers in [0, I).

    Attributes:
        weight: (U + I, D), the embeddings E, users first: normal with deviation 0.1 at first.
        graph: (U + I, U + I), the normalised adjacency.

    Raises:
        IndexError: a user or an item out of range.
        ValueError: lists that differ in length.
        TypeError: lists that hold no integers.
    """

    default_loss = "bpr"

    def __init__(self, config: LightGCNConfig, users: npt.ArrayLike, items: npt.ArrayLike) -> None:
        self.config = config
        U, nodes = config.users, config.users + config.items
        sources, targets = _nodes(config, users, items)
        self.graph = CsrMatrix.normalized_adjacency(sources, targets, nodes)
        self.weight = nn.init.normal(Parameter(empty((nodes, config.embedding_size))), std=0.1)
        starts, columns = self.graph.indptr.numpy(), self.graph.indices.numpy()
        self._taken = starts[: U + 1], columns[: starts[U]] - U  # by each user, in order

    def forward(self, users: Any, items: Any, others: Any = None) -> Any:
        """Return the scores of users and items; or, to train, how much higher those of one item are than the other's.

        Args:
            users: (B,) integers in [0, U).
            items: (B,) integers in [0, I).
            others: (B,), likewise.

        Returns:
            (B,) scores; with ``others`` (the differences (B,), the penalty): the latter is ``l2 / 2`` times the sum of
            the squares of the embeddings in the batch, divided by B, or None where ``l2`` is 0.

        Raises:
            IndexError: a user or an item out of range.
            ValueError: lists that differ in length.
        """
        nodes = np.concatenate(_nodes(self.config, users, *([items] if others is None else [items, others])))
        count = 2 if others is None else 3
        B, D = nodes.size // count, self.config.embedding_size
        met, places = np.unique(nodes, return_inverse=True)
        rows = ops.embedding(self._smoothed(met), places).reshape((count, B, D))
        if others is None:
            return (rows[0] * rows[1]).sum(axis=-1)
        differences = (rows[0] * (rows[1] - rows[2])).sum(axis=-1)
        if self.config.l2 == 0:
            return differences, None
        embeddings = ops.embedding(self.weight, nodes, sparse=True)
        return differences, ops.square(embeddings).sum() * (self.config.l2 / 2 / max(1, B))

    def _smoothed(self, nodes: npt.NDArray[np.int64] | None = None) -> Any:
        """Return the vectors of all nodes, (U + I, D), or of these, each of which comes once."""
        K = self.config.layers
        if K == 0:
            return self.weight if nodes is None else ops.embedding(self.weight, nodes)
        return ops.propagate(self.graph, self.weight, [1 / (K + 1)] * (K + 1), rows=nodes)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the vectors whose products are the scores: of users (U, D) and of items (I, D), outside the tape."""
        with no_grad():
            users, items = ops.split(self._smoothed(), (self.config.users, self.config.items))
        return users, items

    def recommend(self, users: npt.ArrayLike, k: int, *, taken: bool = False) -> npt.NDArray[np.int64]:
        """Return the k items with the highest scores for each user, best first.

        All vectors are computed once for a call: give it many users.

        Args:
            users: (B,) integers in [0, U), or one.
            k: 1 to I.
            taken: also recommend what the user took in training.

        Returns:
            (B, k) int64, or (k,) for one user; -1 where fewer items are left.

        Raises:
            IndexError: a user out of range.
            ValueError: ``k`` out of range.
        """
        I = self.config.items  # noqa: E741
        if not 1 <= k <= I:
            raise ValueError(f"[LightGCN] k is {k}: expected 1 to {I}")
        (chosen,) = _nodes(self.config, np.atleast_1d(np.asarray(users)))
        user_vectors, item_vectors = self.vectors()
        with no_grad():
            rows = ops.embedding(user_vectors, chosen)
            scores = ops.matmul(rows, item_vectors.permute((1, 0))).astype("float32").numpy()
        if not taken:
            starts, items = self._taken
            counts = starts[chosen + 1] - starts[chosen]
            places = np.arange(counts.sum()) + np.repeat(starts[chosen] - np.cumsum(counts) + counts, counts)
            scores[np.repeat(np.arange(chosen.size), counts), items[places]] = -np.inf
        values, best = (np.asarray(x) for x in ops.topk(scores, k))
        return np.asarray(np.where(values == -np.inf, -1, best).reshape((*np.shape(users), k)), np.int64)

    # ---- the authors' names

    def _tables(self) -> Module:
        """Return the two tables, which share the memory of ``weight``."""
        tables = Module()
        U = self.config.users
        for name, part in (("embedding_user", slice(0, U)), ("embedding_item", slice(U, None))):
            table = Module()
            table.weight = Parameter(self.weight.detach()[part])
            setattr(tables, name, table)
        return tables

    def state_dict(self) -> dict[str, Tensor]:
        """Return both tables, sharing their memory."""
        return self._tables().state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Incompatible:
        """Copy arrays into the tables; see :meth:`drupe.nn.Module.load_state_dict`."""
        incompatible = self._tables().load_state_dict(state, strict)
        self.weight.version += 1
        return incompatible

    def to(self, device: str) -> LightGCN:
        """Move the parameters and the graph; see :meth:`drupe.nn.Module.to`."""
        super().to(device)
        self.graph = self.graph.to(device)
        return self

    def astype(self, dtype: DtypeLike) -> LightGCN:
        """Convert the parameters and, but for 16-bit ones, the graph; see :meth:`drupe.nn.Module.astype`."""
        super().astype(dtype)
        self.graph = self.graph.astype(np.float64 if self.weight.dtype == np.float64 else np.float32)
        return self


def _nodes(config: LightGCNConfig, users: Any, *items: Any) -> list[npt.NDArray[np.int64]]:
    """Return the nodes of the graph that users and items are, checked: items come after users."""
    nodes: list[npt.NDArray[np.int64]] = []
    for name, given, limit, first in [
        ("users", users, config.users, 0),
        *(("items", x, config.items, config.users) for x in items),
    ]:
        ids = np.asarray(given.detach().numpy() if isinstance(given, Tensor) else given)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise TypeError(f"[LightGCN] {name} is {ids.dtype} {ids.shape}: expected a list of integers")
        if nodes and ids.size != nodes[0].size:
            raise ValueError(f"[LightGCN] there are {nodes[0].size} users and {ids.size} items")
        if ids.size and (ids.min() < 0 or ids.max() >= limit):
            wrong = ids[(ids < 0) | (ids >= limit)][0]
            raise IndexError(f"[LightGCN] {name} holds {wrong}: expected [0, {limit})")
        nodes.append(ids.astype(np.int64) + first)
    return nodes
