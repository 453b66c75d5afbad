"""Tests of what only a GPU, real or emulated, shows; where the self-test of its platform lies."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

import drupe
from drupe import _C


def pytest_collection_modifyitems(items):
    """Skip this folder where there is no GPU: the reason says what is missing."""
    status = drupe.cuda_status()
    if status["available"]:
        return
    here = [item for item in items if "tests/cuda/" in item.path.as_posix()]
    for item in here:
        item.add_marker(pytest.mark.skip(reason=f"no CUDA: {status['reason']}"))


@functools.cache
def executable() -> Path | None:
    """Beside the module, or where both were built; None in a build without CUDA, or where no device is."""
    path = Path(_C.__file__).resolve().parent / "drupe_cuda_selftest"
    return path if drupe.cuda_status()["available"] and path.exists() else None


@functools.cache
def cases() -> list[str]:
    path = executable()
    if path is None:
        # The emulated build always has it: without it these tests would pass by not being there.
        assert not drupe.cuda_status()["emulated"], "no drupe_cuda_selftest beside drupe._C"
        return []
    return subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases())
    if "fault" in metafunc.fixturenames:
        metafunc.parametrize("fault", [name for name in cases() if name.startswith("fault.")])


@pytest.fixture(scope="session")
def selftest():
    """The executable; skips where there is none."""
    path = executable()
    if path is None:
        pytest.skip("no drupe_cuda_selftest beside drupe._C, or no device")
    return path
