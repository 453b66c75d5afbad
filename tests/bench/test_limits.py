from __future__ import annotations

import os
from pathlib import Path

import pytest

import drupe
from drupe.bench import machine
from drupe.bench.machine import Limits
from drupe.runtime import measure_limit


@pytest.fixture
def threads():
    before = drupe.num_threads()
    yield drupe.set_num_threads
    drupe.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["fma_f32", "read", "copy", "copy_nt"])
def test_every_limit_is_measured_on_every_isa(isa, threads, name, count):
    threads(count)
    for size in (0, 100_000) if name != "fma_f32" else (0,):
        rate = measure_limit(name, working_set=size, seconds=1e-3)
        assert 1e6 < rate < 1e15


def test_bf16_dot_where_the_processor_has_it(isa):
    rate = measure_limit("dot_bf16", seconds=1e-3)
    has_it = isa == "avx512" and "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert (rate is not None) == has_it
    assert rate is None or rate > 1e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flops", {}), r'\[measure_limit\] name is "flops": expected fma_f32'),
        (("read", {"working_set": -1}), "bytes is -1"),
        (("read", {"working_set": 1 << 50}), "bytes is 1125899906842624"),
        (("read", {"seconds": 0.0}), "seconds is 0"),
        (("read", {"seconds": float("nan")}), "seconds is nan"),
        (("read", {"seconds": 1e9}), "seconds is"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_limit(arguments[0], **arguments[1])


def limits(**bandwidth):
    table = {(kind, size): rate for kind, rates in bandwidth.items() for size, rate in rates.items()}
    return Limits(1, drupe.cpu_isa(), {"fma_f32": 100e9, "dot_bf16": 50e9}, table, 1e-3, levels={"dram": 1 << 30})


def test_peak_depends_on_the_dtype():
    some = limits()
    assert some.peak("float32") == ("fma_f32", 100e9)
    assert some.peak("float64") == ("fma_f32 / 2", 50e9)
    assert some.peak("bfloat16") == ("fma_f32", 100e9)
    some.compute["dot_bf16"] = 300e9
    assert some.peak("bfloat16") == ("dot_bf16", 300e9)
    assert some.peak("float16") == ("fma_f32", 100e9)


def test_the_bound_is_what_takes_longest():
    some = limits(copy={1 << 20: 10e9}, copy_nt={1 << 20: 5e9}, read={1 << 20: 40e9})
    half = (1 << 20) / 2
    assert some.bound("float32", 100e9, half, half) == ("fma_f32", 100e9, 1.0)
    assert some.bound("float32", 1.0, half, half) == ("copy", 10e9, (1 << 20) / 10e9)
    assert some.bound("float32", 1.0, 1 << 20, 64) == ("read", 40e9, ((1 << 20) + 64) / 40e9)
    assert some.bound("float32", 50e9, 0, 0) == ("fma_f32", 100e9, 0.5)
    # Few bytes out of a large table come at the table's rate.
    assert some.bound("float32", 1.0, 1000, 0, 1 << 20) == ("read", 40e9, 1000 / 40e9)


def test_bandwidth_is_measured_once_per_working_set_and_never_beyond_main_memorys():
    some = limits(copy={1 << 30: 7e9}, copy_nt={1 << 30: 9e9})
    assert some.bandwidth_at(1 << 40, 1 << 40) == ("copy", 9e9)
    name, rate = some.bandwidth_at(100_000, 0)
    assert name == "read"
    assert some.bandwidth["read", 1 << 17] == rate
    assert some.bandwidth_at(110_000, 0) == (name, rate)


def test_measuring_bandwidth_keeps_the_instruction_set(isa):
    limits().bandwidth_at(1 << 16, 0)
    assert drupe.cpu_isa() == isa


@pytest.mark.parametrize(("value", "exponent"), [(1, 0), (2, 1), (3, 2), (90, 6), (91, 7), (1 << 20, 20)])
def test_round_log2(value, exponent):
    assert machine.round_log2(value) == exponent


def test_caches_are_read_from_sysfs(tmp_path):
    for i, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "1G")]
    ):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert machine.caches(tmp_path) == {"l1d": 48 << 10, "l2": 2 << 20, "l3": 1 << 30}
    assert machine.caches(tmp_path / "none") == {}


def test_the_machine_is_described():
    described = machine.describe()
    assert described["cpu"]
    assert described["name"] == machine.slug()
    assert described["cpus"] == len(os.sched_getaffinity(0))
    assert described["memory_bytes"] > 1 << 28
    assert all(c in "abcdefghijklmnopqrstuvwxyz0123456789.-" for c in machine.slug())


def test_working_sets_grow_with_the_level():
    sets = machine.working_sets(2)
    assert sets["dram"] >= 1 << 28
    assert list(sets.values()) == sorted(sets.values())
