"""What the machine is, and what it can do at most."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import drupe
from drupe.runtime import measure_limit

_SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")
_DEVICE_WORKING_SETS = {"l2": 16 << 20, "dram": 2 << 30}  # of a GPU


def cpu_model() -> str:
    """Return the processor's name; with its family and model, where the name is that of a whole line of them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = dict(re.findall(r"^([\w ]+?)\s*:\s*(.+?)\s*$", text, re.MULTILINE))
    name = fields.get("model name", platform.machine())
    if re.search(r"\d", name) or not {"cpu family", "model"} <= fields.keys():
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def cpu_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caches(root: Path = _SYSFS) -> dict[str, int]:
    """Return the bytes of the first processor's caches: ``l1d``, ``l2``, ``l3``, those that it says it has."""
    sizes: dict[str, int] = {}
    for index in sorted(root.glob("index*")):
        try:
            level, kind, size = ((index / part).read_text().strip() for part in ("level", "type", "size"))
        except OSError:
            continue
        if kind == "Instruction" or not (match := re.fullmatch(r"(\d+)([KMG]?)", size)):
            continue
        unit = {"": 0, "K": 10, "M": 20, "G": 30}[match.group(2)]
        sizes[f"l{level}" + ("d" if level == "1" else "")] = int(match.group(1)) << unit
    return sizes


def memory_bytes() -> dict[str, int]:
    """Return the ``total`` and ``available`` bytes of main memory."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"total": total, "available": total // 2}
    fields: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return {"total": int(fields["MemTotal"]) << 10, "available": int(fields.get("MemAvailable", 0)) << 10}


def describe() -> dict[str, Any]:
    """Return the machine as the JSON reports it."""
    return {
        "name": slug(),
        "cpu": cpu_model(),
        "cpus": cpu_count(),
        "caches_bytes": caches(),
        "memory_bytes": memory_bytes()["total"],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def slug() -> str:
    """Return a file name for this kind of machine, such as ``amd-epyc-9b45-2cpu``."""
    words = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", " ", cpu_model(), flags=re.IGNORECASE)
    return "-".join([*re.findall(r"[a-z0-9.]+", words.lower()), f"{cpu_count()}cpu"])


@dataclass
class Limits:
    """Measured ceilings, on the threads and the instruction set in use at the time.

    Bandwidths depend on where the data lies, so each is measured at the working set that is asked for (rounded to a
    power of two), once.

    Attributes:
        compute: flops per second by ``fma_f32`` and ``dot_bf16``; None where the processor has none.
        bandwidth: bytes per second by (``read`` | ``copy`` | ``copy_nt``, working set in bytes).
        seconds: how long each measurement lasts.
        device: what was measured.
    """

    threads: int
    isa: str
    compute: dict[str, float | None]
    bandwidth: dict[tuple[str, int], float]
    seconds: float
    levels: dict[str, int] = field(default_factory=dict)  # the working set that stands for each level of memory
    device: str = "cpu"

    @classmethod
    def measure(cls, seconds: float = 0.25, device: str = "cpu") -> Limits:
        """Measure the compute limits, and the bandwidths of every cache level and of main memory."""
        compute = {name: measure_limit(name, seconds=seconds, device=device) for name in ("fma_f32", "dot_bf16")}
        levels = working_sets(drupe.num_threads()) if device == "cpu" else dict(_DEVICE_WORKING_SETS)
        limits = cls(drupe.num_threads(), drupe.cpu_isa(), compute, {}, seconds, levels, device)
        for size in limits.levels.values():
            for kind in ("read", "copy", "copy_nt"):
                limits._rate(kind, size)
        drupe.empty_cache()
        return limits

    def peak(self, dtype: str) -> tuple[str, float]:
        """Return the name and the rate of the fastest arithmetic for a dtype, in flops per second."""
        fma = self.compute["fma_f32"] or 0.0
        dot = self.compute["dot_bf16"] or 0.0
        if dtype == "float64":
            return "fma_f32 / 2", fma / 2
        if dtype == "bfloat16" and dot > fma:
            return "dot_bf16", dot
        return "fma_f32", fma

    def bandwidth_at(
        self, bytes_read: float, bytes_written: float, working_set: float | None = None
    ) -> tuple[str, float]:
        """Return the name and the rate of memory for so many bytes: ``read`` where hardly any are written."""
        working_set = int(working_set or bytes_read + bytes_written)
        if bytes_written * 4 < bytes_read:
            return "read", self._rate("read", working_set)
        return "copy", max(self._rate("copy", working_set), self._rate("copy_nt", working_set))

    def bound(
        self, dtype: str, flops: float, bytes_read: float, bytes_written: float, working_set: float | None = None
    ) -> tuple[str, float, float]:
        """Return which limit takes longest for this work: its name, its rate, and those seconds."""
        name, rate = self.peak(dtype)
        seconds = flops / rate if rate else 0.0
        total = bytes_read + bytes_written
        if total:
            memory, speed = self.bandwidth_at(bytes_read, bytes_written, working_set)
            if total / speed > seconds:
                return memory, speed, total / speed
        return name, rate, seconds

    def _rate(self, kind: str, working_set: int) -> float:
        largest = self.levels.get("dram", working_set)
        size = 1 << max(16, round_log2(working_set))
        size = min(size, largest)
        if (kind, size) not in self.bandwidth:
            before = drupe.cpu_isa()
            # Bandwidth is the machine's, whatever the kernels are made for.
            drupe.set_cpu_isa(drupe.cpu_isas()[-1])
            try:
                rate = measure_limit(kind, working_set=size, seconds=self.seconds, device=self.device)
            finally:
                drupe.set_cpu_isa(before)
            assert rate is not None
            self.bandwidth[kind, size] = rate
        return self.bandwidth[kind, size]

    def to_json(self) -> dict[str, Any]:
        """Return the limits in GFLOP/s and GB/s."""
        return {
            "threads": self.threads,
            "isa": self.isa,
            "device": self.device,
            "compute_gflops": {name: None if rate is None else rate / 1e9 for name, rate in self.compute.items()},
            "levels_bytes": self.levels,
            "bandwidth_gb_s": [
                {"kind": kind, "working_set_bytes": size, "rate": rate / 1e9}
                for (kind, size), rate in sorted(self.bandwidth.items())
            ],
        }


def round_log2(value: int) -> int:
    """Return the exponent of the power of two that is nearest by ratio."""
    exponent = max(0, value.bit_length() - 1)
    return exponent + (value * value > 2 << (2 * exponent))


def working_sets(threads: int) -> dict[str, int]:
    """Return a working set for each level: half of the caches of the threads, and eight times the largest."""
    sizes = caches()
    sets: dict[str, int] = {}
    if "l2" in sizes:
        sets["l2"] = 1 << round_log2(sizes["l2"] * threads // 2)
    largest = max([*sizes.values(), 32 << 20])
    if "l3" in sizes:
        sets["l3"] = 1 << round_log2(sizes["l3"] // 2)
    wanted = 1 << (8 * largest - 1).bit_length()  # of twice its size, a cache still holds a part
    bound = 1 << max(26, (memory_bytes()["available"] // 4).bit_length() - 1)
    sets["dram"] = min(wanted, bound)
    return sets
