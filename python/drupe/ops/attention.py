"""Scaled dot-product attention."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call

Window = int | tuple[int | None, int | None]


def _bounds(window: Window | None, causal: bool) -> tuple[int | None, int | None]:
    """Return how many keys before and after its own position a query sees; None is all of them."""
    left, right = (window, window) if isinstance(window, int) else window or (None, None)
    if causal and (right is None or right > 0):
        right = 0
    return left, right


def attention(
    q: A,
    k: Array,
    v: Array,
    *,
    bias: Array | None = None,
    causal: bool = False,
    window: Window | None = None,
    lengths: Array | None = None,
    query_lengths: Array | None = None,
    scale: float | None = None,
) -> A:
    """Scaled dot-product attention: ``softmax(scale * q @ k^T + bias) @ v``, without an Sq x Skv matrix in memory.

    Query ``i`` stands at position ``p = i + Skv - Sq`` among the keys: the last query meets the last key. A query
    that sees no key gives zeros, and zero gradients.

    Args:
        q: (B, Hq, Sq, D), a float dtype. Any strides over B, H and S are read in place, so that slices of a fused
            projection need no copy; a last dimension of another stride than 1 is copied.
        k: (B, Hkv, Skv, D), Hq a multiple of Hkv: neighbouring Hq / Hkv query heads share a key/value head.
        v: (B, Hkv, Skv, Dv).
        bias: added to the scaled logits; anything that broadcasts to (B, Hq, Sq, Skv), read in place. -infinity masks.
        causal: hide the keys after a query's own position, ``j > p``.
        window: ``(left, right)`` hides the keys ``j < p - left`` and ``j > p + right``, None leaves a side open; an
            int w is ``(w, w)``. With ``causal`` the right bound is 0: ``window=w - 1, causal=True`` is the sliding
            window over the w last keys.
        lengths: (B,), int32 or int64: batch b has only its first ``lengths[b]`` keys. The others are not read, and
            cost nothing. Positions stay as they are.
        query_lengths: (B,), the same for the queries: later rows give zeros, and cost nothing.
        scale: of the logits; 1 / sqrt(D) by default.

    Returns:
        (B, Hq, Sq, Dv), a view of (B, Sq, Hq, Dv) memory: permuting back and reshaping to (B, Sq, Hq * Dv) is free.
        Arithmetic is float32 for float16 and bfloat16. A processor with AVX512-BF16 multiplies bfloat16 by its dot
        instruction, in the forward pass of more than 8 rows (Sq Hq / Hkv) per key/value head: it takes numbers below
        1.2e-38 as zeros, and the weights of v are rounded to bfloat16, which adds at most 2^-8 times the weighted mean
        of v's distances from y (for normally distributed q, k, v less than rounding y does: 0.7 to 0.9 of it). In the
        backward pass so are the weights, and the gradients of the logits: for such operands the gradients' errors
        are 1.4 to 1.6 times those of rounding them.

    Raises:
        ValueError: shapes or head counts that do not fit, lengths outside [0, S], a negative window, a scale that is
            not finite.
        TypeError: not a float dtype, operands of different dtypes, lengths that are not int32 or int64.

    Reference:
        A. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1; T. Dao et al., "FlashAttention:
        Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022, section 3 and appendix B.
    """
    call = Call("attention", q, k, v, bias, lengths, query_lengths)
    left, right = _bounds(window, causal)
    rq, rk, rv, rbias, key_counts, query_counts = call.raw
    y, lse = _C.attention(rq, rk, rv, rbias, key_counts, query_counts, left, right, scale)
    wanted = [call.needs_grad(i) for i in range(4)]

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        grads = _C.attention_backward(
            dy, y, lse, rq, rk, rv, rbias, key_counts, query_counts, left, right, scale, wanted
        )
        return (*grads, None, None)

    return call.output(y, backward)
