from __future__ import annotations

import sys

import numpy as np
import pytest

from drupe.data import WordPiece, digits, fair


def test_digits():
    pytest.importorskip("sklearn")
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    np.testing.assert_array_equal(np.unique(labels), np.arange(10))


def test_fair():
    pytest.importorskip("statsmodels")
    table = fair()
    assert table.categorical.shape == (6366, 8)
    assert table.numeric.shape == (6366, 6)
    assert table.target.mean() == pytest.approx(0.3225, abs=1e-4)
    np.testing.assert_array_equal(table.categorical.min(axis=0), 0)
    np.testing.assert_array_equal(table.categorical.max(axis=0) + 1, table.cardinalities)
    row = table.describe(0)
    assert row["age"] == f"{table.numeric[0, table.numeric_names.index('age')]:g}"
    assert row["occupation"] == "farming, unskilled or semi-skilled"


@pytest.mark.parametrize(
    ("function", "module", "package"),
    [
        (digits, "sklearn.datasets", "scikit-learn"),
        (fair, "statsmodels.datasets.fair", "statsmodels"),
        (lambda: WordPiece.train(["a"]), "tokenizers", "tokenizers"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, function, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'drupe\[demo\]'"):
        function()
