from __future__ import annotations

import json

import pytest

from drupe.bench import machine, plot, report
from drupe.bench.harness import DRUPE, Result, Timing

pytest.importorskip("matplotlib")


def a_run(make_case, count):
    levels = {"l2": 1 << 20, "l3": 1 << 24, "dram": 1 << 30}
    rates = {(kind, size): 1e18 / size / 1e7 for size in levels.values() for kind in ("read", "copy", "copy_nt")}
    limits = machine.Limits(2, "avx2", {"fma_f32": 2e11, "dot_bf16": None}, rates, 0.1, levels)
    results = []
    for i in range(count):
        timings = {DRUPE: Timing(samples_s=[1e-3, 1e-3]), "numpy": Timing(samples_s=[2e-3, 2e-3], ratio=0.5)}
        timings["torch"] = Timing(status="absent")
        case = make_case(lambda: None, op=f"op{i % 3}", name=f"case {i}", flops=1e6, bytes_read=1e5)
        results.append(Result(case, timings, "copy", 1e9, 0.3))
    broken = Result(make_case(lambda: None, op="broken"), {DRUPE: Timing(status="error", message="no")})
    return json.loads(json.dumps(report.to_json([*results, broken], limits, ["drupe"])))


@pytest.mark.parametrize("count", [1, 14])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_roofline_is_drawn(tmp_path, make_case, count, suffix):
    path = tmp_path / f"roof{suffix}"
    plot.roofline(a_run(make_case, count), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert len(content) > 10_000


def test_nothing_to_draw_but_ceilings(tmp_path, make_case):
    path = tmp_path / "roof.svg"
    plot.roofline(a_run(make_case, 0), path)
    assert path.stat().st_size > 5_000


def test_cases_at_one_point_stand_apart(tmp_path, make_case):
    import numpy as np
    from matplotlib.figure import Figure

    run = a_run(make_case, 12)
    axes = Figure(figsize=(8, 6)).subplots()
    axes.set(xscale="log", yscale="log", xlim=(0.1, 100), ylim=(0.1, 100))
    cases = [case for case in run["cases"] if case["ok"]]
    plot._draw_points(axes, cases, {case["op"]: "black" for case in cases})
    places = np.array([note.xyann for note in axes.texts])
    distances = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(places))
    assert len(places) == 12
    assert distances.min() > 15
