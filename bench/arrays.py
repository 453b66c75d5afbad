"""The arrays of cases: their sizes, drawn in any dtype, and checked by some of their rows."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from drupe.bench.harness import Arrays, as_arrays

Shape = tuple[int, ...]

IN_CACHE, IN_MEMORY, SMALL = (1024, 768), (8192, 3072), (64, 128)
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float64": 1e-13}
_CHECKED_ROWS = 64

erf = np.vectorize(math.erf, otypes=[float])


def sizes(quick: bool) -> list[Shape]:
    """Return rows and columns of what fits in a cache, and of what does not."""
    return [SMALL] if quick else [IN_CACHE, IN_MEMORY]


def text(shape: Shape) -> str:
    """Return a shape as labels have it."""
    return "x".join(map(str, shape))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of a name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def normal(rng: np.random.Generator, shape: Shape, dtype: str = "float32") -> Any:
    """Draw from the standard normal distribution, in float32, and round to ``dtype``."""
    return rng.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(dtype), copy=False)


def exact(array: Any) -> Any:
    """Return floats in float64, and anything else as it is."""
    return array if array.dtype.kind in "biu" else array.astype(np.float64)


def sampled(output: Any) -> Arrays:
    """Return some rows of each array, evenly spread: a reference in float64 of them all would take long."""
    return [array[:: max(1, len(array) // _CHECKED_ROWS)] for array in as_arrays(output)]
