"""DeepFM: a factorization machine and a perceptron over the same embeddings.

Reference:
    H. Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", arXiv:1703.04247.
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
from drupe.tensor import as_tensor, empty
from drupe.train import Model


@dataclass(frozen=True)
class DeepFMConfig:
    """Sizes of a DeepFM model.

    Attributes:
        cardinalities: how many values each categorical column takes, counted from 0.
        numeric: how many numeric columns there are.
        embedding_size: E, of every column's vectors.
        hidden: widths of the deep part's layers.
        dropout: after each of them.
        sparse: give the tables' gradients by rows (:class:`drupe.SparseRows`): for large tables.
        hash_seed: take categories of any value, 64 bits wide, and hash them into the tables with this seed
            (:func:`drupe.ops.hash_ids`); ``cardinalities`` are then the tables' sizes.
    """

    cardinalities: tuple[int, ...]
    numeric: int = 0
    embedding_size: int = 8
    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.0
    sparse: bool = False
    hash_seed: int | None = None

    def __post_init__(self) -> None:
        if not self.cardinalities or min(self.cardinalities) < 1:
            raise ValueError(f"[DeepFMConfig] cardinalities is {self.cardinalities}: expected positive numbers")
        if self.numeric < 0 or self.embedding_size < 1 or min(self.hidden, default=1) < 1:
            raise ValueError("[DeepFMConfig] numeric, embedding_size and hidden must not be negative or zero")
        check_seed("DeepFMConfig", self.hash_seed)

    @property
    def fields(self) -> int:
        """How many columns have vectors."""
        return len(self.cardinalities) + self.numeric


class DeepFM(Model):
    """Logit of a binary target: ``<w, x> + sum_{i<j} <v_i, v_j> x_i x_j + deep(v x)``.

    x_i is 1 for the value that a categorical column has, and a numeric column's number. All categorical columns share
    one table, column after column: a batch takes one gather of vectors and one of weights.

    Args:
        config: the sizes.

    Attributes:
        first: EmbeddingBag, the weight w of each category; zeros at first.
        embedding: Embedding, the vector v of each.
        first_numeric: Linear, numeric -> 1, or None.
        embedding_numeric: (numeric, E), or None.
        layers: Linear layers with ReLU.
        head: Linear, the last width -> 1; its bias is the model's.
    """

    default_loss = "bce_with_logits"

    def __init__(self, config: DeepFMConfig) -> None:
        self.config = config
        self.first = EmbeddingBag(sum(config.cardinalities), 1, mode="sum", sparse=config.sparse)
        self.embedding = Embedding(sum(config.cardinalities), config.embedding_size, sparse=config.sparse)
        self.first_numeric = Linear(config.numeric, 1, bias=False) if config.numeric else None
        self.embedding_numeric = Parameter(empty((config.numeric, config.embedding_size))) if config.numeric else None
        width = config.fields * config.embedding_size
        # The products of all pairs of vectors then add up to less than 1.
        std = 1 / math.sqrt(width)
        self.layers = ModuleList()
        for hidden in config.hidden:
            self.layers.append(Linear(width, hidden, activation="relu"))
            width = hidden
        self.dropout = Dropout(config.dropout)
        self.head = Linear(width, 1)
        nn.init.zeros(self.first.weight)
        nn.init.normal(self.embedding.weight, std=std)
        if self.embedding_numeric is not None:
            nn.init.normal(self.embedding_numeric, std=std)

    def forward(self, categorical: Any, numeric: Any = None) -> Any:
        """Return logits (B,).

        Args:
            categorical: (B, C), integers; column i in [0, cardinalities[i]), or of any value where they are hashed.
            numeric: (B, N) float32, standardised.

        Raises:
            ValueError: another number of columns.
            IndexError: a category outside its column's range.
        """
        rows = as_tensor(self.rows(np.asarray(categorical), numeric)).to(self.embedding.weight.device)
        B, E = rows.shape[0], self.config.embedding_size
        first = self.first(rows)  # (B, 1)
        vectors = self.embedding(rows)  # (B, C, E)
        if self.first_numeric is not None:
            first = first + self.first_numeric(numeric)
            scaled = ops.mul(self.embedding_numeric, ops.reshape(numeric, (B, -1, 1)))  # (B, N, E)
            vectors = ops.concat([vectors, scaled], axis=1)  # (B, C + N, E)
        second = ops.fm_interaction(vectors)  # (B,)
        x = vectors.reshape((B, self.config.fields * E))
        for layer in self.layers:
            x = self.dropout(layer(x))
        return self.head(x, residual=first).reshape((B,)) + second

    def rows(self, codes: npt.NDArray[Any], numeric: Any = None) -> npt.NDArray[np.int64]:
        """Return the rows of the tables that each example uses, (B, C), and check what ``forward`` takes."""
        sizes = self.config.cardinalities
        codes = take_columns("DeepFM", codes, numeric, sizes, self.config.numeric, self.config.hash_seed)
        return np.asarray(codes + np.cumsum((0, *sizes[:-1]), dtype=np.int64))
