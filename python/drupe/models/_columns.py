"""What the models of tables expect: columns of category numbers, and columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import ops


def check_seed(config: str, hash_seed: int | None) -> None:
    """Check how a configuration hashes categories.

    Raises:
        ValueError: a seed outside [0, 2^64).
    """
    if hash_seed is not None and not 0 <= hash_seed < 2**64:
        raise ValueError(f"[{config}] hash_seed is {hash_seed}: expected 0 to 2^64 - 1")


def take_columns(
    model: str,
    codes: npt.NDArray[Any],
    numbers: Any,
    cardinalities: Sequence[int],
    numeric: int,
    hash_seed: int | None,
) -> npt.NDArray[np.int64]:
    """Check a batch, and return its categories, (B, C): column i in [0, cardinalities[i]).

    Args:
        model: its name, for errors.
        codes: (B, C), integers; column i in [0, cardinalities[i]), or of any value where they are hashed.
        numbers: (B, numeric), or None where there are none.
        cardinalities: how many values each categorical column takes.
        numeric: how many numeric columns there are.
        hash_seed: of :func:`drupe.ops.hash_ids`, if categories are hashed.

    Raises:
        ValueError: another number of columns, or codes that are not integers.
        IndexError: a category outside its column's range.
    """
    C = len(cardinalities)
    if codes.ndim != 2 or codes.shape[1] != C or codes.dtype.kind not in "iu":
        raise ValueError(f"[{model}] categorical is {codes.dtype} {codes.shape}: expected integers (batch, {C})")
    expected = (codes.shape[0], numeric)
    if (numbers is not None or numeric) and (numbers is None or tuple(numbers.shape) != expected):
        got = "missing" if numbers is None else tuple(numbers.shape)
        raise ValueError(f"[{model}] numeric is {got}: expected {expected}")
    if hash_seed is not None:
        return np.asarray(ops.hash_ids(codes.astype(np.int64, copy=False), cardinalities, seed=hash_seed))
    low, high = codes.min(axis=0, initial=0), codes.max(axis=0, initial=0)
    for i, size in enumerate(cardinalities):
        if low[i] < 0 or high[i] >= size:
            value = int(low[i]) if low[i] < 0 else int(high[i])
            raise IndexError(f"[{model}] categorical column {i} holds {value}: expected [0, {size})")
    return codes.astype(np.int64, copy=False)
