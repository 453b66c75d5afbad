"""Every declared case is sound: it says what it is, and drupe's output is right (at the quick size)."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from drupe import ops
from drupe.bench import cases as catalogue
from drupe.bench import peers
from drupe.bench.harness import DRUPE, Effort, as_arrays, run_case

EFFORT = Effort(rounds=1, min_sample_s=0, warmup_s=0)
CASES = catalogue.collect(quick=True)

# The ops that do no work, each on an array of (2, 3, 4): they have no case.
VIEWS = {
    "broadcast_to": lambda x: ops.broadcast_to(x, (5, 2, 3, 4)),
    "flatten": ops.flatten,
    "getitem": lambda x: ops.getitem(x, (0, slice(None, None, -1))),
    "permute": lambda x: ops.permute(x, (2, 0, 1)),
    "reshape": lambda x: ops.reshape(x, (6, 4)),
    "split": lambda x: ops.split(x, 3, 1),
    "split_heads": lambda x: ops.split_heads(x, 2),
    "squeeze": lambda x: ops.squeeze(x[:1]),
    "transpose": ops.transpose,
    "unsqueeze": lambda x: ops.unsqueeze(x, 1),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_drupe_is_right_and_so_is_numpy(case):
    timings = run_case(case, ["numpy"], EFFORT, installed=peers.installed)
    for name in timings:
        assert timings[name].status == "ok", f"{name}: {timings[name].message}"
    assert timings[DRUPE].samples_s


@pytest.mark.parametrize("op", sorted({name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}))
def test_every_op_is_measured_or_a_view(op, monkeypatch, rng):
    if op in VIEWS:
        x = np.zeros((2, 3, 4), np.float32)
        assert all(np.shares_memory(x, y) for y in as_arrays(VIEWS[op](x)))
        return
    case = next((case for case in CASES if case.op == op), None)
    assert case is not None, f"{op} is in no module of bench/ops"
    calls = []
    function = getattr(ops, op)
    monkeypatch.setattr(ops, op, lambda *args, **kwargs: calls.append(op) or function(*args, **kwargs))
    case.setup(rng).drupe()
    assert calls, case.label


@pytest.mark.parametrize("quick", [True, False])
def test_declarations(quick):
    cases = catalogue.collect(quick=quick)
    labels = [case.label for case in cases]
    assert len(set(labels)) == len(labels)
    for case in cases:
        assert case.flops > 0, case.label
        assert case.bytes_read > 0, case.label
        assert case.bytes_written >= 0, case.label
        assert np.isfinite([case.flops, case.bytes_read, case.bytes_written]).all()


def test_selection():
    assert {case.op for case in catalogue.collect(["gemm"])} == {"gemm"}
    assert catalogue.collect(["gemm"], text="GELU")
    assert not catalogue.collect(["gemm"], text="no such case")
    assert {case.op for case in catalogue.collect(["bert"])} == {"bert"}
    assert {case.op for case in catalogue.collect(["exp", "log_softmax"])} == {"exp", "log_softmax"}
    elementwise = catalogue.collect(["elementwise"])
    assert {"add", "exp", "where"} < {case.op for case in elementwise}
    assert len(catalogue.collect(["exp", "elementwise"])) == len(elementwise)
    with pytest.raises(ValueError, match=r"no cases for nope, never: expected some of .*gemm"):
        catalogue.collect(["gemm", "nope", "never"])


def test_every_peer_of_every_case_is_known():
    for case in catalogue.collect(quick=True):
        for name in case.setup(np.random.default_rng(0)).peers:
            assert name.partition(":")[0] in peers.NAMES, case.label


def test_suites():
    ops, models = (catalogue.collect(suite=suite, quick=True) for suite in ("ops", "models"))
    everything = catalogue.collect(quick=True)
    assert sorted(case.label for case in (*ops, *models)) == sorted(case.label for case in everything)
    assert {"gemm", "softmax"} <= {case.op for case in ops}
    assert "bert" in {case.op for case in models}
    aimed = catalogue.collect(suite="targets", quick=True)
    assert [case.label for case in aimed] == [case.label for case in everything if case.target is not None]
    assert {"gemm", "bert"} <= {case.op for case in aimed}
    with pytest.raises(ValueError, match=r"no cases for bert: expected some of"):
        catalogue.collect(["bert"], suite="ops")
    with pytest.raises(ValueError, match=r'no suite "speed": expected one of ops, models, targets, all'):
        catalogue.collect(suite="speed")


def test_a_gpu_is_spared_what_is_for_the_cpu():
    here, there = (catalogue.collect(["gpt2"], quick=True, device=device) for device in ("cpu", "cuda"))
    assert [case.label for case in there] == [case.label for case in here if not case.cpu_only]
    assert len(there) < len(here)
