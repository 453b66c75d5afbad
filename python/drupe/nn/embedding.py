"""Tables of vectors."""

from __future__ import annotations

from typing import Any

from drupe import ops
from drupe.nn import init
from drupe.nn.module import Module
from drupe.nn.parameter import Parameter
from drupe.tensor import empty


class Embedding(Module):
    """``y = weight[indices]`` (:func:`drupe.ops.embedding`).

    Args:
        count: V, the number of vectors.
        features: D, the size of each.
        padding_idx: the vector that starts as zeros and gets no gradient, if any.
        sparse: give the gradient as :class:`drupe.SparseRows`, as large as the rows that were used.

    Attributes:
        weight: (V, D), normal of mean 0 and deviation 1 at first.
    """

    def __init__(self, count: int, features: int, padding_idx: int | None = None, *, sparse: bool = False) -> None:
        if padding_idx is not None and not -count <= padding_idx < count:
            raise ValueError(f"[Embedding] padding_idx is {padding_idx}: expected an index into {count} vectors")
        self.padding_idx = None if padding_idx is None else padding_idx % count
        self.sparse = sparse
        self.weight = init.normal(Parameter(empty((count, features))))
        if self.padding_idx is not None:
            init.zeros(self.weight.detach()[self.padding_idx])

    def forward(self, indices: Any) -> Any:
        """Return (..., D) for integer ``indices`` (...)."""
        return ops.embedding(self.weight, indices, padding_idx=self.padding_idx, sparse=self.sparse)

    def extra_repr(self) -> str:
        """Name the sizes."""
        count, features = self.weight.shape
        return f"{count}, {features}" + ("" if self.padding_idx is None else f", padding_idx={self.padding_idx}")


class EmbeddingBag(Module):
    """The sum, mean or maximum of the vectors of each bag of indices (:func:`drupe.ops.embedding_bag`).

    Args:
        count: V, the number of vectors.
        features: D, the size of each.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        sparse: as for :class:`Embedding`.

    Attributes:
        weight: (V, D), normal of mean 0 and deviation 1 at first.
    """

    def __init__(self, count: int, features: int, *, mode: str = "mean", sparse: bool = False) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f'[EmbeddingBag] mode is "{mode}": expected "sum", "mean" or "max"')
        self.mode, self.sparse = mode, sparse
        self.weight = init.normal(Parameter(empty((count, features))))

    def forward(self, indices: Any, offsets: Any = None, *, per_sample_weights: Any = None) -> Any:
        """Return (B, D): bags are the rows of ``indices`` (B, L), or start at ``offsets`` (B,) in ``indices`` (N,)."""
        return ops.embedding_bag(
            self.weight,
            indices,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            sparse=self.sparse,
        )

    def extra_repr(self) -> str:
        """Name the sizes."""
        count, features = self.weight.shape
        return f"{count}, {features}, mode={self.mode}"
