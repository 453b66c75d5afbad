"""What a decoder has seen: the keys and values of the tokens before."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import ops
from drupe.tensor import DtypeLike, Tensor, zeros


class KVCache:
    """Keys and values of every layer, in memory of a fixed capacity that decoding writes in place.

    Args:
        layers: how many layers there are.
        batch: B, the number of sequences.
        heads: H, of the keys.
        capacity: how many tokens there is room for.
        features: D, the size of a head.
        dtype: that of the model's weights.
        device: that of the model; the default device where it is left out.

    Attributes:
        keys: a tensor (B, H, capacity, D) for each layer.
        values: the same.
        lengths: (B,), int64: how many tokens of each sequence are held.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        features: int,
        *,
        dtype: DtypeLike = "float32",
        device: str | None = None,
    ) -> None:
        self.capacity = capacity
        shape = (batch, heads, capacity, features)
        self.keys = [zeros(shape, dtype, device=device) for _ in range(layers)]
        self.values = [zeros(shape, dtype, device=device) for _ in range(layers)]
        self.lengths: npt.NDArray[np.int64] = np.zeros(batch, np.int64)

    @property
    def starts(self) -> int | list[int]:
        """Where the next token goes: one number where all sequences are as long, or one for each of them."""
        lengths: list[int] = self.lengths.tolist()
        return lengths[0] if len(set(lengths)) == 1 else lengths

    def append(self, layer: int, k: Tensor, v: Tensor, starts: int | list[int]) -> tuple[Any, Any]:
        """Write the keys and values (B, H, S, D) of S more tokens, and return those of all tokens, views of the cache.

        The lengths are left as they are: the model adds to them once all layers are done.

        Raises:
            ValueError: shapes that do not fit, or no room.
        """
        return ops.append_rows(self.keys[layer], k, starts), ops.append_rows(self.values[layer], v, starts)

    def attend(self, layer: int, x: Any, starts: int | list[int], **options: Any) -> Any:
        """Append the keys and values in ``x`` (B, S, 3 H D), and return (B, S, H D): the attention over all tokens.

        See :func:`drupe.ops.cached_attention`; the lengths are left as they are.
        """
        return ops.cached_attention(x, self.keys[layer], self.values[layer], starts, **options)

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self.lengths = np.zeros_like(self.lengths)
