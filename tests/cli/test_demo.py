from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("statsmodels")
pytest.importorskip("tokenizers")

from drupe.cli import demo, demo_ops, demo_tasks

CASES = {case.name: case for case in demo_ops.cases()}


@pytest.mark.parametrize("name", CASES)
def test_every_op_holds_against_numpy(rng, name):
    check = demo_ops.check(CASES[name], rng, rounds=1)
    assert check.passed, check
    assert np.isfinite(check.gradient_error) == CASES[name].gradient


@pytest.mark.parametrize("kind", ["value", "shape", "gradient"])
def test_a_wrong_op_is_found(rng, kind):
    right = CASES["softmax"]
    wrong = {
        "value": lambda x: right.drupe(x) + 1e-3,
        "shape": lambda x: right.drupe(x)[:-1],
        "gradient": lambda x: right.drupe(x.detach() if hasattr(x, "detach") else x) + 0 * x,
    }[kind]
    check = demo_ops.check(dataclasses.replace(right, drupe=wrong, gradient=kind != "shape"), rng, rounds=1)
    assert not check.passed


@pytest.fixture
def small(monkeypatch):
    """The demonstration with one network and two ops."""
    monkeypatch.setattr(demo_tasks, "TASKS", {"table": demo_tasks.table})
    monkeypatch.setattr(demo_ops, "cases", lambda: [CASES["gemm"], CASES["mse"]])


def deterministic(numbers):
    network = dict(numbers["networks"]["Wide & Deep"])
    del network["seconds"]
    for epochs in network["histories"].values():
        epochs.pop("seconds", None)
    return network


def test_the_same_seed_gives_the_same_numbers(small, tmp_path, capsys):
    results = []
    for i, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(i)
        assert demo.demo(out, seed=seed, quick=True, as_json=True) == demo.OK
        results.append(json.loads(capsys.readouterr().out))
        assert results[-1] == json.loads((out / "results.json").read_text())
        assert (out / "wide-deep-fair.safetensors").stat().st_size > 1000
        assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert deterministic(results[0]) == deterministic(results[1])
    assert deterministic(results[0])["fingerprint"] != deterministic(results[2])["fingerprint"]


def test_a_failed_check_is_the_exit_code(small, monkeypatch, tmp_path, capsys):
    broken = dataclasses.replace(CASES["gemm"], drupe=lambda a, b: a @ b * 1.01)
    monkeypatch.setattr(demo_ops, "cases", lambda: [broken])
    assert demo.demo(tmp_path, quick=True) == demo.FAILED
    assert "Wrong results: gemm" in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "_importable", lambda name: name != "sklearn")
    assert demo.demo(tmp_path) == demo.USAGE
    assert "needs scikit-learn" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo.demo(tmp_path / "file") == demo.USAGE
    assert "cannot write" in capsys.readouterr().err
