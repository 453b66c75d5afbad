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


def philox4x32(counter, key, rounds=10):
    """Philox4x32 of Salmon et al. (2011) on arrays: four counter words and two key words, all uint64 below 2^32."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1)
