"""What attention needs around it: heads cut out of a projection, and a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import _C
from drupe.ops._call import A, Call
from drupe.tensor import Tensor


def split_heads(x: A, heads: int, parts: int = 1) -> tuple[A, ...]:
    """Views of a fused projection as :func:`drupe.ops.attention` takes them: the queries, the keys and the values, say.

    Args:
        x: (B, S, parts * heads * D), any dtype: the parts one after another, each with its heads one after another.
        heads: H, at least 1.
        parts: how many, at least 1.

    Returns:
        So many (B, H, S, D): views where the last dimension of ``x`` has stride 1, of a copy otherwise.

    Raises:
        ValueError: ``x`` has not 3 dimensions, or the last of them has no such parts.
    """
    call = Call("split_heads", x)
    (raw,) = call.raw
    if len(raw.shape) != 3 or heads < 1 or parts < 1 or raw.shape[2] % (parts * heads):
        raise ValueError(
            f"[split_heads] x is {raw.shape}: expected (B, S, width), with width a multiple of {parts} parts "
            f"of {heads} heads"
        )
    B, S, width = raw.shape
    D = width // (parts * heads)
    apart = _C.reshape(raw, (B, S, parts, heads, D)).permute((2, 0, 3, 1, 4))  # (parts, B, H, S, D)

    def backward(*dys: _C.Tensor | None) -> tuple[_C.Tensor]:
        given = [_C.zeros((B, heads, S, D), raw.dtype, raw.device) if dy is None else dy for dy in dys]
        merged = [_C.reshape(dy.permute((0, 2, 1, 3)), (B, S, heads * D)) for dy in given]
        return (merged[0] if parts == 1 else _C.concat(merged, 2),)

    return call.outputs(tuple([apart.select(0, i) for i in range(parts)]), backward)


def merge_heads(x: A) -> A:
    """The heads of each position side by side, as the projection behind attention takes them.

    Args:
        x: (B, H, S, D), any dtype.

    Returns:
        (B, S, H * D): a view of what :func:`drupe.ops.attention` gives; where the memory is laid out otherwise, a copy.

    Raises:
        ValueError: ``x`` has not 4 dimensions.
    """
    call = Call("merge_heads", x)
    (raw,) = call.raw
    if len(raw.shape) != 4:
        raise ValueError(f"[merge_heads] x is {raw.shape}: expected (B, H, S, D)")
    B, H, S, D = raw.shape

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.reshape(dy, (B, S, H, D)).permute((0, 2, 1, 3)),)

    return call.output(_C.reshape(raw.permute((0, 2, 1, 3)), (B, S, H * D)), backward)


def append_rows(cache: Tensor, rows: Tensor, starts: int | Sequence[int]) -> Tensor:
    """Write ``rows`` into ``cache`` in place, from a row of each batch on, and return the part of it that is in use.

    Args:
        cache: (B, H, capacity, D).
        rows: (B, H, S, D), of any strides; it is not recorded on the tape.
        starts: where row 0 goes: one number for the whole batch, or one for each of its B elements.

    Returns:
        (B, H, n, D), a view of the cache: up to the last row that was written, n = max(starts) + S.

    Raises:
        ValueError: shapes that do not fit, or rows outside the capacity.
    """
    each = [starts] if isinstance(starts, int) else list(starts)
    if not isinstance(starts, int) and rows.ndim > 0 and len(each) != rows.shape[0]:
        raise ValueError(f"[append_rows] {len(each)} starts for a batch of {rows.shape[0]}")
    view = _C.append_rows(cache.raw, rows.raw, each)
    cache.version += 1
    return Tensor(view)
