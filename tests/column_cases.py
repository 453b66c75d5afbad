"""Batches for models with three categorical columns and two of numbers."""

from __future__ import annotations

import numpy as np

from drupe import ops

# What is no batch: the changes, and the errors.
COLUMN_ERRORS = [
    ({"numeric": None}, ValueError, r"numeric is missing: expected \(20, 2\)"),
    ({"numeric": np.zeros((20, 3), np.float32)}, ValueError, r"numeric is \(20, 3\)"),
    ({"categorical": np.zeros((20, 2), np.int64)}, ValueError, r"categorical is int64 \(20, 2\)"),
    ({"categorical": np.zeros((20, 3))}, ValueError, "categorical is float64"),
    ({"categorical": np.full((20, 3), 4)}, IndexError, r"column 0 holds 4: expected \[0, 3\)"),
    ({"categorical": np.full((20, 3), -1)}, IndexError, "column 0 holds -1"),
]


def check_hashing(rng, make, batch):
    """Categories of any value are looked up by their hashes: ``make(**changes)`` gives the same model each time."""
    raw = rng.integers(-(2**62), 2**62, (20, 3))
    rows = ops.hash_ids(raw, make().config.cardinalities, seed=7)
    expected = make().predict({**batch, "categorical": rows})
    np.testing.assert_array_equal(make(hash_seed=7).predict({**batch, "categorical": raw}), expected)
    assert not np.array_equal(make(hash_seed=8).predict({**batch, "categorical": raw}), expected)
