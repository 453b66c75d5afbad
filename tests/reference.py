"""NumPy float64 references and the tolerances that go with them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from scipy.special import erf

FLOATS = ("float32", "float64", "float16", "bfloat16")
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def dtype(name):
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def f64(x):
    return np.asarray(x).astype(np.float64)


def tolerance(name, length=1):
    """Absolute and relative error to expect of a sum of `length` products of order 1, rounded to a dtype.

    float16 and bfloat16 accumulate in float32 and round once.
    """
    accumulate = EPSILON["float64"] if name == "float64" else EPSILON["float32"]
    return EPSILON[name] + 4 * accumulate * (1 + np.sqrt(length))


def assert_close(actual, expected, name, length=1, scale=1.0):
    """Compare with a float64 reference; `scale` is the size of the terms summed, where it is not about 1."""
    actual, expected = f64(actual), f64(expected)
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    bound = tolerance(name, length) * scale
    np.testing.assert_allclose(actual, expected, rtol=2 * tolerance(name), atol=2 * bound)


ACTIVATIONS = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
