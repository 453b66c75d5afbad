"""A graph of users and items as large and as uneven as Gowalla's, from a seeded generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def gowalla(rng: np.random.Generator, scale: int = 1) -> tuple[int, int, Integers, Integers]:
    """Return the numbers of users and of items, and the training interactions: (N,) users and (N,) items, each once.

    Users and items are drawn by a power of their rank, which is shuffled.

    Args:
        rng: draws it.
        scale: by how much to divide the sizes of the original: 29858, 40981 and 810128.

    Reference:
        X. He et al., "LightGCN", arXiv:2002.02126, table 2.
    """
    num_users, num_items, N = 29858 // scale, 40981 // scale, 810128 // scale
    draws = [_powers(rng, count, exponent) for count, exponent in ((num_users, 0.6), (num_items, 0.7))]
    keys = np.zeros(0, np.int64)
    while keys.size < N:
        users, items = (draw(N - keys.size + N // 8) for draw in draws)
        keys = np.unique(np.concatenate([keys, users * num_items + items]))
    keys = rng.permutation(keys)[:N]
    return num_users, num_items, keys // num_items, keys % num_items


def _powers(rng: np.random.Generator, count: int, exponent: float) -> Any:
    weights = (np.arange(count) + 20.0) ** -exponent
    below, names = np.cumsum(weights) / weights.sum(), rng.permutation(count)
    return lambda size: names[np.minimum(np.searchsorted(below, rng.random(size)), count - 1)]
