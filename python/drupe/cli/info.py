"""``drupe info``."""

from __future__ import annotations

import json
import platform
from typing import Any

from rich.console import Console
from rich.table import Table

import drupe
from drupe.bench import machine
from drupe.bench.tables import size
from drupe.runtime import cpu_isa_reason, cuda_status


def gather() -> dict[str, Any]:
    """Return what there is to know about this build on this machine."""
    return {
        "version": drupe.__version__,
        "python": platform.python_version(),
        "cpu": {
            "model": machine.cpu_model(),
            "cpus": machine.cpu_count(),
            "caches_bytes": machine.caches(),
            "isa": drupe.cpu_isa(),
            "isa_reason": cpu_isa_reason(),
            "isas": drupe.cpu_isas(),
            "threads": drupe.num_threads(),
        },
        "memory": {"machine_bytes": machine.memory_bytes(), "pool": drupe.memory_stats()},
        "cuda": cuda_status(),
    }


def show(*, as_json: bool) -> None:
    """Print :func:`gather`, as JSON or as a table."""
    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    cpu, memory, cuda = facts["cpu"], facts["memory"], facts["cuda"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("drupe", f"{facts['version']} on Python {facts['python']}")
    table.add_row("processor", f"{cpu['model']}, {cpu['cpus']} usable")
    table.add_row("caches", ", ".join(f"{level.upper()} {size(b)}" for level, b in cpu["caches_bytes"].items()) or "–")
    table.add_row("instruction set", f"{cpu['isa']}: {cpu['isa_reason']}")
    table.add_row("", f"available: {', '.join(cpu['isas'])}; DRUPE_CPU_ISA overrides")
    table.add_row("threads", f"{cpu['threads']}; DRUPE_NUM_THREADS overrides")
    total, free = memory["machine_bytes"]["total"], memory["machine_bytes"]["available"]
    table.add_row("memory", f"{size(total)}, {size(free)} available")
    pool = memory["pool"]
    table.add_row("pool", f"{size(pool['in_use_bytes'])} in use, {size(pool['cached_bytes'])} kept for reuse")
    built = "emulated" if cuda["emulated"] else "built" if cuda["built"] else "not built"
    state = "available" if cuda["available"] else f"not available: {cuda['reason']}"
    table.add_row("CUDA", f"{built}, {state}")
    Console().print(table)
