"""The platform that kernels are written for does what they expect of it: one test for each of the self-test's cases."""

from __future__ import annotations

import os
import subprocess

import pytest


def run(selftest, case, seed):
    environment = os.environ | {"DRUPE_EMU_SEED": str(seed)}
    done = subprocess.run([selftest, case], capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_platform(selftest, case):
    run(selftest, case, seed=1)


@pytest.mark.parametrize("seed", [2, 3, 5, 8, 13])
def test_faults_are_found_in_any_order_of_threads(selftest, fault, seed):
    run(selftest, fault, seed)
