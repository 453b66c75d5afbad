"""``drupe demo``: check the ops, train three networks on real data, and show what they have learnt."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import drupe
from drupe.cli import demo_ops, demo_plot, demo_tasks
from drupe.cli.demo_ops import Check
from drupe.cli.demo_tasks import Outcome
from drupe.train import Callback, ProgressBar

OK, FAILED, USAGE = 0, 1, 2
_NEEDED = ("matplotlib", "pandas", "safetensors", "sklearn", "statsmodels", "tokenizers")


def demo(out: Path = Path("drupe-demo"), seed: int = 0, quick: bool = False, as_json: bool = False) -> int:
    """Run the demonstration.

    Args:
        out: the directory for checkpoints, the picture and the numbers; made if it is missing.
        seed: of the splits, the initial values, the batches, the masks and the dropout.
        quick: few epochs: a smoke test, whose networks have learnt little.
        as_json: print the numbers as JSON on standard output; the rest goes to standard error.

    Returns:
        The exit code: 0 success, 1 an op is wrong, 2 something is missing.
    """
    console = Console(stderr=as_json, highlight=False)
    errors = Console(stderr=True, highlight=False)
    if missing := [name for name in _NEEDED if not _importable(name)]:
        names = ", ".join(missing).replace("sklearn", "scikit-learn")
        errors.print(f"drupe demo needs {names}, which is not installed: pip install 'drupe\\[demo]'")
        return USAGE
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        errors.print(f"drupe demo: cannot write to {out}: {error}", markup=False)
        return USAGE
    start = time.perf_counter()
    threads = drupe.num_threads()
    console.print(Rule(f"[bold]drupe {drupe.__version__}[/bold]  ·  {drupe.cpu_isa()}  ·  {threads} threads"))

    console.print("\n[bold]1  The ops, beside NumPy[/bold]")
    checks = _check_ops(console, seed, quick)
    failed = [check.case.name for check in checks if not check.passed]

    console.print("\n[bold]2  Three networks, on real data[/bold]")
    outcomes = [_train(console, name, out, seed, quick) for name in demo_tasks.TASKS]

    console.print("\n[bold]3  What they say of input that they have not seen[/bold]")
    for outcome in outcomes:
        body = Text("\n".join(outcome.prediction))
        console.print(Panel(body, title=outcome.name, title_align="left", border_style="dim"))

    console.print("\n[bold]4  Summary[/bold]")
    picture = out / "losses.png"
    demo_plot.draw(outcomes, picture)
    seconds = time.perf_counter() - start
    numbers = _numbers(checks, outcomes, seed, seconds)
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    console.print(_summary(outcomes))
    written = [name for outcome in outcomes for name in outcome.checkpoints]
    for name in [*written, picture.name, "results.json"]:
        console.print(f"  {out / name}", style="dim", markup=False)
    console.print(f"  {seconds:.0f} s. The same seed ({seed}) gives the same numbers and fingerprints again.")
    if failed:
        errors.print(f"[bold red]Wrong results:[/bold red] {', '.join(failed)}")
    if as_json:
        print(json.dumps(numbers, indent=2))
    return FAILED if failed else OK


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _check_ops(console: Console, seed: int, quick: bool) -> list[Check]:
    rng = np.random.default_rng(seed)
    checks = []
    with console.status("checking") as status:
        for case in demo_ops.cases():
            status.update(f"checking {case.name}")
            checks.append(demo_ops.check(case, rng, rounds=1 if quick else 7))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("op", no_wrap=True)
    table.add_column("shapes", style="dim", no_wrap=True, overflow="ellipsis")
    for name in ("error", "gradient", "drupe ms", "NumPy ms", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for check in checks:
        ratio = check.numpy_ms / check.drupe_ms
        colour = "green" if ratio >= 1 else "yellow"
        table.add_row(
            "[green]✓[/green]" if check.passed else "[bold red]✗[/bold red]",
            check.case.name,
            check.case.shapes,
            f"{check.error:.0e}",
            f"{check.gradient_error:.0e}" if check.case.gradient else "·",
            f"{check.drupe_ms:.2f}",
            f"{check.numpy_ms:.2f}",
            f"[{colour}]{ratio:.1f}×[/{colour}]",
        )
    console.print(table)
    return checks


def _train(console: Console, name: str, out: Path, seed: int, quick: bool) -> Outcome:
    def progress(label: str) -> Callback:
        return ProgressBar(label, console)

    outcome = demo_tasks.train(name, out, seed, quick, progress)
    sizes = (
        f"{outcome.train_rows} to learn from, {outcome.validation_rows} for validation, {outcome.held_rows} held out, "
        f"{outcome.parameters:,} parameters"
    )
    console.print(f"  [dim]{outcome.task}: {sizes}, {outcome.seconds:.0f} s[/dim]")
    return outcome


def _summary(outcomes: Sequence[Outcome]) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("held out", no_wrap=True)
    table.add_column("drupe", justify="right", no_wrap=True, style="bold")
    table.add_column("scikit-learn", no_wrap=True)
    table.add_column("majority", justify="right", no_wrap=True, style="dim")
    table.add_column("fingerprint", no_wrap=True, style="dim")
    for o in outcomes:
        baseline = f"{o.baseline_accuracy:.1%} {o.baseline}"
        table.add_row(o.name, f"{o.accuracy:.1%}", baseline, f"{o.majority:.1%}", o.fingerprint)
    return Padding(table, (0, 0, 1, 2))


def _numbers(checks: Sequence[Check], outcomes: Sequence[Outcome], seed: int, seconds: float) -> dict[str, Any]:
    """Return all numbers. What depends on the clock is under ``seconds`` and ``ms`` names only."""
    ops = {
        check.case.name: {
            "passed": check.passed,
            "error": check.error,
            "gradient_error": check.gradient_error if check.case.gradient else None,
            "drupe_ms": check.drupe_ms,
            "numpy_ms": check.numpy_ms,
        }
        for check in checks
    }
    networks = {}
    for outcome in outcomes:
        entry = asdict(outcome)
        entry["histories"] = {label: history.epochs for label, history in outcome.histories}
        networks[outcome.name] = entry
    return {
        "version": drupe.__version__,
        "isa": drupe.cpu_isa(),
        "threads": drupe.num_threads(),
        "seed": seed,
        "seconds": seconds,
        "ops": ops,
        "networks": networks,
    }


if __name__ == "__main__":
    sys.exit(demo())
