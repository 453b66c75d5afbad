"""Multi-head attention."""

from __future__ import annotations

from typing import Any

from drupe import ops
from drupe.nn.linear import Linear
from drupe.nn.module import Module
from drupe.ops.attention import Window


class MultiHeadAttention(Module):
    """Attention of several heads between four projections (:func:`drupe.ops.attention`).

    Args:
        features: D, of the queries and the result.
        heads: H; divides D.
        kv_heads: heads of the keys and values, a divisor of H; H by default (grouped-query attention).
        kv_features: of what the keys and values are made from; D by default.
        bias: whether the projections have one.
        causal: let position i see positions up to i only.
        window: how many positions back, and on, a position sees, or one number for both; all by default.

    Attributes:
        q_proj: Linear, D -> D.
        k_proj: Linear, kv_features -> D kv_heads / H.
        v_proj: Linear, kv_features -> D kv_heads / H.
        out_proj: Linear, D -> D.

    Reference:
        A. Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, section 3.2.2; J. Ainslie et al., "GQA",
        arXiv:2305.13245, section 2.2.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        kv_features: int | None = None,
        bias: bool = True,
        causal: bool = False,
        window: Window | None = None,
    ) -> None:
        kv_heads = heads if kv_heads is None else kv_heads
        kv_features = features if kv_features is None else kv_features
        if heads < 1 or features % heads:
            raise ValueError(f"[MultiHeadAttention] {heads} heads do not divide {features} features")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"[MultiHeadAttention] {kv_heads} key heads do not divide {heads} heads")
        self.heads, self.kv_heads, self.causal, self.window = heads, kv_heads, causal, window
        width = features // heads
        self.q_proj = Linear(features, features, bias)
        self.k_proj = Linear(kv_features, width * kv_heads, bias)
        self.v_proj = Linear(kv_features, width * kv_heads, bias)
        self.out_proj = Linear(features, features, bias)

    def forward(self, query: Any, key: Any = None, value: Any = None, *, bias: Any = None, lengths: Any = None) -> Any:
        """Return (B, Sq, D).

        Args:
            query: (B, Sq, D).
            key: (B, Sk, kv_features); ``query`` by default.
            value: the same; ``key`` by default.
            bias: broadcasts to (B, H, Sq, Sk), added to the logits.
            lengths: (B,), how many of each row's keys count.
        """
        key = query if key is None else key
        value = key if value is None else value
        (q,) = ops.split_heads(self.q_proj(query), self.heads)
        (k,) = ops.split_heads(self.k_proj(key), self.kv_heads)
        (v,) = ops.split_heads(self.v_proj(value), self.kv_heads)
        y = ops.attention(q, k, v, bias=bias, causal=self.causal, window=self.window, lengths=lengths)
        return self.out_proj(ops.merge_heads(y))

    def extra_repr(self) -> str:
        """Name the heads."""
        grouped = f", kv_heads={self.kv_heads}" if self.kv_heads != self.heads else ""
        return f"heads={self.heads}{grouped}{', causal' if self.causal else ''}"
