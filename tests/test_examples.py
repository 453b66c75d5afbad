"""Every example runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from interpreter import python

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NEEDS = {"torch_function": "torch", "numpy_search": "sklearn", "checkpoint": "sklearn"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path):
    pytest.importorskip(NEEDS[path.stem])
    assert python(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')")
