"""The roofline of a run (matplotlib).

Left: the measured ceilings, and each case where its arithmetic intensity and its speed put it. Right: the share of its
own limit that each case reaches, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_INK, _MUTED, _GRID = "#22252b", "#7a808c", "#e6e8ec"
_COLOURS = (
    "#3366cc",
    "#d95f02",
    "#1b9e77",
    "#b5358a",
    "#7a5195",
    "#c49000",
    "#17a2b8",
    "#8c564b",
    "#4c8c2b",
    "#e0457b",
)
_LEVELS = {"l2": "#a8c3e6", "l3": "#7ba3d4", "dram": "#3f6fa8"}


def roofline(run: Mapping[str, Any], path: Path) -> None:
    """Draw a run (as :func:`drupe.bench.report.to_json` gives it) into a .png, .svg or .pdf file."""
    from matplotlib.figure import Figure

    cases = [case for case in run["cases"] if case["ok"]]
    colours = {op: _COLOURS[i % len(_COLOURS)] for i, op in enumerate(dict.fromkeys(case["op"] for case in cases))}
    height = max(6.4, 1.6 + 0.3 * len(cases))
    figure = Figure(figsize=(15, height), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    _draw_roofline(left, run, cases, colours)
    _draw_shares(right, cases, colours)
    machine = run["machine"]
    figure.suptitle(
        f"drupe {run['versions']['drupe']} on {machine['cpu']}, {run['threads']} thread(s), {run['isa']}",
        fontsize=14,
        color=_INK,
        fontweight="bold",
    )
    figure.savefig(path, dpi=150)


def _intensity(case: Mapping[str, Any]) -> float:
    return float(case["flops"] / (case["bytes_read"] + case["bytes_written"]))


def _gflops(case: Mapping[str, Any]) -> float:
    return float(case["flops"] / case["timings"]["drupe"]["median_s"] / 1e9)


def _style(axes: Any) -> None:
    axes.set_facecolor("white")
    axes.tick_params(colors=_MUTED, which="both", labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.set_axisbelow(True)


def _ceilings(run: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return GFLOP/s by kind of arithmetic, and the copy bandwidth in GB/s by level of memory."""
    limits = run["limits"]
    compute = {name: rate for name, rate in limits["compute_gflops"].items() if rate is not None}
    memory = {}
    for level, working_set in limits["levels_bytes"].items():
        rates = [
            entry["rate"]
            for entry in limits["bandwidth_gb_s"]
            if entry["working_set_bytes"] == working_set and entry["kind"].startswith("copy")
        ]
        memory[level] = max(rates)
    return compute, memory


def _draw_roofline(
    axes: Any, run: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    _style(axes)
    compute, memory = _ceilings(run)
    xs, ys = [_intensity(c) for c in cases], [_gflops(c) for c in cases]
    top = max(compute.values())
    low = min([0.25, *(x / 2 for x in xs)])
    high = max([4 * top / max(min(memory.values()), 1e-9), *(2.5 * x for x in xs)])
    floor = min([*(y / 3 for y in ys), low * min(memory.values())])
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, top * 2.2))
    axes.grid(True, which="major", color=_GRID, linewidth=0.8)
    grid = np.geomspace(low, high, 200)
    for level, bandwidth in memory.items():
        ridge = top / bandwidth
        sloped = grid[grid <= ridge]
        axes.plot([*sloped, ridge], [*(sloped * bandwidth), top], color=_LEVELS.get(level, _MUTED), linewidth=1.8)
    lowest = min(memory.values())
    for name, rate in compute.items():
        start = rate / max(memory.values())
        axes.plot(
            [max(low, start), high], [rate, rate], color=_INK, linewidth=1.8, linestyle="-" if rate == top else "--"
        )
        axes.annotate(
            f"{name}  {rate:.0f} GFLOP/s",
            (high, rate),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            color=_INK,
        )
    _label_slopes(axes, memory, low)
    assert lowest > 0
    for i, (case, x, y) in enumerate(zip(cases, xs, ys, strict=True), 1):
        _numbered_point(axes, x, y, i, colours[case["op"]])
    axes.set_xlabel("arithmetic intensity (flop per byte that must move)", color=_INK, fontsize=10)
    axes.set_ylabel("GFLOP/s", color=_INK, fontsize=10)
    axes.set_title("Roofline: measured ceilings, copy bandwidth", loc="left", fontsize=11, color=_INK)


def _label_slopes(axes: Any, memory: Mapping[str, float], low: float) -> None:
    """Write each bandwidth along its line."""
    for level, bandwidth in memory.items():
        x = low * 1.25
        axes.annotate(
            f"{level.upper()} copy  {bandwidth:.0f} GB/s",
            (x, x * bandwidth),
            xytext=(2, 3),
            textcoords="offset points",
            rotation=_slope_angle(axes),
            rotation_mode="anchor",
            fontsize=9,
            color=_LEVELS.get(level, _MUTED),
            ha="left",
            va="bottom",
        )


def _slope_angle(axes: Any) -> float:
    """Return the angle on paper of a line whose y is proportional to x."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_position()
    width, height = axes.figure.get_size_inches()
    across = box.width * width / np.log10(x1 / x0)
    up = box.height * height / np.log10(y1 / y0)
    return float(np.degrees(np.arctan2(up, across)))


def _numbered_point(axes: Any, x: float, y: float, number: int, colour: str) -> None:
    axes.scatter([x], [y], s=190, color=colour, edgecolor="white", linewidth=1.2, zorder=3)
    axes.annotate(
        str(number), (x, y), ha="center", va="center", fontsize=7.5, color="white", fontweight="bold", zorder=4
    )


def _draw_shares(axes: Any, cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw one bar a case: the share of the limit that binds it."""
    _style(axes)
    axes.spines["left"].set_visible(False)
    rows = np.arange(len(cases))
    shares = [100 * (case["limit"]["fraction"] or 0) for case in cases]
    axes.barh(rows, shares, height=0.62, color=[colours[case["op"]] for case in cases], alpha=0.85)
    axes.axvline(100, color=_INK, linewidth=1)
    for row, case, share in zip(rows, cases, shares, strict=True):
        name = f"{row + 1}  {case['op']} {case['name']}"
        axes.annotate(
            name,
            (0, row),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            color=_INK,
            annotation_clip=False,
        )
        axes.annotate(
            f"{share:.0f} % of {case['limit']['name']}   {case['shapes']} {case['dtype']}",
            (share, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_MUTED,
            annotation_clip=False,
        )
    axes.set(ylim=(len(cases) - 0.4, -0.6), xlim=(0, max([105, *shares]) * 1.0), yticks=[])
    axes.set_xlabel("share of the limit that binds the case (%)", color=_INK, fontsize=10)
    axes.set_title("Reached", loc="left", fontsize=11, color=_INK)
