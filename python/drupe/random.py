"""Random numbers: one global seed, from which :func:`drupe.ops.dropout` and the helpers here draw streams.

Every draw takes the next stream (seed, offset), so that a program that seeds once and draws in the same order gets the
same numbers, whatever the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from drupe import _C
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
    return next_streams(1)


def next_streams(count: int) -> tuple[int, int]:
    """Return the (seed, offset) of the first of so many streams, one offset each, that nobody else draws from."""
    global _offset
    with _lock:
        stream = _seed, _offset
        _offset += count
    return stream


class _Captured(threading.local):
    """What this thread's kernels draw from while a graph is captured."""

    device = ""
    state: _C.Tensor | None = None
    draws = 0


_captured = _Captured()


@contextmanager
def captured(device: str, state: _C.Tensor) -> Iterator[Callable[[], int]]:
    """Let kernels on a device draw from the streams that each replay of a graph is given, instead of fixed ones.

    Args:
        device: that of the graph.
        state: (2,) int64 there, the seed and the offset of a replay's first stream.

    Yields:
        a function that gives the number of streams drawn from so far.
    """
    _captured.device, _captured.state, _captured.draws = device, state, 0
    try:
        yield lambda: _captured.draws
    finally:
        _captured.device, _captured.state = "", None


def next_kernel_stream(device: str) -> tuple[int, int, _C.Tensor | None]:
    """Return the next stream for a kernel on a device: seed, offset, and what on the device these are relative to."""
    if _captured.state is None or device != _captured.device:
        return *next_stream(), None
    _captured.draws += 1
    return 0, _captured.draws - 1, _captured.state


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
