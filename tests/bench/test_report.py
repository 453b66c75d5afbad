from __future__ import annotations

import json

import pytest

import drupe
from drupe.bench import report
from drupe.bench.harness import DRUPE, Result, Timing
from drupe.bench.machine import Limits


def run(*cases, cpu="A", threads=1, isa="scalar"):
    return {"machine": {"cpu": cpu}, "threads": threads, "isa": isa, "cases": list(cases)}


def entry(name, median, spread=0.01, status="ok", op="gemm"):
    timing = {"status": status, "median_s": median, "spread": spread}
    fields = {"op": op, "name": name, "shapes": "4", "dtype": "float32", "device": "cpu"}
    return fields | {"timings": {DRUPE: timing}}


def verdict(before, after, threshold=0.05):
    (change,) = report.compare(run(before), run(after), threshold)
    return change.verdict


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (entry("a", 1.0), entry("a", 1.04), "same"),
        (entry("a", 1.0), entry("a", 1.06), "slower"),
        (entry("a", 1.06), entry("a", 1.0), "faster"),
        (entry("a", 1.0, spread=0.2), entry("a", 1.15), "same"),
        (entry("a", 1.0), entry("a", 1.15, spread=0.2), "same"),
        (entry("a", 1.0, spread=0.2), entry("a", 1.25), "slower"),
        (entry("a", 1.0), entry("a", None, status="wrong"), "broken"),
        (entry("a", None, status="error"), entry("a", 1.0), "fixed"),
        (entry("a", None, status="error"), entry("a", None, status="error"), "broken"),
    ],
)
def test_verdicts(before, after, expected):
    assert verdict(before, after) == expected


def test_threshold_is_an_option():
    assert verdict(entry("a", 1.0), entry("a", 1.2), 0.25) == "same"
    assert verdict(entry("a", 1.0), entry("a", 1.2), 0.0) == "slower"


def test_only_slower_and_broken_reject_a_run():
    verdicts = ("slower", "broken", "same", "faster", "new", "gone", "fixed")
    rejected = [v for v in verdicts if report.Change(("a",), 1.0, 1.0, v).regressed]
    assert rejected == ["slower", "broken"]


def test_new_and_gone_cases():
    old = run(entry("a", 1.0), entry("b", 2.0), entry("c", 3.0, op="softmax"))
    new = run(entry("a", 1.5), entry("d", 1.0))
    changes = report.compare(old, new)
    assert [(c.key[1], c.verdict) for c in changes] == [("a", "slower"), ("d", "new"), ("b", "gone")]
    assert changes[0].change == pytest.approx(0.5)
    assert changes[1].change is None


def test_differences_are_named():
    assert report.differences(run(), run()) == []
    found = report.differences(run(cpu="A", threads=1, isa="avx2"), run(cpu="B", threads=2, isa="avx512"))
    assert found == [
        "machine: A before, B now",
        "threads: 1 before, 2 now",
        "instruction set: avx2 before, avx512 now",
    ]


def test_round_trip(tmp_path, make_case):
    timings = {
        DRUPE: Timing(error=1e-7, calls=3, samples_s=[1.0, 2.0, 3.0]),
        "numpy": Timing(samples_s=[2.0, 2.0, 2.0], ratio=0.5, calls=1),
        "torch": Timing(status="absent", message="torch is not installed"),
        "jax": Timing(status="wrong", error=float("inf"), message="shape"),
    }
    limits = Limits(2, "avx2", {"fma_f32": 1e11, "dot_bf16": None}, {("copy", 1024): 2e9}, 0.1, {"l2": 1024})
    result = Result(make_case(lambda: None), timings, "copy", 2e9, 0.25)
    made = report.to_json([result], limits, ["drupe", "bench", "toy"])
    path = tmp_path / "run.json"
    path.write_text(json.dumps(made, allow_nan=False))
    again = report.load(path)
    assert again == made
    assert again["command"] == "drupe bench toy"
    assert again["versions"]["drupe"] == drupe.__version__
    assert again["limits"]["compute_gflops"] == {"fma_f32": 100.0, "dot_bf16": None}
    assert again["limits"]["bandwidth_gb_s"] == [{"kind": "copy", "working_set_bytes": 1024, "rate": 2.0}]
    (case,) = again["cases"]
    assert case["limit"] == {"name": "copy", "rate": 2e9, "fraction": 0.25}
    assert case["timings"][DRUPE]["median_s"] == 2.0
    assert case["timings"][DRUPE]["samples_s"] == [1.0, 2.0, 3.0]
    assert case["timings"]["torch"]["status"] == "absent"
    assert case["timings"]["jax"]["error"] is None
    assert [c.verdict for c in report.compare(again, made)] == ["same"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 99, "cases": []}', '{"schema": 1}', "\udcff"])
def test_what_is_no_run_is_an_error(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"run\.json: "):
        report.load(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        report.load(tmp_path / "none.json")
