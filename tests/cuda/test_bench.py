"""Every case of `drupe bench --device cuda` gives the right result there."""

from __future__ import annotations

import pytest

import drupe
from drupe.bench import cases as catalogue
from drupe.bench.harness import DRUPE, Effort, run_case
from drupe.runtime import measure_limit


@pytest.mark.parametrize("benchmark", catalogue.collect(quick=True, device="cuda"), ids=lambda case: case.label)
def test_case_is_right(benchmark):
    with drupe.default_device("cuda"):
        timings = run_case(
            benchmark,
            [],
            Effort(rounds=1, min_sample_s=0, warmup_s=0),
            installed=lambda name: False,
            finish=drupe.synchronize,
        )
    assert timings[DRUPE].status == "ok", timings[DRUPE].message


@pytest.mark.parametrize("name", ["fma_f32", "dot_bf16", "read", "copy"])
def test_limits_are_measured(name):
    rate = measure_limit(name, working_set=100_000, seconds=1e-3, device="cuda")
    assert rate is not None
    assert 0 < rate < 1e16
