"""Attention over a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import _C
from drupe.ops._call import A, Array, Call
from drupe.tensor import Tensor


def cached_attention(
    x: A,
    keys: Tensor,
    values: Tensor,
    starts: int | Sequence[int],
    *,
    bias: Array | None = None,
    causal: bool = False,
    lengths: Array | None = None,
    query_lengths: Array | None = None,
    scale: float | None = None,
) -> A:
    """:func:`attention` of new tokens over a cache that they join: what a decoder does between its two projections.

    ``split_heads``, ``append_rows`` of the keys and the values, ``attention`` over all that the cache then holds, and
    ``merge_heads``, in one call. It is not recorded for gradients.

    Args:
        x: (B, S, (Hq + 2 H) * D), float: the queries, the keys and the values of S tokens one after another, each with
            its heads one after another.
        keys: (B, H, capacity, D), of the dtype of ``x``; written in place. H divides Hq.
        values: the same.
        starts: where row 0 of the new keys goes: one number for the whole batch, or one for each of its B elements.
        bias: as of :func:`attention`, as are the following; there are max(starts) + S keys.
        causal: hide later tokens; with several of them, all starts must be one: else pass a bias.
        lengths: (B,), how many keys count.
        query_lengths: (B,), how many queries count.
        scale: of the logits; 1 / sqrt(D) by default.

    Returns:
        (B, S, Hq * D), C-contiguous.

    Raises:
        ValueError: shapes that do not fit, or rows outside the capacity; others as of :func:`attention`.
        TypeError: a dtype that is not float, or operands of different dtypes.
        RuntimeError: gradients are enabled and an input requires one.
    """
    call = Call("cached_attention", x, keys, values, bias, lengths, query_lengths)
    if call.recorded:
        raise RuntimeError("[cached_attention] an input requires a gradient: call it in drupe.no_grad()")
    rx, rkeys, rvalues, rbias, rlengths, rquery_lengths = call.raw
    each = [starts] if isinstance(starts, int) else list(starts)
    if causal and len(set(each)) > 1 and len(rx.shape) == 3 and rx.shape[1] > 1:
        raise ValueError(f"[cached_attention] causal, {rx.shape[1]} tokens, and starts are {each}: pass a bias instead")
    right = 0 if causal else None
    try:
        y = _C.cached_attention(rx, rkeys, rvalues, each, rbias, rlengths, rquery_lengths, right, scale)
    finally:  # an error in what attention takes comes after the cache was written
        keys.version += 1
        values.version += 1
    return call.output(y)
