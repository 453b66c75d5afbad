"""The roofline of a run (matplotlib).

Left: the measured ceilings, and each case where its arithmetic intensity and its speed put it. Right: the share of its
own limit that each case reaches, under the same numbers, and what the peers reach of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
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
_LEVELS = {"l2": "#8fa9c9", "l3": "#5d86b5", "dram": "#2f5f97"}
_MARKERS = "oDs^vPX<>*"
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "color": _INK}


def roofline(run: Mapping[str, Any], path: Path) -> None:
    """Draw a run (as :func:`drupe.bench.report.to_json` gives it) into a .png, .svg or .pdf file."""
    from matplotlib.figure import Figure

    cases = [case for case in run["cases"] if case["ok"]]
    colours = {op: _COLOURS[i % len(_COLOURS)] for i, op in enumerate(dict.fromkeys(case["op"] for case in cases))}
    height = max(6.4, 1.6 + 0.36 * len(cases))
    figure = Figure(figsize=(15, height), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    machine = run["machine"]
    figure.suptitle(
        f"drupe {run['versions']['drupe']} on {machine['cpu']}, {run['threads']} thread(s), {run['isa']}",
        fontsize=14,
        color=_INK,
        fontweight="bold",
    )
    memory = _draw_ceilings(left, run, cases)
    _draw_shares(right, cases, colours)
    # Where labels go depends on where the axes are: settle that first.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _label_slopes(left, memory, max(_ceilings(run)[0].values()))
    _draw_points(left, cases, colours)
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


def _draw_ceilings(axes: Any, run: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Draw the axes and the ceilings; return the bandwidths."""
    _style(axes)
    compute, memory = _ceilings(run)
    xs, ys = [_intensity(c) for c in cases], [_gflops(c) for c in cases]
    top = max(compute.values())
    low = min([0.25, *(x / 2 for x in xs)])
    high = max([4 * top / max(min(memory.values()), 1e-9), *(2.5 * x for x in xs)])
    floor = min([*(y / 3 for y in ys), low * min(memory.values())])
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, top * 2.2))
    axes.grid(True, which="major", color=_GRID, linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    grid = np.geomspace(low, high, 200)
    for level, bandwidth in memory.items():
        ridge = top / bandwidth
        sloped = grid[grid <= ridge]
        axes.plot([*sloped, ridge], [*(sloped * bandwidth), top], color=_LEVELS.get(level, _MUTED), linewidth=1.8)
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
    axes.set_xlabel("arithmetic intensity (flop per byte that must move)", color=_INK, fontsize=10)
    axes.set_ylabel("GFLOP/s", color=_INK, fontsize=10)
    axes.set_title("Roofline: measured ceilings", **_TITLE)
    return memory


def _label_slopes(axes: Any, memory: Mapping[str, float], top: float) -> None:
    """Write each bandwidth along the upper end of its line; below it where the line above is close."""
    above = float("inf")
    for level, bandwidth in sorted(memory.items(), key=lambda item: -item[1]):
        close = above < 1.8 * bandwidth
        axes.annotate(
            f"{level.upper()} copy  {bandwidth:.0f} GB/s",
            (0.85 * top / bandwidth, 0.85 * top),
            xytext=(4, -4) if close else (-3, 3),
            textcoords="offset points",
            rotation=_slope_angle(axes),
            rotation_mode="anchor",
            fontsize=9,
            color=_LEVELS.get(level, _MUTED),
            ha="right",
            va="top" if close else "bottom",
        )
        above = bandwidth


def _slope_angle(axes: Any) -> float:
    """Return the angle on paper of a line whose y is proportional to x."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_position()
    width, height = axes.figure.get_size_inches()
    across = box.width * width / np.log10(x1 / x0)
    up = box.height * height / np.log10(y1 / y0)
    return float(np.degrees(np.arctan2(up, across)))


def _draw_points(axes: Any, cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw each case as a numbered disc; one that would cover another stands aside, tied to its point."""
    scale = 72 / axes.figure.dpi  # from pixels to points, the unit of the offsets
    taken: list[Any] = []
    for number, case in enumerate(cases, 1):
        at, colour = (_intensity(case), _gflops(case)), colours[case["op"]]
        here = np.asarray(axes.transData.transform(at)) * scale
        offset = next(o for o in _offsets() if all(np.hypot(*(here + o - t)) > 15 for t in taken))
        taken.append(here + offset)
        if offset.any():
            axes.scatter([at[0]], [at[1]], s=14, color=colour, zorder=3)
        axes.annotate(
            str(number),
            at,
            xytext=tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white",
            fontweight="bold",
            zorder=4,
            bbox={"boxstyle": f"circle,pad={0.5 if number < 10 else 0.3}", "facecolor": colour, "edgecolor": "white"},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1} if offset.any() else None,
        )


def _offsets() -> Iterator[Any]:
    """Give places around a point, the nearest first, without end."""
    yield np.zeros(2)
    for ring in count(1):
        for step in range(8 * ring):
            angle = np.pi / 4 + 2 * np.pi * step / (8 * ring)
            yield 17.0 * ring * np.array([np.cos(angle), np.sin(angle)])


def _draw_shares(axes: Any, cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw one bar a case, the share of the limit that binds it, and a mark for each peer on the same scale."""
    _style(axes)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x", color=_GRID, linewidth=0.8)
    shares = [100 * (case["limit"]["fraction"] or 0) for case in cases]
    axes.barh(range(len(cases)), shares, height=0.5, color=[colours[case["op"]] for case in cases], alpha=0.85)
    axes.axvline(100, color=_INK, linewidth=1)
    peers = list(dict.fromkeys(name for case in cases for name in case["timings"] if name != "drupe"))
    for row, (case, share) in enumerate(zip(cases, shares, strict=True)):
        title, details = f"{row + 1}  {case['op']} {case['name']}", f"{case['shapes']} {case['dtype']}"
        _note(axes, title, (0, row), (-8, 5), ha="right", fontsize=9, color=_INK)
        _note(axes, details, (0, row), (-8, -6), ha="right", fontsize=7.5, color=_MUTED)
        rivals = {name: share * t["ratio"] for name, t in case["timings"].items() if t["ratio"] is not None}
        for name, value in rivals.items():
            style = _MARKERS[peers.index(name) % len(_MARKERS)]
            axes.scatter([value], [row], marker=style, s=34, facecolor="white", edgecolor=_INK, linewidth=1, zorder=3)
        _note(axes, f"{share:.0f} % of {case['limit']['name']}", (max([share, *rivals.values()]), row), (7, 0))
    # An axis of twice the limit at most: what lies beyond ran out of a cache that its ceiling does not know.
    axes.set(
        ylim=(max(len(cases), 8) - 0.4, -0.6), xlim=(0, min(200, max([125, *(1.25 * s for s in shares)]))), yticks=[]
    )
    axes.set_xlabel("share of the limit that binds the case (%)", color=_INK, fontsize=10)
    axes.set_title("Bars: drupe's share of its limit" + ("; marks: the peers'" if peers else ""), **_TITLE)
    shown = [name for name in peers if any((c["timings"].get(name) or {}).get("ratio") is not None for c in cases)]
    for name in shown:
        style = _MARKERS[peers.index(name) % len(_MARKERS)]
        axes.scatter([], [], marker=style, s=34, facecolor="white", edgecolor=_INK, linewidth=1, label=name)
    if shown:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.06), ncols=5, fontsize=8.5, frameon=False)


def _note(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Write a text beside a point, small and muted unless told."""
    style = {"va": "center", "fontsize": 8, "color": _MUTED, "annotation_clip": False} | style
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **style)
