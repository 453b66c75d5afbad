"""Fixtures that every suite shares."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import drupe

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=drupe.cpu_isas())
def isa(request):
    """Run the test once on every instruction set that this machine has."""
    before = drupe.cpu_isa()
    drupe.set_cpu_isa(request.param)
    yield request.param
    drupe.set_cpu_isa(before)


CUDA = ["cuda"] if drupe.cuda_status()["available"] else []


@pytest.fixture(params=drupe.cpu_isas() + CUDA)
def backend(request):
    """Run the test once on every instruction set that this machine has, and on its GPU, real or emulated."""
    if request.param != "cuda":
        before = drupe.cpu_isa()
        drupe.set_cpu_isa(request.param)
        yield request.param
        drupe.set_cpu_isa(before)
    else:
        with drupe.default_device("cuda"):
            yield request.param


@pytest.fixture(params=["cpu", *CUDA])
def device(request):
    """Run the test on the best instruction set, and on the GPU, real or emulated."""
    with drupe.default_device(request.param):
        yield request.param


@pytest.fixture
def rng(request):
    """A generator seeded by the test's name: other numbers in every test, the same in every run."""
    return np.random.default_rng(list(request.node.nodeid.encode()))
