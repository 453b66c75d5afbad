from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import drupe
from drupe.bench import memory
from drupe.bench.harness import (
    DRUPE,
    Effort,
    Prepared,
    Result,
    Timing,
    as_arrays,
    relative_error,
    run_case,
    time_interleaved,
)

EFFORT = Effort(rounds=5, min_sample_s=0.01, warmup_s=0.0, max_round_s=10)


def everything(name):
    return True


def test_samples_hold_as_many_calls_as_fill_them(clock):
    timings = time_interleaved({"fast": clock.call("fast", 0.003), "slow": clock.call("slow", 2.0)}, EFFORT, clock)
    assert timings["fast"].calls == 4
    assert timings["slow"].calls == 1
    assert timings["fast"].samples_s == pytest.approx([0.003] * 5)
    assert timings["slow"].samples_s == pytest.approx([2.0] * 5)


def test_rounds_interleave_and_rotate(clock):
    contenders = {name: clock.call(name, 1.0) for name in "abc"}
    time_interleaved(contenders, EFFORT, clock)
    warmup, rounds = clock.log[:6], clock.log[6:]
    assert warmup == list("aabbcc")
    assert rounds == list("abcbcacababcbca")


def test_warm_up_lasts_as_long_as_asked(clock):
    effort = Effort(rounds=3, min_sample_s=0.1, warmup_s=1.0)
    time_interleaved({"a": clock.call("a", 0.25)}, effort, clock)
    assert len(clock.log) == 4 + 3


def test_calibration_takes_the_fastest_call_so_that_a_cold_first_one_does_not_count(clock):
    call = clock.call("a", [5.0] + [0.003] * 50)
    assert time_interleaved({"a": call}, EFFORT, clock)["a"].calls == 4


def test_long_rounds_are_fewer_but_three_at_least(clock):
    effort = Effort(rounds=9, min_sample_s=0.01, warmup_s=0, max_round_s=5)
    timings = time_interleaved({"a": clock.call("a", 4.0), "b": clock.call("b", 4.0)}, effort, clock)
    assert len(timings["a"].samples_s) == len(timings["b"].samples_s) == 3


def test_garbage_is_not_collected_while_timing(clock):
    seen = []

    def call():
        seen.append(gc.isenabled())
        clock.now += 1

    time_interleaved({"a": call}, EFFORT, clock)
    assert not any(seen[2:])
    assert gc.isenabled()


def test_median_and_spread():
    timing = Timing(samples_s=[1.0, 2.0, 3.0, 4.0, 100.0])
    assert timing.median_s == 3.0
    assert timing.spread == pytest.approx((4 - 2) / 3)
    assert Timing().median_s is None
    assert Timing().spread is None


def test_ratio_is_the_median_over_rounds_so_that_drift_cancels(clock, make_case, ones):
    # Both slow down threefold half way: the medians' ratio would depend on it, the rounds' does not.
    drift = [1.0] * 4 + [1.0, 1.0, 3.0, 3.0, 3.0]
    case = make_case(
        clock.call("drupe", [1.0 * d for d in drift], ones),
        {"numpy": lambda: clock.call("numpy", [2.0 * d for d in drift], ones)},
        lambda: ones,
    )
    timings = run_case(case, ["numpy"], EFFORT, installed=everything, clock=clock)
    assert timings["numpy"].ratio == pytest.approx(0.5)
    assert timings[DRUPE].ratio is None


def test_a_wrong_result_is_not_timed(clock, make_case, ones):
    case = make_case(clock.call("drupe", 1.0, ones + 0.5), {"numpy": lambda: clock.call("n", 1.0, ones)}, lambda: ones)
    timings = run_case(case, ["numpy"], EFFORT, installed=everything, clock=clock)
    assert timings[DRUPE].status == "wrong"
    assert "0.5" in timings[DRUPE].message
    assert clock.log == ["drupe", "n"]
    assert not Result(case, timings).ok


def test_a_wrong_peer_is_shown_and_the_rest_is_timed(clock, make_case, ones):
    case = make_case(
        clock.call("drupe", 1.0, ones),
        {"numpy": lambda: clock.call("n", 1.0, 2 * ones), "torch": lambda: clock.call("t", 2.0, ones)},
        lambda: ones,
    )
    timings = run_case(case, ["numpy", "torch"], EFFORT, installed=everything, clock=clock)
    assert timings["numpy"].status == "wrong"
    assert not timings["numpy"].samples_s
    assert timings["torch"].ratio == pytest.approx(0.5)
    assert Result(case, timings).ok


def test_without_a_reference_the_first_peer_is_it(clock, make_case, ones):
    case = make_case(clock.call("drupe", 1.0, ones), {"numpy": lambda: clock.call("n", 1.0, ones + 1)})
    timings = run_case(case, ["numpy"], EFFORT, installed=everything, clock=clock)
    assert timings[DRUPE].status == "wrong"
    alone = run_case(case, [], EFFORT, installed=everything, clock=clock)
    assert list(alone) == [DRUPE]
    assert alone[DRUPE].status == "ok"


def test_peers_that_are_absent_or_raise_are_shown(clock, make_case, ones):
    def broken():
        raise RuntimeError("no such kernel\nand more")

    case = make_case(
        clock.call("drupe", 1.0, ones),
        {
            "numpy": lambda: broken,
            "torch:nhwc": lambda: clock.call("t", 1.0, ones),
            "jax": broken,
            "onnxruntime": broken,
        },
        lambda: ones,
    )
    asked = ["numpy", "torch", "jax"]
    timings = run_case(case, asked, EFFORT, installed=lambda name: name != "torch", clock=clock)
    assert timings["torch:nhwc"].status == "absent"
    assert timings["numpy"].status == timings["jax"].status == "error"
    assert timings["jax"].message == "RuntimeError: no such kernel"
    assert "onnxruntime" not in timings
    assert len(timings[DRUPE].samples_s) == EFFORT.rounds


@pytest.mark.parametrize("where", ["setup", "call"])
def test_an_error_of_drupe_is_a_failure(clock, make_case, where):
    def broken(*args):
        raise ValueError("bad shape")

    case = make_case(broken, reference=lambda: np.ones(1))
    if where == "setup":
        case = type(case)(**{**vars(case), "setup": broken})
    timings = run_case(case, [], EFFORT, installed=everything, clock=clock)
    assert timings[DRUPE].status == "error"
    assert timings[DRUPE].message == "ValueError: bad shape"
    assert not Result(case, timings).ok


def test_a_peers_view_brings_its_output_into_form(clock, make_case, ones):
    matrix = np.arange(6.0).reshape(2, 3)
    case = make_case(
        clock.call("drupe", 1.0, matrix),
        {"numpy": lambda: Prepared(clock.call("n", 1.0, matrix.T), view=lambda y: y.T)},
        lambda: matrix,
    )
    assert run_case(case, ["numpy"], EFFORT, installed=everything, clock=clock)["numpy"].status == "ok"


@pytest.mark.parametrize(
    ("actual", "expected", "error", "message"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5, ""),
        ([0.5], [0.0], 0.5, ""),
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], 0.0, ""),
        ([1.0, np.nan], [1.0, 2.0], np.inf, "non-finite"),
        ([1.0, 2.0], [1.0, np.inf], np.inf, "non-finite"),
        ([-np.inf], [np.inf], np.inf, "non-finite"),
        ([1.0], [[1.0]], np.inf, r"shape is \(1,\), expected \(1, 1\)"),
        ([], [], 0.0, ""),
    ],
)
def test_relative_error(actual, expected, error, message):
    import re

    found, said = relative_error(np.array(actual), np.array(expected))
    assert found == pytest.approx(error)
    assert re.search(message, said)
    assert bool(message) == bool(said)


def test_relative_error_counts_outputs():
    assert relative_error((np.ones(1), np.ones(1)), np.ones(1)) == (float("inf"), "2 outputs, expected 1")
    assert relative_error((np.ones(2), None), [np.ones(2)]) == (0.0, "")


def test_outputs_of_every_kind_become_arrays():
    x = np.arange(3, dtype=np.float32)
    brain = drupe.tensor(x.astype(ml_dtypes.bfloat16))
    learned = drupe.tensor(x, requires_grad=True)
    sparse = drupe.SparseRows(drupe.tensor([1, 2]).raw, drupe.tensor(x).raw, (5,))
    found = as_arrays((x, [drupe.tensor(x)], {"a": brain, "b": None}, learned, sparse, 3.0))
    assert [a.tolist() for a in found] == [[0, 1, 2]] * 4 + [[1, 2], [0, 1, 2], 3.0]


def test_a_torch_like_bfloat16_is_widened():
    wide = SimpleNamespace(numpy=lambda: np.ones(2), dtype="torch.float32", detach=lambda: wide)
    narrow = SimpleNamespace(dtype="torch.bfloat16", float=lambda: wide, detach=lambda: narrow)
    assert as_arrays(narrow)[0].tolist() == [1, 1]


def test_contenders_settle_and_warm_the_caches_before_each_sample(clock):
    pauses = []
    contenders = {"short": clock.call("short", 0.006), "long": clock.call("long", 1.0)}
    effort = Effort(rounds=2, min_sample_s=0.01, warmup_s=0, settle_s=0.5)
    timings = time_interleaved(contenders, effort, clock, pauses.append)
    assert pauses == [0.5] * 4
    assert clock.log[4:] == ["short"] * 3 + ["long"] * 2 + ["short"] * 3
    assert timings["short"].samples_s == pytest.approx([0.006] * 2)


@pytest.mark.parametrize(
    ("target", "ratios", "best", "met"),
    [
        (1.0, {"a": 0.5, "b": 0.9}, "b", True),
        (0.8, {"a": 0.5, "b": 0.9}, "b", False),
        (0.9, {"a": 0.5, "b": 0.9, "c": None}, "b", True),
        (None, {"a": 0.5}, "a", None),
        (1.0, {"a": None}, None, None),
        (1.0, {}, None, None),
    ],
)
def test_a_target_is_held_against_the_fastest_peer(make_case, ones, target, ratios, best, met):
    timings = {DRUPE: Timing()} | {name: Timing(ratio=ratio) for name, ratio in ratios.items()}
    result = Result(make_case(ones, target=target), timings)
    assert result.best_peer == best
    assert result.met is met


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a system without peaks that can be reset")
def test_peak_memory_is_what_the_call_adds(clock, make_case):
    size = 64 << 20
    held = []

    def hungry():
        held.append(np.ones(size, np.uint8))
        held.clear()
        return clock.call("hungry", 0.01, np.ones(1))()

    case = make_case(clock.call(DRUPE, 0.01, np.ones(1)), {"hungry": lambda: hungry})
    timings = run_case(case, ["hungry"], EFFORT, installed=everything, clock=clock)
    assert timings["hungry"].status == "ok"
    assert 0.9 * size < timings["hungry"].peak_bytes < 2 * size
    assert timings[DRUPE].peak_bytes < size // 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a system without peaks that can be reset")
def test_what_was_freed_before_hides_no_peak():
    for _ in range(2):  # from then on the allocator keeps blocks of this size for itself
        np.ones(31 << 20, np.uint8)
    freed = [np.ones(20 << 20, np.uint8) for _ in range(3)]
    freed.clear()
    with memory.watch() as peak:
        np.ones(40 << 20, np.uint8)
    assert peak.added_bytes > 0.9 * (40 << 20)


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "missing")
    with memory.watch() as peak:
        pass
    assert peak.added_bytes is None
