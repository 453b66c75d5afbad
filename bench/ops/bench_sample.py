"""The next token of each row of a language model's logits.

What is drawn differs from peer to peer, so what is compared is that it may be drawn at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup, as_arrays

_K, _P = 50, 0.9


def cases(quick: bool) -> Iterator[Case]:
    """Rows by tokens: of the whole distribution, of the 50 likeliest tokens, of a nucleus, and of both."""
    for rows, tokens in [(4, 1000)] if quick else [(1, 50257), (64, 50257)]:
        for name, k, p in (("plain", None, None), ("top_k", _K, None), ("top_p", None, _P), ("both", _K, _P)):
            yield Case(
                op="sample",
                name=name,
                shapes=f"{rows}x{tokens}",
                dtype="float32",
                flops=rows * tokens,
                bytes_read=4 * rows * tokens,
                bytes_written=8 * rows,
                setup=partial(forward, (rows, tokens), k, p),
            )


def _allowed(x: Any, k: int | None, p: float | None) -> Any:
    """Return which tokens may be drawn; those at the very edge of the nucleus, too."""
    order = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    weights = np.exp(np.take_along_axis(x, order, -1) - x.max(-1, keepdims=True))
    mass = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, order, mass - weights / weights.sum(-1, keepdims=True) <= (p or 1) + 1e-6, -1)
    return mask


def _torch(torch: Any, k: int | None, p: float | None, x: Any) -> Any:
    places = None
    if k is not None:
        x, places = torch.topk(x, k)
    elif p is not None:
        x, places = torch.sort(x, descending=True)
    share = torch.softmax(x, -1)
    if p is not None:
        share = torch.where(torch.cumsum(share, -1) - share < p, share, 0)
    drawn = torch.multinomial(share, 1)
    return (drawn if places is None else torch.gather(places, -1, drawn))[:, 0]


def _numpy(x: Any, rng: np.random.Generator) -> Any:
    weights = np.exp(x - x.max(-1, keepdims=True))
    mass = np.cumsum(weights, -1)
    target = rng.random((len(x), 1), np.float32) * mass[:, -1:]
    return (mass <= target).sum(-1).clip(max=x.shape[1] - 1)


def forward(shape: tuple[int, int], k: int | None, p: float | None, rng: np.random.Generator) -> Setup:
    """One token for each row."""
    x = 3 * rng.standard_normal(shape, dtype=np.float32)
    rivals = {"torch": lambda: peers.torch_call(lambda torch, x: _torch(torch, k, p, x), x)}
    if k is None and p is None:
        rivals["numpy"] = lambda: Prepared(lambda: _numpy(x, rng))

    def view(output: Any) -> Any:
        (indices,) = as_arrays(output)
        return np.take_along_axis(_allowed(x.astype(float), k, p), indices.astype(np.int64)[:, None], -1) * 1.0

    return Setup(
        drupe=peers.drupe_call(lambda x: ops.sample(x, top_k=k, top_p=p, seed=1), x),
        reference=lambda: np.ones((shape[0], 1)),
        tolerance=1e-6,
        peers=peers.with_view(rivals, view),
        view=view,
    )
