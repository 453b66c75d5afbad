"""Threads, memory and instruction sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

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
    """Return the instruction set in use: ``"scalar"``, ``"avx2"``, ``"avx512"`` or ``"neon"``."""
    return _C.isa()


def cpu_isas() -> list[str]:
    """Return the instruction sets that this build has and this processor can run, weakest first."""
    return _C.isas()


def cpu_isa_reason() -> str:
    """Return why that instruction set is in use."""
    return _C.isa_reason()


def set_cpu_isa(name: str) -> None:
    """Use the kernels of another instruction set; the environment's ``DRUPE_CPU_ISA`` does the same at start.

    Raises:
        ValueError: the name is unknown, or not available on this processor.
    """
    _C.set_isa(name)


def get_float32_matmul_precision() -> str:
    """Return ``"highest"`` or ``"high"``; see :func:`set_float32_matmul_precision`."""
    return _C.float32_matmul_precision()


def set_float32_matmul_precision(name: str) -> None:
    """Set how exact matrix products of float32 are, for the whole process.

    Args:
        name: ``"highest"``, the default: float32 throughout. ``"high"``: a GPU may round the operands of
            :func:`drupe.ops.gemm`, also in backward passes, to tf32 (10 bits after the point instead of 23; magnitudes
            beyond 2^128 - 2^116 become infinite), for its tensor cores; the sums stay float32. The CPU computes in
            float32 either way, and so do convolution and attention.

    Raises:
        ValueError: another name.
    """
    _C.set_float32_matmul_precision(name)


@contextmanager
def float32_matmul_precision(name: str) -> Iterator[None]:
    """Be :func:`set_float32_matmul_precision` for the length of a ``with`` block, for all threads.

    Raises:
        ValueError: another name.
    """
    before = get_float32_matmul_precision()
    set_float32_matmul_precision(name)
    try:
        yield
    finally:
        set_float32_matmul_precision(before)


def memory_stats(device: str = "cpu") -> dict[str, int]:
    """Return ``in_use_bytes``, ``cached_bytes`` and ``peak_bytes`` of a device's memory pool.

    For ``"cuda"`` there are also ``graph_bytes``, what captured graphs have reserved, in use or not, and
    ``pinned_bytes``, the same of the host's page-locked memory.

    Args:
        device: ``"cpu"`` for the host's, ``"cuda"`` or ``"cuda:<index>"``.

    Raises:
        ValueError: no device has that name.
        RuntimeError: there is no such device here, and why.
    """
    return _C.memory_stats(device)


def empty_cache() -> None:
    """Give the memory that the pools keep for reuse back to the system and to the devices."""
    _C.empty_cache()


class CudaStatus(TypedDict):
    """How CUDA was built, whether it can be used, and why it is so."""

    built: bool
    emulated: bool
    available: bool
    reason: str


def cuda_status() -> CudaStatus:
    """Return the state of the CUDA backend."""
    available, reason, _ = _C.cuda_status()
    return {
        "built": _C.cuda_built == "ON",
        "emulated": _C.cuda_built == "EMULATE",
        "available": available,
        "reason": reason,
    }


def synchronize(device: str = "cuda") -> None:
    """Wait until a device has done all the work that was queued on it; nothing to wait for on the CPU.

    Raises:
        RuntimeError: there is no such device here, and why.
    """
    _C.synchronize(device)


def measure_limit(name: str, *, working_set: int = 0, seconds: float = 0.1, device: str = "cpu") -> float | None:
    """Measure what the machine can do at most: a GPU, or the threads and the instruction set in use.

    Args:
        name: ``"fma_f32"`` or ``"dot_bf16"``, arithmetic in registers; ``"read"``, ``"copy"`` or ``"copy_nt"`` (with
            stores past the caches), bandwidth.
        working_set: the bytes of the arrays that a bandwidth is measured on.
        seconds: how long to measure, at most 60.
        device: what to measure.

    Returns:
        Flops or bytes per second (those read and those written); None where there is no such instruction.

    Raises:
        ValueError: an unknown name, or an argument out of range.
    """
    return _C.measure_limit(name, working_set, seconds, device)
