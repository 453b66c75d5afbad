"""``drupe bench``: select, measure, print, write, compare, draw."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import drupe
from drupe.bench import cases as catalogue
from drupe.bench import harness, machine, report, tables
from drupe.bench import peers as peer_calls

OK, FAILED, USAGE = 0, 1, 2


class UsageError(Exception):
    """What was asked for does not exist or does not fit together."""


@dataclass(frozen=True)
class Options:
    """The options of ``drupe bench``."""

    names: tuple[str, ...] = ()
    suite: str = "ops"
    json_file: str | None = None
    compare: Path | None = None
    threshold: float = 0.05
    plot: Path | None = None
    peers: str = "all"
    threads: int | None = None
    isa: str | None = None
    device: str = "cpu"
    text: str = ""
    quick: bool = False
    list_cases: bool = False


def run(options: Options) -> int:
    """Run the command; return the exit code."""
    # Standard output belongs to the JSON where that goes there.
    out = Console(stderr=options.json_file == "-")
    try:
        cases = catalogue.collect(
            options.names, suite=options.suite, quick=options.quick, text=options.text, device=options.device
        )
        if options.list_cases:
            for case in cases:
                out.print(case.label, highlight=False, markup=False, soft_wrap=True)
            return OK
        peers = _selected_peers(options.peers, options.device)
        _check_options(options, cases)
        old = None if options.compare is None else report.load(options.compare)
    except (UsageError, ValueError) as error:
        Console(stderr=True).print(f"drupe bench: {error}", highlight=False, markup=False, soft_wrap=True)
        return USAGE
    before = drupe.cpu_isa()
    if options.isa is not None:
        drupe.set_cpu_isa(options.isa)
    try:
        threads = options.threads or min(drupe.num_threads(), machine.cpu_count())
        with peer_calls.pinned(threads), drupe.default_device(options.device):
            limits, results = _measure(cases, peers, options, out)
            new = report.to_json(results, limits, _command())
    finally:
        drupe.set_cpu_isa(before)
    return _finish(results, new, old, options, out)


def _selected_peers(text: str, device: str) -> list[str]:
    known = peer_calls.NAMES if device == "cpu" else peer_calls.ON_DEVICE
    if text in ("all", "none"):
        return list(known) if text == "all" else []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no peer {', '.join(unknown)}: expected all, none, or some of {','.join(known)}")
    return names


def _check_options(options: Options, cases: Sequence[harness.Case]) -> None:
    if not cases:
        raise UsageError(f'no case matches --filter "{options.text}": drupe bench --list shows them')
    if options.threads is not None and options.threads > machine.cpu_count():
        raise UsageError(f"--threads {options.threads}: this process may use {machine.cpu_count()} processors")
    if options.isa is not None and options.isa not in drupe.cpu_isas():
        raise UsageError(f"--isa {options.isa}: this build on this processor has {', '.join(drupe.cpu_isas())}")
    if options.device != "cpu":
        if not options.device.startswith("cuda"):
            raise UsageError(f'--device {options.device}: expected "cpu", "cuda" or "cuda:<index>"')
        status = drupe.cuda_status()
        if not status["available"]:
            raise UsageError(f"--device {options.device}: {status['reason']}")
        if status["emulated"]:
            raise UsageError(f"--device {options.device}: the emulated GPU says nothing of speed")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError('--plot needs matplotlib: pip install "drupe[demo]"')
    if options.plot is not None and options.plot.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {options.plot}: expected a name that ends in .png, .svg or .pdf")
    for path in (options.plot, Path(options.json_file) if options.json_file else None):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.parent}")


def _command() -> list[str]:
    return ["drupe", *(shlex.quote(argument) for argument in sys.argv[1:])]


def _measure(
    cases: Sequence[harness.Case], peers: Sequence[str], options: Options, out: Console
) -> tuple[machine.Limits, list[harness.Result]]:
    effort = harness.QUICK if options.quick else harness.Effort()
    with out.status("measuring the machine's limits") as status:
        limits = machine.Limits.measure(0.02 if options.quick else 0.25, options.device)
        results = []
        for i, case in enumerate(cases):
            status.update(f"{i + 1}/{len(cases)} {escape(case.label)}")
            timings = harness.run_case(case, peers, effort, installed=peer_calls.installed, finish=peer_calls.finish)
            results.append(_held_against(limits, replace(case, device=drupe.get_default_device()), timings))
    out.print(tables.limits_table(limits))
    out.print(tables.results_table(results, out.width))
    if any(result.case.target is not None for result in results):
        out.print(tables.targets_table(results))
    absent = sorted({n.partition(":")[0] for r in results for n, t in r.timings.items() if t.status == "absent"})
    if absent:
        out.print(f"Not installed, so absent: {', '.join(absent)}", style="dim", highlight=False, markup=False)
    for label, name, timing in tables.problems(results):
        out.print(f"{label}: {name}: {timing.status}: {timing.message}", style="red", highlight=False, markup=False)
    return limits, results


def _held_against(limits: machine.Limits, case: harness.Case, timings: dict[str, harness.Timing]) -> harness.Result:
    """Return the result, with the share of the limit that binds the case."""
    result = harness.Result(case, timings)
    median = timings[harness.DRUPE].median_s
    if median:
        result.limit, result.limit_rate, bound_s = limits.bound(
            case.dtype, case.flops, case.bytes_read, case.bytes_written, case.working_set
        )
        result.fraction = bound_s / median
    return result


def _finish(
    results: Sequence[harness.Result],
    new: dict[str, Any],
    old: dict[str, Any] | None,
    options: Options,
    out: Console,
) -> int:
    """Write and draw the run, compare it, and return the exit code."""
    failed = not all(result.ok for result in results)
    if options.json_file == "-":
        print(json.dumps(new, indent=1))
    elif options.json_file is not None:
        Path(options.json_file).write_text(json.dumps(new, indent=1) + "\n")
    if options.plot is not None:
        from drupe.bench.plot import roofline

        roofline(new, options.plot)
        out.print(f"Wrote {options.plot}", highlight=False, markup=False, soft_wrap=True)
    if old is not None:
        for difference in report.differences(old, new):
            out.print(f"Compare with care, {difference}", style="yellow", highlight=False, markup=False)
        changes = report.compare(old, new, options.threshold)
        out.print(tables.changes_table(changes))
        failed = failed or any(change.regressed for change in changes)
    return FAILED if failed else OK
