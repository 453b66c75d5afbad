"""Random numbers: one global seed, from which :func:`drupe.ops.dropout` and the helpers here draw streams.

Every draw takes the next stream (seed, offset), so that a program that seeds once and draws in the same order gets the
same numbers, whatever the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from drupe.tensor import DtypeLike, Tensor, dtype_name, tensor

_lock = threading.Lock()
_seed = 0
_offset = 0


def manual_seed(seed: int) -> None:
    """Start over: the same seed gives the same numbers from here on. The seed is 0 before the first call.

    Raises:
        ValueError: ``seed`` is not in [0, 2^64).
    """
    global _seed, _offset
    if not 0 <= seed < 2**64:
        raise ValueError(f"[manual_seed] seed is {seed}: expected 0 to 2^64 - 1")
    with _lock:
        _seed, _offset = seed, 0


def next_stream() -> tuple[int, int]:
    """Return the (seed, offset) of a stream that nobody else draws from."""
    global _offset
    with _lock:
        stream = _seed, _offset
        _offset += 1
    return stream


@contextmanager
def preserved() -> Iterator[None]:
    """Put the seed, and how far the draws have come, back afterwards: what is seeded and drawn within leaves no trace.

    The state is that of the process: draws of other threads in the meantime repeat afterwards.
    """
    global _seed, _offset
    with _lock:
        before = _seed, _offset
    try:
        yield
    finally:
        with _lock:
            _seed, _offset = before


def generator() -> np.random.Generator:
    """Return a NumPy generator on the next stream: for shuffling, splitting and whatever else NumPy draws."""
    return np.random.Generator(np.random.Philox(key=np.array(next_stream(), dtype=np.uint64)))


def normal(shape: Sequence[int], *, mean: float = 0.0, std: float = 1.0, dtype: DtypeLike = "float32") -> Tensor:
    """Return normal numbers of a mean and a standard deviation.

    Raises:
        ValueError: a negative extent or ``std``.
        TypeError: not a float dtype.
    """
    if not std >= 0:
        raise ValueError(f"[normal] std is {std}: expected a number that is not negative")
    name = _float_name(dtype, "normal")
    drawn = generator().standard_normal(tuple(shape), np.float64 if name == "float64" else np.float32)
    drawn *= std
    drawn += mean
    return tensor(drawn, name)


def uniform(shape: Sequence[int], *, low: float = 0.0, high: float = 1.0, dtype: DtypeLike = "float32") -> Tensor:
    """Return numbers spread evenly over [low, high); rounding to a 16-bit dtype may give ``high`` itself.

    Raises:
        ValueError: a negative extent, or ``low`` above ``high``.
        TypeError: not a float dtype.
    """
    if not low <= high:
        raise ValueError(f"[uniform] low is {low}, high is {high}: expected low <= high")
    name = _float_name(dtype, "uniform")
    drawn = generator().random(tuple(shape), np.float64 if name == "float64" else np.float32)
    drawn *= high - low
    drawn += low
    return tensor(drawn, name)


def _float_name(dtype: DtypeLike, op: str) -> str:
    name = dtype_name(dtype)
    if "float" not in name:
        raise TypeError(f"[{op}] dtype is {name}: expected a float dtype")
    return name
