"""Where cases come from: modules in ``bench/ops``, for an op or several alike, and in ``bench/models``, for a network.

Modules are found by name. Cases are asked for by op (``exp``), or all those of a module that is named after no op
(``elementwise``).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from drupe.bench import models, ops
from drupe.bench.harness import Case

SUITES = ("ops", "models", "targets", "all")
_FOLDERS = {"ops": ops, "models": models}
_PREFIX = "bench_"


def by_module(suite: str = "all", *, quick: bool = False) -> dict[str, list[Case]]:
    """Return the cases of each module by its name, in the order of names: those of ops, of networks, or of both."""
    folders = _FOLDERS.values() if suite not in _FOLDERS else [_FOLDERS[suite]]
    found = {
        module.name.removeprefix(_PREFIX): f"{folder.__name__}.{module.name}"
        for folder in folders
        for module in pkgutil.iter_modules(folder.__path__)
        if module.name.startswith(_PREFIX)
    }
    return {name: list(importlib.import_module(path).cases(quick)) for name, path in sorted(found.items())}


def collect(
    names: Sequence[str] = (), *, suite: str = "all", quick: bool = False, text: str = "", device: str = "cpu"
) -> list[Case]:
    """Return cases in the order of their modules.

    Args:
        names: ops or networks, or modules that are named after neither; all, if none is named.
        suite: ``"ops"``, ``"models"``, ``"targets"`` (of both, those that have a target) or ``"all"``.
        quick: the small sizes.
        text: what a case's label must contain.
        device: where they are to run.

    Raises:
        ValueError: a suite that does not exist, or a name that has no cases in it; the message names those that have.
    """
    if suite not in SUITES:
        raise ValueError(f'no suite "{suite}": expected one of {", ".join(SUITES)}')
    modules = by_module(suite, quick=quick)
    measured = {case.op for cases in modules.values() for case in cases}
    if unknown := [name for name in names if name not in measured and name not in modules]:
        known = sorted(measured.union(modules))
        raise ValueError(f"no cases for {', '.join(unknown)}: expected some of {', '.join(known)}")
    groups = {*names} - measured
    cases = [case for name, own in modules.items() for case in own if not names or case.op in names or name in groups]
    if suite == "targets":
        cases = [case for case in cases if case.target is not None]
    return [case for case in cases if text.lower() in case.label.lower() and (device == "cpu" or not case.cpu_only)]
