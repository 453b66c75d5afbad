"""What the README says is so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=["an-op", "a-network"])
def test_examples_run(code):
    pytest.importorskip("sklearn")
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_benchmark_example_runs():
    command = next(line for block in blocks("bash") for line in block.splitlines() if line.startswith("drupe bench"))
    drupe = shutil.which("drupe", path=Path(sys.executable).parent)
    if drupe is None:
        pytest.skip("drupe is not installed beside this Python, so there is no drupe command to run")
    result = subprocess.run([drupe, *command.split()[1:]], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "gemm" in result.stdout


def test_the_layers_it_maps_exist():
    for path in re.findall(r"`((?:python|csrc|tests|bench)/[\w/.]+)`", README):
        if not re.search(r"/x\.|_x\.", path):
            assert (ROOT / path).exists(), path


def test_the_instruction_sets_it_names_are_built():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "set(DRUPE_ALL_ISAS scalar avx2 avx512)" in cmake
    assert "set(DRUPE_ALL_ISAS scalar neon)" in cmake


def test_the_core_needs_what_it_says():
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^dependencies = \["numpy[^"]*", "ml_dtypes[^"]*"\]', project, re.MULTILINE)
