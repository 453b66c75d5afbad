"""What the queries of a decoder see: from a mask of padding and a cache to the arguments of attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import ops
from drupe.autograd import is_grad_enabled
from drupe.nn import KVCache

Counts = npt.NDArray[np.int64]


@dataclass
class Sight:
    """What the queries of a call see, the same in all layers.

    Attributes:
        counts: (B,), how many tokens of each sequence count, up to the last that is no padding; None where all do.
        mask: arguments of :func:`drupe.ops.attention` for all queries.
        last_mask: the same for one query, that of the last token of each sequence.
        cache: keys and values of the tokens before.
        starts: where the new ones go in it.
    """

    counts: Counts | None
    mask: dict[str, Any]
    last_mask: dict[str, Any] = field(default_factory=dict)
    cache: KVCache | None = None
    starts: int | list[int] = 0

    def last(self, x: Any) -> Any:
        """Return the row (B, 1, D) of the last token of each sequence of (B, S, D)."""
        if self.counts is None:
            return x[:, -1:]
        B, S, D = x.shape
        return ops.embedding(x.reshape((B * S, D)), (self.counts - 1 + S * np.arange(B))[:, None])


def look(attention_mask: Any, shape: tuple[int, int], cache: KVCache | None, dtype: np.dtype[Any]) -> Sight:
    """Return what (B, S) tokens see of each other, and of those in a cache before them.

    Args:
        attention_mask: (B, S), 0 where there is padding; with a cache on the right alone. None where there is none.
        shape: (B, S).
        cache: of the tokens before.
        dtype: of the queries.

    Raises:
        ValueError: the mask or the cache does not go with the shape, or padding where it may not be.
        RuntimeError: a cache while operations are recorded.
    """
    counts, bias = None, None
    mask = None if attention_mask is None else np.asarray(attention_mask) != 0  # (B, S)
    if mask is not None and mask.shape != shape:
        raise ValueError(f"[decoder] attention_mask is {mask.shape}, input_ids {shape}: expected the same shape")
    if mask is not None and not mask.all():
        counts = shape[1] - mask[:, ::-1].argmax(axis=1)
        if not np.array_equal(mask, np.arange(shape[1]) < counts[:, None]):
            bias = _masking(mask[:, None, None, :], dtype)  # (B, 1, 1, S)
    if cache is not None:
        if bias is not None:
            raise ValueError("[decoder] attention_mask has padding on the left or in between: a cache has none")
        return _look_back(counts, shape, cache, dtype)
    if counts is None:
        return Sight(None, {"causal": True})
    lengths = {"lengths": counts}
    if bias is None:
        return Sight(counts, {"causal": True, "query_lengths": counts, **lengths}, lengths)
    return Sight(counts, {"causal": True, "bias": bias}, {"bias": bias, **lengths})


def _look_back(counts: Counts | None, shape: tuple[int, int], cache: KVCache, dtype: np.dtype[Any]) -> Sight:
    """Return what S new tokens see, of which ``counts`` are no padding, behind those in the cache."""
    B, S = shape
    if is_grad_enabled():
        raise RuntimeError("[decoder] a cache takes no gradients: call the model under drupe.no_grad()")
    if len(cache.lengths) != B:
        raise ValueError(f"[decoder] input_ids is {shape}, the cache is for {len(cache.lengths)} sequences")
    starts = cache.starts
    whole = counts is None and isinstance(starts, int)
    lengths = {} if whole else {"lengths": cache.lengths + (S if counts is None else counts)}
    mask: dict[str, Any]
    if isinstance(starts, int):
        queries = {} if counts is None else {"query_lengths": counts}
        mask = {"causal": True, **queries, **lengths}
    elif S == 1:
        mask = lengths
    else:
        ends = cache.lengths[:, None, None, None] + np.arange(S)[:, None]  # (B, 1, S, 1)
        mask = {"bias": _masking(np.arange(max(starts) + S) <= ends, dtype)}  # (B, 1, S, n)
    return Sight(counts, mask, lengths, cache, starts)


def _masking(seen: npt.NDArray[np.bool_], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return what is added to the logits: 0 where a key is seen, -infinity elsewhere."""
    return np.asarray(np.where(seen, np.float32(0), np.float32(-np.inf)), dtype)
