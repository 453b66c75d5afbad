"""Threads, memory and instruction sets."""

from __future__ import annotations

from drupe import _C


def num_threads() -> int:
    """Return how many threads the CPU kernels use: the available CPUs, or ``DRUPE_NUM_THREADS``."""
    return _C.num_threads()


def set_num_threads(count: int) -> None:
    """Set how many threads the CPU kernels use (1 to 1024). Results do not depend on it, to the bit.

    Raises:
        ValueError: ``count`` is out of range.
    """
    _C.set_num_threads(count)


def cpu_isa() -> str:
    """Return the instruction set in use: ``"scalar"``, ``"avx2"`` or ``"avx512"``."""
    return _C.isa()


def cpu_isas() -> list[str]:
    """Return the instruction sets that this build has and this processor can run, weakest first."""
    return _C.isas()


def set_cpu_isa(name: str) -> None:
    """Use the kernels of another instruction set; the environment's ``DRUPE_CPU_ISA`` does the same at start.

    Raises:
        ValueError: the name is unknown, or not available on this processor.
    """
    _C.set_isa(name)


def memory_stats() -> dict[str, int]:
    """Return ``in_use_bytes``, ``cached_bytes`` and ``peak_bytes`` of the host memory pool."""
    return _C.memory_stats()


def empty_cache() -> None:
    """Give the memory that the pool keeps for reuse back to the system."""
    _C.empty_cache()
