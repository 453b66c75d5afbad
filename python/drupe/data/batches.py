"""Batches: rows of arrays, a few at a time, in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe.tensor import Tensor, as_tensor

# An array, or a tuple, list or dict of arrays that share their first dimension.
Arrays = Any


def arrays_of(x: Arrays) -> list[npt.NDArray[Any]]:
    """Return the arrays in ``x``, in order."""
    if isinstance(x, Mapping):
        return [_as_numpy(value) for value in x.values()]
    if isinstance(x, tuple | list) and any(hasattr(value, "shape") for value in x):
        return [_as_numpy(value) for value in x]
    return [_as_numpy(x)]


def take(x: Arrays, rows: npt.NDArray[np.int64] | slice) -> Arrays:
    """Return the same structure with these rows of each array, as tensors."""
    if isinstance(x, Mapping):
        return {name: as_tensor(_as_numpy(value)[rows]) for name, value in x.items()}
    if isinstance(x, tuple | list) and any(hasattr(value, "shape") for value in x):
        return tuple(as_tensor(_as_numpy(value)[rows]) for value in x)
    return as_tensor(_as_numpy(x)[rows])


def count_rows(x: Arrays, y: Arrays = None, *, op: str = "batches") -> int:
    """Return how many rows the arrays in ``x`` and ``y`` have.

    Raises:
        ValueError: there are none, one array has no first dimension, or they differ.
    """
    named = [("x", a) for a in arrays_of(x)] + ([] if y is None else [("y", a) for a in arrays_of(y)])
    if not named:
        raise ValueError(f"[{op}] x holds no arrays")
    for name, array in named:
        if array.ndim == 0:
            raise ValueError(f"[{op}] {name} is a scalar: expected an array whose first dimension counts the rows")
    rows = len(named[0][1])
    if any(len(array) != rows for _, array in named):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in named)
        raise ValueError(f"[{op}] lengths differ: {shapes}")
    if rows == 0:
        raise ValueError(f"[{op}] the data is empty: x has shape {named[0][1].shape}")
    return rows


def _as_numpy(x: Any) -> npt.NDArray[Any]:
    array = x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype == object or array.dtype.kind in "USmM":
        raise TypeError(f"[batches] expected numbers, got an array of {array.dtype}")
    return array


class Batches:
    """Batches of ``x``, or of (x, y), as tensors; see :func:`batches`."""

    def __init__(self, x: Arrays, y: Arrays, *, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise ValueError(f"[batches] batch_size is {batch_size}: expected 1 or more")
        self.rows = count_rows(x, y)
        self.x, self.y = x, y
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.epoch = 0  # that the next iteration is; it chooses the order

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows) if self.shuffle else None
        self.epoch += 1
        for i in range(len(self)):
            span = slice(i * self.batch_size, min((i + 1) * self.batch_size, self.rows))
            rows = span if order is None else order[span]
            x = take(self.x, rows)
            yield x if self.y is None else (x, take(self.y, rows))


def batches(
    x: Arrays,
    y: Arrays = None,
    *,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> Batches:
    """Split arrays into batches of tensors, to iterate over once per epoch.

    The order of an epoch depends on ``seed`` and on how many epochs came before, on nothing else.

    Args:
        x: an array (N, …), or a tuple or dict of such arrays.
        y: the same, for the targets; batches are (x, y) with it and x without.
        batch_size: rows per batch; the last one may be smaller.
        shuffle: draw another order for every epoch. Without it batches share the arrays' memory.
        seed: of the order.
        drop_last: leave out a last batch that is smaller.

    Returns:
        An iterable with a length.

    Raises:
        ValueError: lengths that differ, no rows, a ``batch_size`` below 1.
        TypeError: arrays that hold no numbers.
    """
    return Batches(x, y, batch_size=batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
