"""The cases, one module per op; found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from drupe.bench.harness import Case

_PREFIX = "bench_"


def known_ops() -> list[str]:
    """Return the ops that have cases, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))


def collect(ops: Sequence[str] = (), *, quick: bool = False, text: str = "") -> list[Case]:
    """Return the cases of some ops (of all, if none is named) whose label contains a text.

    Raises:
        ValueError: an op has no cases; the message names those that have.
    """
    known = known_ops()
    if unknown := [op for op in ops if op not in known]:
        raise ValueError(f"no cases for {', '.join(unknown)}: expected some of {', '.join(known)}")
    cases: list[Case] = []
    for op in known:
        if not ops or op in ops:
            cases += importlib.import_module(f"{__name__}.{_PREFIX}{op}").cases(quick)
    return [case for case in cases if text.lower() in case.label.lower()]
