"""The picture of ``drupe demo``: how the losses fell, and where the networks ended up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe.cli.demo_tasks import Outcome

_INK, _MUTED, _GRID, _PAPER = "#22223b", "#8d8da1", "#e6e4de", "#fbfaf7"
_PLUM, _GOLD = "#8a2f5b", "#d9932b"


def _smooth(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return a running mean over a fortieth of the curve, of fewer values at its start."""
    sums = np.cumsum([0.0, *values])
    width = max(1, len(values) // 40)
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _curve(axes: Any, name: str, label: str, history: Any) -> None:
    steps = np.asarray(history.steps)
    smooth = _smooth(history.steps)
    x = np.arange(1, len(steps) + 1)
    axes.plot(x, steps, color=_PLUM, alpha=0.18, linewidth=0.7)
    axes.plot(x, smooth, color=_PLUM, linewidth=1.8, label="training")
    if "val_loss" in history.epochs:
        ends = np.arange(1, len(history) + 1) * (len(steps) / len(history))
        axes.plot(
            ends,
            history["val_loss"],
            "o-",
            color=_GOLD,
            linewidth=1.4,
            markersize=4,
            label="validation",
            clip_on=False,
            zorder=3,
        )
    # Single noisy steps may leave the picture; the smoothed curve may not.
    top = max([float(np.percentile(steps, 99)), float(smooth.max()), *history.epochs.get("val_loss", [])])
    axes.set_ylim(0, 1.05 * top)
    axes.set_xlim(0, len(steps))
    axes.set_title(f"{name}: {label}", loc="left", fontsize=11, color=_INK, fontweight="bold")
    axes.set_xlabel("step", color=_MUTED, fontsize=9)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)


def _dots(axes: Any, outcomes: Sequence[Outcome]) -> None:
    for row, outcome in enumerate(reversed(outcomes)):
        values = (outcome.majority, outcome.baseline_accuracy, outcome.accuracy)
        axes.plot([min(values), max(values)], [row, row], color=_GRID, linewidth=5, zorder=1, solid_capstyle="round")
        axes.scatter(outcome.majority, row, s=60, color=_MUTED, zorder=2)
        axes.scatter(outcome.accuracy, row, s=70, color=_PLUM, zorder=3)
        axes.scatter(outcome.baseline_accuracy, row, s=150, facecolor="none", edgecolor=_GOLD, linewidth=2, zorder=4)
        numbers = f"drupe {outcome.accuracy:.1%}   {outcome.baseline} {outcome.baseline_accuracy:.1%}"
        numbers += f"   most frequent answer {outcome.majority:.1%}"
        axes.text(0, row + 0.24, numbers, fontsize=9, color=_MUTED)
    axes.set_yticks(range(len(outcomes)), [outcome.name for outcome in reversed(outcomes)], fontsize=10, color=_INK)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(-0.5, len(outcomes) - 0.3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("Accuracy on held-out data", loc="left", fontsize=11, color=_INK, fontweight="bold")
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.scatter([], [], color=_PLUM, label="drupe")
    axes.scatter([], [], s=60, facecolor="none", edgecolor=_GOLD, linewidth=2, label="scikit-learn")
    axes.scatter([], [], color=_MUTED, label="most frequent answer")
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, labelcolor=_INK)


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    curves = [(o.name, label, history) for o in outcomes for label, history in o.histories]
    figure = Figure(figsize=(13, 7.4), facecolor=_PAPER, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(curves), height_ratios=(1.25, 1))
    every = [figure.add_subplot(grid[0, i]) for i in range(len(curves))]
    for axes, (name, label, history) in zip(every, curves, strict=True):
        _curve(axes, name, label, history)
    every[0].set_ylabel("loss", color=_MUTED, fontsize=9)
    every[0].legend(frameon=False, fontsize=9, labelcolor=_INK)
    below = figure.add_subplot(grid[1, :])
    _dots(below, outcomes)
    for axes in (*every, below):
        axes.set_facecolor(_PAPER)
        axes.tick_params(colors=_MUTED, labelsize=9, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
    below.tick_params(axis="y", labelcolor=_INK)
    figure.savefig(path, dpi=150)
