"""What `drupe bench` prints (rich)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from drupe.bench.harness import DRUPE, Result, Timing
from drupe.bench.machine import Limits
from drupe.bench.report import Change


def seconds(value: float | None) -> str:
    """Return a time with three digits and a unit."""
    if value is None:
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 999.5 * scale else f"{value / scale:.0f} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: int) -> str:
    """Return a number of bytes with a binary unit."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 1 << shift:
            return f"{value / (1 << shift):.4g} {unit}"
    return f"{value} B"


def limits_table(limits: Limits) -> Table:
    """Return the machine's measured limits."""
    table = Table(title=f"Measured limits, {limits.threads} thread(s), {limits.isa}", title_justify="left")
    table.add_column("limit")
    table.add_column("working set", justify="right")
    table.add_column("rate", justify="right")
    for name, rate in limits.compute.items():
        table.add_row(name, "registers", "not available" if rate is None else f"{rate / 1e9:.1f} GFLOP/s")
    for level, working_set in limits.levels.items():
        for kind in ("read", "copy", "copy_nt"):
            rate = limits.bandwidth[kind, working_set]
            table.add_row(f"{kind} {level.upper()}", size(working_set), f"{rate / 1e9:.1f} GB/s")
    return table


_WIDTH_OF_CASE, _WIDTH_OF_PEER = 65, 20  # characters that the columns take, about


def _peer_cell(timing: Timing | None) -> Text:
    if timing is None:
        return Text("")
    if timing.status != "ok" or timing.ratio is None:
        return Text(timing.status, style="dim" if timing.status == "absent" else "yellow")
    style = "green" if timing.ratio <= 1 else "red"
    return Text.assemble(seconds(timing.median_s), " ", (f"({timing.ratio:.2f}×)", style))


def results_table(results: Sequence[Result], width: int = 200) -> Table:
    """Return the cases: drupe's time, rate and share of the limit, and every peer with drupe's time over its own.

    Peers get a column each where ``width`` suffices, and share one otherwise. A peer that is absent throughout gets
    none.
    """
    table = Table(title="Median times; in brackets drupe's as a multiple of the peer's", title_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("drupe", "of its limit"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = dict.fromkeys(
        name for result in results for name, t in result.timings.items() if name != DRUPE and t.status != "absent"
    )
    columns = _WIDTH_OF_CASE + _WIDTH_OF_PEER * len(shown) <= width
    for name in shown if columns else ["the peers"] if shown else []:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        case, timings = result.case, result.timings
        label = Text.assemble((case.op, "bold"), f" {case.name}\n", (f"{case.shapes} {case.dtype}", "dim"))
        if columns:
            cells = [_peer_cell(timings.get(name)) for name in shown]
        else:
            lines = [Text.assemble(f"{name} ", _peer_cell(timings[name])) for name in shown if name in timings]
            cells = [Text("\n").join(lines)] if shown else []
        table.add_row(label, *_own_cells(result), *cells)
    return table


def _own_cells(result: Result) -> list[Text]:
    timing = result.timings[DRUPE]
    median = timing.median_s
    if timing.status != "ok" or median is None or timing.spread is None:
        return [Text(timing.status, style="bold red"), Text("")]
    case = result.case
    memory = result.limit in ("read", "copy")
    rate = (case.bytes_read + case.bytes_written) / median / 1e9 if memory else case.flops / median / 1e9
    spread = (f"± {timing.spread:.0%}", "dim" if timing.spread < 0.1 else "yellow")
    share = f"{result.fraction:.0%} {result.limit}\n" if result.fraction is not None else ""
    return [
        Text.assemble((seconds(median), "bold"), "\n", spread),
        Text.assemble(share, (f"{rate:.3g} {'GB/s' if memory else 'GFLOP/s'}", "dim")),
    ]


def targets_table(results: Sequence[Result]) -> Table:
    """Return what each case with a target reaches beside the best peer, with the memory of both: drupe's above."""
    aimed = [result for result in results if result.case.target is not None]
    met = sum(result.met is True for result in aimed)
    table = Table(title=f"Targets: {met} of {len(aimed)} met", title_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("drupe", "best peer", "ratio", "target", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in aimed:
        ours, best = result.timings[DRUPE], result.best_peer
        theirs = result.timings[best] if best else Timing()
        style = {True: "green", False: "bold red", None: "yellow"}[result.met]
        table.add_row(
            result.case.label,
            seconds(ours.median_s),
            f"{seconds(theirs.median_s)}\n{best}" if best else "–",
            Text("–" if theirs.ratio is None else f"{theirs.ratio:.2f}", style=style),
            f"{result.case.target:.2f}",
            "\n".join("–" if t.peak_bytes is None else size(t.peak_bytes) for t in (ours, theirs)),
        )
    return table


def problems(results: Sequence[Result]) -> list[tuple[str, str, Timing]]:
    """Return (case, contender, timing) for everything that raised or was wrong."""
    return [
        (result.case.label, name, timing)
        for result in results
        for name, timing in result.timings.items()
        if timing.status in ("error", "wrong")
    ]


def changes_table(changes: Sequence[Change]) -> Table:
    """Return the comparison of two runs."""
    table = Table(title="Change since the old run", title_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("before", "now", "change", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    styles = {"slower": "bold red", "broken": "bold red", "faster": "green", "fixed": "green"}
    for change in changes:
        moved = "" if change.change is None else f"{change.change:+.1%}"
        table.add_row(
            " ".join(change.key[:4]),
            seconds(change.before_s),
            seconds(change.after_s),
            moved,
            Text(change.verdict, style=styles.get(change.verdict, "dim")),
        )
    return table
