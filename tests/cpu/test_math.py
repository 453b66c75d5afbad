"""The errors of the elementary functions on float32, measured over all exponents and, densely, where they bend."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf, expit

from drupe import ops

# Largest error in units of the last place of the result, where that is a normal number.
BOUNDS = {
    "exp": (np.exp, 1.25),
    "expm1": (np.expm1, 2.1),
    "log": (np.log, 1.0),
    "log1p": (np.log1p, 2.5),
    "tanh": (np.tanh, 3.0),
    "erf": (erf, 2.7),
    "sigmoid": (expit, 2.6),
    "sin": (np.sin, 1.0),
    "cos": (np.cos, 1.0),
    "sqrt": (np.sqrt, 0.51),
    "reciprocal": (np.reciprocal, 0.51),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5),
}
SMALLEST_NORMAL = 2.0**-126


@pytest.fixture(scope="module")
def sample():
    every_exponent = np.arange(0, 2**32, 4001, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = [np.linspace(-20, 20, 400_001), np.linspace(-110, -80, 60_001), np.linspace(0.25, 4, 200_001)]
    with np.errstate(all="ignore"):
        every_exponent = every_exponent + np.float32(0)  # no signalling NaN
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 2.0**-126, -1.0])
    return np.concatenate([every_exponent, *dense, special]).astype(np.float32)


@pytest.mark.parametrize("name", BOUNDS)
def test_errors_stay_within_the_stated_bounds(isa, sample, name):
    reference, bound = BOUNDS[name]
    with np.errstate(all="ignore"):
        expected = reference(sample.astype(np.float64))
        rounded = expected.astype(np.float32)
        spacing = np.spacing(np.abs(rounded)).astype(np.float64)
    actual = getattr(ops, name)(sample)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    exact = np.isinf(rounded) | (expected == 0)
    np.testing.assert_array_equal(actual[exact], rounded[exact])
    np.testing.assert_array_equal(np.signbit(actual[exact]), np.signbit(rounded[exact]))
    normal = np.isfinite(rounded) & (np.abs(expected) >= SMALLEST_NORMAL)
    error = np.abs(actual[normal].astype(np.float64) - expected[normal]) / spacing[normal]
    worst = int(np.argmax(error))
    assert error[worst] <= bound, f"{error[worst]:.2f} ulp at {sample[normal][worst]!r}"
    tiny = np.isfinite(rounded) & (np.abs(expected) < SMALLEST_NORMAL)
    # exp gives 0 where the result would be subnormal, and sigmoid is 1 / (1 + e^-x), where e^-x overflows first.
    slack = SMALLEST_NORMAL if name in ("exp", "sigmoid") else 2.0**-148
    assert np.all(np.abs(actual[tiny].astype(np.float64) - expected[tiny]) <= slack)
