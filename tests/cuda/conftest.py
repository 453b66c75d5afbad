"""Tests of what only a GPU, real or emulated, shows."""

from __future__ import annotations

import pytest

import drupe


def pytest_collection_modifyitems(items):
    """Skip this folder where there is no GPU: the reason says what is missing."""
    status = drupe.cuda_status()
    if status["available"]:
        return
    here = [item for item in items if "tests/cuda/" in item.path.as_posix()]
    for item in here:
        item.add_marker(pytest.mark.skip(reason=f"no CUDA: {status['reason']}"))
