"""Wide & Deep: a linear model of categories and their crosses beside a perceptron over their embeddings.

Reference:
    H.-T. Cheng et al., "Wide & Deep Learning for Recommender Systems", arXiv:1606.07792, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import nn, ops
from drupe.models._columns import check_seed, take_columns
from drupe.nn import Dropout, Embedding, EmbeddingBag, Linear, ModuleList, Parameter
from drupe.tensor import zeros
from drupe.train import Model


@dataclass(frozen=True)
class WideDeepConfig:
    """Sizes of a Wide & Deep model.

    Attributes:
        cardinalities: how many values each categorical column takes, counted from 0.
        numeric: how many numeric columns there are.
        crosses: groups of two or more categorical columns whose combinations are features of the wide part.
        cross_buckets: combinations of one cross at most; where there are more, they share (by remainder).
        embedding_size: E, of every categorical column's vectors.
        hidden: widths of the deep part's layers.
        dropout: after each of them.
        sparse: give the embeddings' gradients by rows (:class:`drupe.SparseRows`): for large tables.
        hash_seed: take categories of any value, 64 bits wide, and hash them into the tables with this seed
            (:func:`drupe.ops.hash_ids`); ``cardinalities`` are then the tables' sizes.
    """

    cardinalities: tuple[int, ...]
    numeric: int = 0
    crosses: tuple[tuple[int, ...], ...] = ()
    cross_buckets: int = 100_000
    embedding_size: int = 8
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.0
    sparse: bool = False
    hash_seed: int | None = None

    def __post_init__(self) -> None:
        if not self.cardinalities or min(self.cardinalities) < 1:
            raise ValueError(f"[WideDeepConfig] cardinalities is {self.cardinalities}: expected positive numbers")
        if self.numeric < 0 or self.cross_buckets < 1 or self.embedding_size < 1:
            raise ValueError("[WideDeepConfig] numeric, cross_buckets and embedding_size must not be negative or zero")
        for cross in self.crosses:
            if len(cross) < 2 or not all(0 <= i < len(self.cardinalities) for i in cross):
                raise ValueError(f"[WideDeepConfig] cross {cross}: expected two or more of the categorical columns")
        check_seed("WideDeepConfig", self.hash_seed)

    @property
    def wide_sizes(self) -> tuple[int, ...]:
        """How many features each categorical column and each cross contributes to the wide part."""
        crossed = (math.prod(self.cardinalities[i] for i in cross) for cross in self.crosses)
        return (*self.cardinalities, *(min(size, self.cross_buckets) for size in crossed))


class WideDeep(Model):
    """Logit of a binary target: ``wide(categories, crosses, numbers) + deep(embeddings, numbers)``.

    Args:
        config: the sizes.

    Attributes:
        wide: EmbeddingBag, one weight per category and per cross.
        wide_numeric: Linear, numeric -> 1, or None.
        bias: (1,).
        embeddings: one Embedding per categorical column.
        layers: Linear layers with ReLU.
        head: Linear, the last width -> 1.
    """

    default_loss = "bce_with_logits"

    def __init__(self, config: WideDeepConfig) -> None:
        self.config = config
        self.wide = EmbeddingBag(sum(config.wide_sizes), 1, mode="sum", sparse=config.sparse)
        self.wide_numeric = Linear(config.numeric, 1, bias=False) if config.numeric else None
        self.bias = Parameter(zeros((1,)))
        self.embeddings = ModuleList(
            Embedding(size, config.embedding_size, sparse=config.sparse) for size in config.cardinalities
        )
        width = config.embedding_size * len(config.cardinalities) + config.numeric
        self.layers = ModuleList()
        for hidden in config.hidden:
            self.layers.append(Linear(width, hidden, activation="relu"))
            width = hidden
        self.dropout = Dropout(config.dropout)
        self.head = Linear(width, 1)
        nn.init.zeros(self.wide.weight)
        for table in self.embeddings:
            assert isinstance(table, Embedding)
            nn.init.normal(table.weight, std=1 / math.sqrt(config.embedding_size))

    def forward(self, categorical: Any, numeric: Any = None) -> Any:
        """Return logits (B,).

        Args:
            categorical: (B, C), integers; column i in [0, cardinalities[i]), or of any value where they are hashed.
            numeric: (B, F) float32, standardised.

        Raises:
            ValueError: another number of columns.
            IndexError: a category outside its column's range.
        """
        c = self.config
        codes = take_columns("WideDeep", np.asarray(categorical), numeric, c.cardinalities, c.numeric, c.hash_seed)
        wide = self.wide(self.wide_features(codes))  # (B, 1)
        deep = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]  # C x (B, E)
        if self.wide_numeric is not None:
            wide = wide + self.wide_numeric(numeric)
            deep.append(numeric)
        x = ops.concat(deep, axis=1)  # (B, C E + F)
        for layer in self.layers:
            x = self.dropout(layer(x))
        return (self.head(x) + wide + self.bias).reshape((codes.shape[0],))

    def wide_features(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the rows of the wide table that each example adds up, (B, C + crosses)."""
        columns = [codes[:, i] for i in range(codes.shape[1])]
        for cross in self.config.crosses:
            combined = np.zeros(len(codes), np.int64)
            for i in cross:
                combined = combined * self.config.cardinalities[i] + codes[:, i]
            columns.append(combined % self.config.cross_buckets)
        starts = np.cumsum((0, *self.config.wide_sizes))[:-1]
        return np.asarray(np.stack(columns, axis=1) + starts, np.int64)
