"""Ids of many tables that lie one after another."""

from __future__ import annotations

import numpy as np


def starts_of(tables):
    return np.cumsum((0, *tables[:-1]))


def draw_lists(rng, tables, bags):
    """Ids of all bags of each table, one table after another, where the bags begin (T, B), and the table of each id."""
    lengths = rng.integers(0, 4, (len(tables), bags))
    lengths[rng.integers(0, len(tables))] = 0
    counts = lengths.sum(1)
    ids = np.concatenate([rng.integers(0, rows, n) for rows, n in zip(tables, counts, strict=True)])
    begins = np.concatenate([[0], np.cumsum(lengths)])[:-1].reshape(lengths.shape)
    return ids.astype(np.int64), begins, np.repeat(np.arange(len(tables)), counts)
