"""How much memory a call needs."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROCESS = Path("/proc/self")


class Peak:
    """The most that was added at any time; None where the system does not tell."""

    added_bytes: int | None = None


@contextmanager
def watch() -> Iterator[Peak]:
    """Measure by how much the process's resident memory grows at most within the block."""
    peak = Peak()
    before = _reset()
    yield peak
    if before is not None:
        peak.added_bytes = max(0, _resident("VmHWM") - before)


def _reset() -> int | None:
    """Make what is resident now the peak, and return it; without what was freed, where a call would find memory."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) << 10
