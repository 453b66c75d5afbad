"""Attention at BERT's shape: full, causal, and with padding; forward, and forward with backward.

Then a step of decoding: one query for each head, four of which share the keys and values of a long cache; also with
what stands around it, from a fused projection to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import exact, normal
from drupe.bench.harness import Case, Setup

_TARGETS = {"full": 0.75, "causal": 0.6, "padding": 0.75}
_TRAINING_TARGETS = {"full": 0.4, "causal": 0.3}


def cases(quick: bool) -> Iterator[Case]:
    """(B, H, S, D). Work that a mask removes is not counted."""
    B, H, S, D = (2, 2, 64, 32) if quick else (8, 12, 128, 64)
    size = B * H * S * D
    for kind, target in _TARGETS.items():
        share = {"full": 1.0, "causal": (S + 1) / (2 * S), "padding": float(_lengths(B, S).mean()) / S}[kind]
        described: dict[str, Any] = {"op": "attention", "shapes": f"B{B} H{H} S{S} D{D}", "dtype": "float32"}
        yield Case(
            name=kind,
            flops=4 * B * H * S * S * D * share,
            bytes_read=12 * size,
            bytes_written=4 * size,
            setup=partial(forward, kind, B, H, S, D),
            target=target,
            **described,
        )
        if kind in _TRAINING_TARGETS:
            yield Case(
                name=f"{kind} forward+backward",
                flops=14 * B * H * S * S * D * share,
                bytes_read=24 * size,
                bytes_written=16 * size,
                setup=partial(training, kind, B, H, S, D),
                target=_TRAINING_TARGETS[kind],
                **described,
            )
    yield from _decode_cases(quick)


def _decode_cases(quick: bool) -> Iterator[Case]:
    """(B, Hq, Hkv, S, D)."""
    for B, Hq, Hkv, S, D in [(1, 4, 1, 600, 32)] if quick else [(1, 32, 8, 8192, 128), (32, 32, 8, 2048, 128)]:
        for dtype in ("float32", "bfloat16"):
            item = 4 if dtype == "float32" else 2
            for op, setup, appended in (("attention", decode, 0), ("cached_attention", cached_decode, 2 * B * Hkv * D)):
                yield Case(
                    op=op,
                    name="decode",
                    shapes=f"B{B} H{Hq}/{Hkv} S{S} D{D}",
                    dtype=dtype,
                    flops=4 * B * Hq * S * D,
                    bytes_read=item * (2 * B * Hkv * S * D + B * Hq * D),
                    bytes_written=item * (B * Hq * D + appended),
                    setup=partial(setup, (B, Hq, Hkv, S, D), dtype),
                )


def _lengths(B: int, S: int) -> Any:
    return np.maximum(1, S - np.arange(B) * S // (2 * B)).astype(np.int64)


def _mask(kind: str, B: int, S: int) -> Any:
    """Which keys each query sees: broadcastable to (B, H, S, S)."""
    if kind == "causal":
        return np.tril(np.ones((1, 1, S, S), bool))
    if kind == "padding":
        return (np.arange(S) < _lengths(B, S)[:, None])[:, None, None, :]
    return np.ones((1, 1, 1, 1), bool)


def _probabilities(q: Any, k: Any, mask: Any) -> Any:
    s = np.where(mask, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _torch(kind: str, mask: Any) -> Any:
    def attend(torch: Any, q: Any, k: Any, v: Any) -> Any:
        bias = peers.torch_tensor(mask) if kind == "padding" else None
        function = torch.nn.functional.scaled_dot_product_attention
        return function(q, k, v, attn_mask=bias, is_causal=kind == "causal")

    return attend


def _jax(kind: str, mask: Any) -> Any:
    def attend(jax: Any, q: Any, k: Any, v: Any) -> Any:
        s = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
        if kind != "full":
            s = jax.numpy.where(mask, s, -1e30)
        return jax.nn.softmax(s) @ v

    return attend


def _nodes(kind: str) -> list[dict[str, Any]]:
    masked = kind != "full"
    return [
        {"op": "MatMul", "inputs": ["q", "kt"], "outputs": ["s"]},
        {"op": "Mul", "inputs": ["s", "scale"], "outputs": ["t" if masked else "u"]},
        *([{"op": "Add", "inputs": ["t", "mask"], "outputs": ["u"]}] if masked else []),
        {"op": "Softmax", "inputs": ["u"], "outputs": ["p"], "axis": -1},
        {"op": "MatMul", "inputs": ["p", "v"], "outputs": ["y"]},
    ]


def _options(kind: str, B: int, S: int) -> dict[str, Any]:
    return {"causal": {"causal": True}, "padding": {"lengths": _lengths(B, S)}}.get(kind, {})


def forward(kind: str, B: int, H: int, S: int, D: int, rng: np.random.Generator) -> Setup:
    """``softmax(q k^T / sqrt D) v``."""
    q, k, v = (rng.standard_normal((B, H, S, D), dtype=np.float32) for _ in range(3))
    mask = _mask(kind, B, S)
    options = _options(kind, B, S)
    inputs = {"q": q, "kt": np.ascontiguousarray(k.swapaxes(-1, -2)), "v": v}
    constants = {"scale": np.array(D**-0.5, np.float32), "mask": np.where(mask, 0, -1e30).astype(np.float32)}
    if kind == "full":
        del constants["mask"]
    return Setup(
        drupe=peers.drupe_call(partial(ops.attention, **options), q, k, v),
        reference=lambda: _probabilities(q.astype(float), k.astype(float), mask) @ v,
        tolerance=1e-4,
        peers={
            "numpy": lambda: lambda: _probabilities(q, k, mask) @ v,
            "torch": lambda: peers.torch_call(_torch(kind, mask), q, k, v),
            "jax": lambda: peers.jax_call(_jax(kind, mask), q, k, v),
            **peers.onnx_peers(_nodes(kind), inputs, constants),
        },
    )


def training(kind: str, B: int, H: int, S: int, D: int, rng: np.random.Generator) -> Setup:
    """The forward pass and the gradients of q, k and v."""
    arrays = [rng.standard_normal((B, H, S, D), dtype=np.float32) for _ in range(3)]
    dy = rng.standard_normal((B, H, S, D), dtype=np.float32)
    mask = _mask(kind, B, S)
    options = _options(kind, B, S)
    leaves = [drupe.tensor(a, requires_grad=True) for a in arrays]

    def reference() -> Any:
        q, k, v = (a.astype(float) for a in arrays)
        p = _probabilities(q, k, mask)
        dp = dy @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(D)
        return [ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dy]

    return Setup(
        drupe=peers.drupe_backward(lambda: ops.attention(*leaves, **options), dy, *leaves),
        reference=reference,
        tolerance=1e-4,
        peers={
            "torch": lambda: peers.torch_training(_torch(kind, mask), dy, *arrays),
            "jax": lambda: peers.jax_training(_jax(kind, mask), dy, *arrays),
        },
    )


_DECODE_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def _decoded(q: Any, k: Any, v: Any) -> Any:
    """Return what (B, Hq, 1, D) queries see."""
    rows = exact(q).reshape(*k.shape[:2], -1, k.shape[-1])
    return (_probabilities(rows, exact(k), True) @ exact(v)).reshape(q.shape)


def _torch_decode(torch: Any, q: Any, k: Any, v: Any) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def decode(sizes: tuple[int, int, int, int, int], dtype: str, rng: np.random.Generator) -> Setup:
    """One query that sees all keys."""
    B, Hq, Hkv, S, D = sizes
    q = normal(rng, (B, Hq, 1, D), dtype)
    k, v = (normal(rng, (B, Hkv, S, D), dtype) for _ in range(2))
    return Setup(
        drupe=peers.drupe_call(partial(ops.attention, causal=True), q, k, v),
        reference=lambda: _decoded(q, k, v),
        tolerance=_DECODE_TOLERANCE[dtype],
        peers={"torch": lambda: peers.torch_call(_torch_decode, q, k, v)},
    )


def cached_decode(sizes: tuple[int, int, int, int, int], dtype: str, rng: np.random.Generator) -> Setup:
    """The last token of a cache, its query, key and value side by side; the heads of the result, too."""
    B, Hq, Hkv, S, D = sizes
    x = normal(rng, (B, 1, (Hq + 2 * Hkv) * D), dtype)
    caches = [normal(rng, (B, Hkv, S, D), dtype) for _ in range(2)]
    own, keys, values = (drupe.tensor(a) for a in (x, *caches))

    def reference() -> Any:
        q, *last = np.split(x.reshape(B, -1, 1, D), [Hq, Hq + Hkv], axis=1)
        k, v = (np.concatenate([cache[:, :, :-1], row], 2) for cache, row in zip(caches, last, strict=True))
        return _decoded(q, k, v).reshape(B, 1, Hq * D)

    def torch(torch: Any, x: Any, k: Any, v: Any) -> Any:
        q, k[:, :, -1:], v[:, :, -1:] = x.view(B, -1, 1, D).split([Hq, Hkv, Hkv], 1)
        return _torch_decode(torch, q, k, v).transpose(1, 2).reshape(B, 1, Hq * D)

    return Setup(
        drupe=lambda: ops.cached_attention(own, keys, values, S - 1, causal=True),
        reference=reference,
        tolerance=_DECODE_TOLERANCE[dtype],
        peers={"torch": lambda: peers.torch_call(torch, x, *caches)},
    )
