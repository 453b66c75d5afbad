"""What is no batch of a model with three categorical columns and two of numbers: the changes, and the errors."""

from __future__ import annotations

import numpy as np

COLUMN_ERRORS = [
    ({"numeric": None}, ValueError, r"numeric is missing: expected \(20, 2\)"),
    ({"numeric": np.zeros((20, 3), np.float32)}, ValueError, r"numeric is \(20, 3\)"),
    ({"categorical": np.zeros((20, 2), np.int64)}, ValueError, r"categorical is int64 \(20, 2\)"),
    ({"categorical": np.zeros((20, 3))}, ValueError, "categorical is float64"),
    ({"categorical": np.full((20, 3), 4)}, IndexError, r"column 0 holds 4: expected \[0, 3\)"),
    ({"categorical": np.full((20, 3), -1)}, IndexError, "column 0 holds -1"),
]
