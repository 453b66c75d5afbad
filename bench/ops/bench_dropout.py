"""Dropout of BERT's hidden states, a tenth of them; forward and backward.

Drupe is held against its documented stream, drawn in NumPy. A peer draws from another one: its mask is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup, as_arrays

_P, _SEED = 0.1, 1


def cases(quick: bool) -> Iterator[Case]:
    """Rows by features."""
    rows, features = (64, 96) if quick else (4096, 768)
    size = rows * features
    for name, setup in (("forward", forward), ("backward", backward)):
        yield Case(
            op="dropout",
            name=name,
            shapes=f"{rows}x{features}",
            dtype="float32",
            flops=size,
            bytes_read=4 * size,
            bytes_written=4 * size,
            setup=partial(setup, (rows, features)),
        )


def uniforms(size: int, seed: int) -> Any:
    """Return the numbers in [0, 1) that ``ops.dropout`` documents: Philox4x32-10, the seed below 2^32, stream 0."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    a = np.arange((size + 3) // 4, dtype=np.uint64)  # below 2^32
    b = c = d = np.zeros_like(a)
    for i in range(10):
        keys = np.array([seed + i * 0x9E3779B9, i * 0xBB67AE85], np.uint64) & low
        p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = (q >> high) ^ b ^ keys[0], q & low, (p >> high) ^ d ^ keys[1], p & low
    return (np.stack([a, b, c, d], -1).reshape(-1)[:size] >> np.uint64(8)) * 2.0**-24


def _dropped(x: Any) -> Any:
    return np.where(uniforms(x.size, _SEED).reshape(x.shape) >= _P, x.astype(float) / (1 - _P), 0)


def _of_another_stream(x: Any) -> Callable[[Any], Any]:
    """Return a view that carries over to drupe's mask what is a dropout of ``x`` by another one."""

    def view(output: Any) -> Any:
        (y,) = as_arrays(output)
        kept = y != 0
        deviation = abs(kept.mean() - (1 - _P)) / np.sqrt(_P * (1 - _P) / y.size)
        if deviation > 5:
            raise ValueError(f"{kept.mean():.2%} are kept, which is {deviation:.0f} standard deviations off")
        return y - np.where(kept, x.astype(float) / (1 - _P), 0) + _dropped(x)

    return view


def _torch(torch: Any, x: Any) -> Any:
    return torch.nn.functional.dropout(x, _P)


def _jax(jax: Any, x: Any, seed: Any) -> Any:
    kept = jax.random.bernoulli(jax.random.key(seed), 1 - _P, x.shape)
    return jax.numpy.where(kept, x / (1 - _P), 0)


def forward(shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """``x / (1 - p)`` where a uniform number is not below p, else 0."""
    x = rng.standard_normal(shape, dtype=np.float32)
    rivals = {
        "numpy": lambda: Prepared(lambda: np.where(rng.random(shape, np.float32) >= _P, x / (1 - _P), 0)),
        "torch": lambda: peers.torch_call(_torch, x),
        "jax": lambda: peers.jax_call(_jax, x, np.array(_SEED)),
    }
    return Setup(
        drupe=peers.drupe_call(lambda x: ops.dropout(x, _P, seed=_SEED), x),
        reference=lambda: _dropped(x),
        tolerance=1e-6,
        peers=peers.with_view(rivals, _of_another_stream(x)),
    )


def backward(shape: tuple[int, int], rng: np.random.Generator) -> Setup:
    """The same of dy, by the mask that was stored on the way there."""
    x, dy = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    leaf = drupe.tensor(x, requires_grad=True)
    y = ops.dropout(leaf, _P, seed=_SEED)
    rivals = {
        "torch": lambda: peers.torch_backward(_torch, dy, x),
        "jax": lambda: peers.jax_backward(_jax, dy, x, np.array(_SEED)),
    }
    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, leaf),
        reference=lambda: _dropped(dy),
        tolerance=1e-6,
        peers=peers.with_view(rivals, _of_another_stream(dy)),
    )
