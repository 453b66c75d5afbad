from __future__ import annotations

import numpy as np
import pytest

from drupe.bench.harness import Case, Setup


class FakeClock:
    """A clock that calls advance."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, seconds, output=None):
        """Return a callable that takes some seconds, or the next of several."""
        durations = iter(seconds) if isinstance(seconds, list) else None

        def run():
            self.log.append(name)
            self.now += next(durations) if durations else seconds
            return output

        return run


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make_case():
    """Make a case whose drupe call, peers and reference are given."""

    def make(drupe, peers=None, reference=None, tolerance=1e-6, **fields):
        described = {"op": "toy", "name": "one", "shapes": "4", "dtype": "float32", "flops": 8.0}
        described |= {"bytes_read": 16.0, "bytes_written": 16.0} | fields
        setup = Setup(drupe=drupe, peers=peers or {}, reference=reference, tolerance=tolerance)
        return Case(setup=lambda rng: setup, **described)

    return make


@pytest.fixture
def ones():
    return np.ones(4, np.float32)
