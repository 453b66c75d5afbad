"""What the models of tables expect: columns of category numbers, and columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt


def check_columns(
    model: str, codes: npt.NDArray[Any], numbers: Any, cardinalities: Sequence[int], numeric: int
) -> None:
    """Check a batch.

    Args:
        model: its name, for errors.
        codes: (B, C), integers; column i in [0, cardinalities[i]).
        numbers: (B, numeric), or None where there are none.
        cardinalities: how many values each categorical column takes.
        numeric: how many numeric columns there are.

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
    low, high = codes.min(axis=0, initial=0), codes.max(axis=0, initial=0)
    for i, size in enumerate(cardinalities):
        if low[i] < 0 or high[i] >= size:
            value = int(low[i]) if low[i] < 0 else int(high[i])
            raise IndexError(f"[{model}] categorical column {i} holds {value}: expected [0, {size})")
