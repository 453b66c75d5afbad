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
# The same on float64, where what is not here goes through libm.
DOUBLE_BOUNDS = {
    "exp": (np.exp, 1.25),
    "expm1": (np.expm1, 2.3),
    "log": (np.log, 1.25),
    "log1p": (np.log1p, 2.6),
    "tanh": (np.tanh, 3.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2.6),
}
POW_BOUND, LIBM_POW_BOUND, CUBE_BOUND = 0.51, 0.75, 1.3
SMALLEST_NORMAL = 2.0**-126


@pytest.fixture(scope="module")
def sample():
    every_exponent = np.arange(0, 2**32, 4001, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = [np.linspace(-20, 20, 400_001), np.linspace(-110, -80, 60_001), np.linspace(0.25, 4, 200_001)]
    with np.errstate(all="ignore"):
        every_exponent = every_exponent + np.float32(0)  # no signalling NaN
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 2.0**-126, -1.0])
    return np.concatenate([every_exponent, *dense, special]).astype(np.float32)


def check(name, x, described, wide, slack):
    """Compare an op on ``x`` with its reference in a wider dtype; subnormal results may be off by ``slack``."""
    reference, bound = described
    with np.errstate(all="ignore"):
        expected = reference(x.astype(wide))
        rounded = expected.astype(x.dtype)
    actual = getattr(ops, name)(x)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(rounded))
    exact = np.isinf(rounded) | (rounded == 0)
    np.testing.assert_array_equal(actual[exact], rounded[exact])
    np.testing.assert_array_equal(np.signbit(actual[exact]), np.signbit(rounded[exact]))
    smallest = np.finfo(x.dtype).smallest_normal
    normal = np.isfinite(rounded) & (np.abs(rounded) >= smallest)
    error = np.abs(actual[normal].astype(wide) - expected[normal]) / np.spacing(np.abs(rounded[normal])).astype(wide)
    worst = int(np.argmax(error))
    assert error[worst] <= bound, f"{error[worst]:.2f} ulp at {x[normal][worst]!r}"
    tiny = np.isfinite(rounded) & (np.abs(rounded) < smallest)
    assert np.all(np.abs(actual[tiny].astype(wide) - expected[tiny]) <= slack)


@pytest.mark.parametrize("name", BOUNDS)
def test_errors_stay_within_the_stated_bounds(isa, sample, name):
    # exp gives 0 where the result would be subnormal, and sigmoid is 1 / (1 + e^-x), where e^-x overflows first.
    slack = SMALLEST_NORMAL if name in ("exp", "sigmoid") else 2.0**-148
    check(name, sample, BOUNDS[name], np.float64, slack)


@pytest.mark.parametrize("name", DOUBLE_BOUNDS)
def test_errors_of_doubles_stay_within_the_stated_bounds(isa, rng, name):
    every_exponent = rng.integers(0, 2**64, 300_000, dtype=np.uint64, endpoint=False).view(np.float64)
    dense = [rng.uniform(-20, 20, 300_000), rng.uniform(-760, 720, 60_000), rng.uniform(0.25, 4, 200_000)]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 1.7e308, -1.7e308, 2.0**-1022, -1.0])
    with np.errstate(all="ignore"):
        x = np.concatenate([every_exponent, *dense, special]) + 0.0  # no signalling NaN
    check(name, x, DOUBLE_BOUNDS[name], np.longdouble, 2.0**-1022 if name == "sigmoid" else 2.0**-1073)


def powers(rng):
    """Bases over all exponents, and exponents that take the result over all of its range."""
    base = np.concatenate([np.exp2(rng.uniform(-149, 128, 300_000)), rng.uniform(0.9, 1.1, 100_000)]).astype(np.float32)
    with np.errstate(divide="ignore"):
        exponent = rng.uniform(-155, 130, base.size) / np.log2(base.astype(np.float64))
    return base, np.clip(exponent, -3e38, 3e38).astype(np.float32)


def test_powers_stay_within_the_stated_bound(isa, rng):
    base, exponent = powers(rng)
    with np.errstate(all="ignore"):
        expected = np.power(base.astype(np.longdouble), exponent.astype(np.longdouble))
        rounded = expected.astype(np.float32)
        actual = ops.pow(base, exponent)
    normal = np.isfinite(rounded) & (expected >= SMALLEST_NORMAL)
    error = np.abs(actual[normal] - expected[normal]) / np.spacing(rounded[normal])
    bound = LIBM_POW_BOUND if isa == "scalar" else POW_BOUND
    assert error.max() <= bound
    tiny = expected < SMALLEST_NORMAL
    assert np.all(np.abs(actual[tiny] - expected[tiny]) <= bound * 2.0**-149)
    assert np.all(np.isinf(actual) == np.isinf(rounded))
    for few in (2, 3, -1):  # one operation or two
        with np.errstate(all="ignore"):
            expected = np.power(base.astype(np.longdouble), few)
            rounded = expected.astype(np.float32)
        kept = np.isfinite(rounded) & (rounded >= SMALLEST_NORMAL)
        error = np.abs(ops.pow(base, few)[kept] - expected[kept]) / np.spacing(rounded[kept])
        assert error.max() <= (CUBE_BOUND if few == 3 else POW_BOUND)


def test_special_powers_are_those_of_ieee_754(isa):
    special = [0.0, 1.0, 2.0, 0.5, 3.0, 2.5, 1e-45, 1e-3, 2.0**24 - 1, 2.0**24, 2.0**30, 3e38, np.inf]
    values = np.array([*special, *(-x for x in special), np.nan], np.float32)
    base, exponent = (np.ascontiguousarray(grid.reshape(-1)) for grid in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = np.power(base.astype(np.float64), exponent.astype(np.float64)).astype(np.float32)
    actual = ops.pow(base, exponent)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[known]), np.signbit(expected[known]))
    for value in values:  # exponents that are the same in the whole row
        with np.errstate(all="ignore"):
            expected = np.power(values.astype(np.float64), np.full(values.shape, np.float64(value))).astype(np.float32)
        actual = ops.pow(values, value)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        known = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(actual[known]), np.signbit(expected[known]))
