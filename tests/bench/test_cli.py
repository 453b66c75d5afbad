from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import drupe
from drupe.bench import cases as catalogue
from drupe.bench import harness, machine
from drupe.cli import bench as command
from drupe.cli.app import app


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def toy(monkeypatch, make_case, ones):
    """Replace the cases by one that takes no time, and the limits by made-up ones."""

    def install(drupe_call=lambda: 1, peers=None, reference=None):
        case = make_case(drupe_call, peers, reference or (lambda: 1))
        monkeypatch.setattr(catalogue, "collect", lambda *args, **kwargs: [case])
        limits = machine.Limits(1, "scalar", {"fma_f32": 1e9, "dot_bf16": None}, {}, 1e-3, levels={})
        monkeypatch.setattr(machine.Limits, "measure", lambda *_: limits)
        monkeypatch.setattr(harness, "QUICK", harness.Effort(rounds=3, min_sample_s=1e-5, warmup_s=0))

    return install


def test_info(run):
    result = run("info")
    assert result.exit_code == 0
    for text in (
        drupe.__version__,
        drupe.cpu_isa(),
        "threads",
        "CUDA",
        "available" if drupe.cuda_status()["available"] else "not available",
        machine.cpu_model()[:10],
    ):
        assert text in result.output


def test_info_as_json_in_a_process_of_its_own():
    environment = os.environ | {"DRUPE_CPU_ISA": "scalar", "DRUPE_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "drupe.cli", "info", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["version"] == drupe.__version__
    assert facts["cpu"]["isa"] == "scalar"
    assert facts["cpu"]["isa_reason"] == "set by DRUPE_CPU_ISA"
    assert facts["cpu"]["isas"] == drupe.cpu_isas()
    assert facts["cpu"]["threads"] == 3
    assert set(facts["cuda"]) == {"built", "emulated", "available", "reason"}
    assert facts["cuda"]["available"] or facts["cuda"]["reason"]
    assert set(facts["memory"]["pool"]) == {"in_use_bytes", "cached_bytes", "peak_bytes"}


def test_bench_of_gemm_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "run.json"
    arguments = ["bench", "gemm", "--quick", "--peers", "none", "--threads", "1", "--json", str(path)]
    done = subprocess.run([sys.executable, "-m", "drupe.cli", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fma_f32" in done.stdout
    made = json.loads(path.read_text())
    assert made["command"].endswith("bench gemm --quick --peers none --threads 1 --json " + str(path))
    assert made["threads"] == made["limits"]["threads"] == 1
    assert made["isa"] == drupe.cpu_isa()
    assert made["limits"]["compute_gflops"]["fma_f32"] > 0
    assert {case["op"] for case in made["cases"]} == {"gemm"}
    for case in made["cases"]:
        assert case["ok"]
        assert case["device"] == "cpu"
        assert list(case["timings"]) == ["drupe"]
        assert len(case["timings"]["drupe"]["samples_s"]) >= 3
        assert case["limit"]["fraction"] > 0


def test_json_on_standard_output_is_all_there_is_on_it(toy, capsys):
    toy()
    assert command.run(command.Options(json_file="-", quick=True, peers="none")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["cases"][0]["ok"]
    assert "toy" in printed.err


def test_a_wrong_result_exits_with_one(toy, run):
    toy(lambda: 2)
    result = run("bench", "--quick", "--peers", "none")
    assert result.exit_code == 1
    assert "the error is 1" in result.output


def test_a_regression_exits_with_one(toy, run, tmp_path):
    toy()
    path = tmp_path / "old.json"
    assert run("bench", "--quick", "--peers", "none", "--json", str(path)).exit_code == 0
    old = json.loads(path.read_text())
    timing = old["cases"][0]["timings"]["drupe"]
    timing["spread"], timing["median_s"] = 0.0, timing["median_s"] / 1000
    path.write_text(json.dumps(old))
    result = run("bench", "--quick", "--peers", "none", "--compare", str(path), "--threshold", "10")
    assert result.exit_code == 1
    assert "slower" in result.output
    # A threshold above the change lets it pass.
    assert run("bench", "--quick", "--peers", "none", "--compare", str(path), "--threshold", "1e9").exit_code == 0


def test_peers_are_shown_with_their_state(toy, run, monkeypatch):
    def broken():
        raise RuntimeError("cannot")

    monkeypatch.setattr("drupe.bench.peers.installed", lambda name: name != "jax")
    toy(peers={"numpy": lambda: lambda: 1, "torch": broken, "jax": lambda: lambda: 1})
    result = run("bench", "--quick")
    assert result.exit_code == 0
    assert "Not installed, so absent: jax" in result.output
    assert "torch: error: RuntimeError: cannot" in result.output
    assert "×)" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no cases for nope: expected some of"),
        (["gemm", "--filter", "no such case"], "no case matches"),
        (["gemm", "--peers", "numpy,tensorflow"], "no peer tensorflow"),
        (["gemm", "--threads", "100000"], "--threads 100000"),
        (["gemm", "--isa", "mmx"], "--isa mmx: this build"),
        (["gemm", "--plot", "roof.docx"], ".png, .svg or .pdf"),
        (["gemm", "--json", "/no/such/dir/run.json"], "there is no directory"),
        (["gemm", "--compare", "/no/such/file.json"], "No such file"),
        (["gemm", "--threads", "0"], ""),
        (["--no-such-option"], ""),
    ],
)
def test_wrong_usage_exits_with_two(run, arguments, message):
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_unknown_ops_are_answered_with_the_known(run):
    result = run("bench", "nope")
    assert all(name in result.output for name in ("elementwise", "exp", "gemm", "bert"))


def test_a_plot_without_matplotlib_names_the_extra(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("bench", "gemm", "--plot", "x.png")
    assert result.exit_code == 2
    assert 'pip install "drupe[demo]"' in result.output


def test_list_and_filter(run):
    result = run("bench", "gemm", "--list", "--filter", "BFLOAT16")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines
    assert all(line.startswith("gemm ") and "bfloat16" in line for line in lines)


def test_settings_are_restored(toy, run):
    toy()
    before = drupe.cpu_isa(), drupe.num_threads(), os.sched_getaffinity(0)
    assert run("bench", "--quick", "--peers", "none", "--threads", "1", "--isa", "scalar").exit_code == 0
    assert (drupe.cpu_isa(), drupe.num_threads(), os.sched_getaffinity(0)) == before


def test_help_names_the_exit_codes(run):
    for arguments in (["--help"], ["bench", "--help"], ["info", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "Exit codes: 0 success; 1 a failed check" in " ".join(result.output.split())


def test_version(run):
    assert run("--version").output == f"drupe {drupe.__version__}\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extras_are_named(missing):
    code = f"import sys; sys.modules['{missing}'] = None; from drupe.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install "drupe[cli]"' in done.stderr
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_passes_its_options_and_its_exit_code_on(run, monkeypatch, tmp_path):
    seen = {}

    def fake(out, **options):
        seen.update(out=out, **options)
        return 1

    monkeypatch.setattr("drupe.cli.demo.demo", fake)
    result = run("demo", "--out", str(tmp_path), "--seed", "7", "--quick", "--json")
    assert result.exit_code == 1
    assert seen == {"out": tmp_path, "seed": 7, "quick": True, "as_json": True}
