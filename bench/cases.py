"""Where cases come from: a module for each op in ``bench/ops``, for each network in ``bench/models``; found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from drupe.bench import models, ops
from drupe.bench.harness import Case

SUITES = ("ops", "models", "targets", "all")
_FOLDERS = {"ops": ops, "models": models}
_PREFIX = "bench_"


def known(suite: str = "all") -> dict[str, str]:
    """Return name -> module of what has cases, in the order of names: ops, networks, or both."""
    folders = _FOLDERS.values() if suite not in _FOLDERS else [_FOLDERS[suite]]
    found = {
        module.name.removeprefix(_PREFIX): f"{folder.__name__}.{module.name}"
        for folder in folders
        for module in pkgutil.iter_modules(folder.__path__)
        if module.name.startswith(_PREFIX)
    }
    return dict(sorted(found.items()))


def collect(
    names: Sequence[str] = (), *, suite: str = "all", quick: bool = False, text: str = "", device: str = "cpu"
) -> list[Case]:
    """Return cases in the order of their names.

    Args:
        names: ops or networks; all, if none is named.
        suite: ``"ops"``, ``"models"``, ``"targets"`` (of both, those that have a target) or ``"all"``.
        quick: the small sizes.
        text: what a case's label must contain.
        device: where they are to run.

    Raises:
        ValueError: a suite that does not exist, or a name that has no cases in it; the message names those that have.
    """
    if suite not in SUITES:
        raise ValueError(f'no suite "{suite}": expected one of {", ".join(SUITES)}')
    modules = known(suite)
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"no cases for {', '.join(unknown)}: expected some of {', '.join(modules)}")
    cases: list[Case] = []
    for name, module in modules.items():
        if not names or name in names:
            cases += importlib.import_module(module).cases(quick)
    if suite == "targets":
        cases = [case for case in cases if case.target is not None]
    return [case for case in cases if text.lower() in case.label.lower() and (device == "cpu" or not case.cpu_only)]
