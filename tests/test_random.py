from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import random


def test_normal_and_uniform_follow_their_distributions():
    drupe.manual_seed(1)
    z = random.normal((400, 500), mean=3, std=0.5).numpy()
    assert z.dtype == np.float32
    assert abs(z.mean() - 3) < 0.01
    assert abs(z.std() - 0.5) < 0.01
    u = random.uniform((400, 500), low=-2, high=1, dtype="float64").numpy()
    assert u.dtype == np.float64
    assert u.min() >= -2
    assert u.max() < 1
    assert abs(u.mean() + 0.5) < 0.02


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_16_bit_dtypes(name):
    assert random.normal((3, 0, 2), dtype=name).shape == (3, 0, 2)
    assert abs(float(random.uniform((1000,), dtype=name).numpy().astype(np.float32).mean()) - 0.5) < 0.1


def test_the_seed_decides():
    def draw():
        return [random.normal((5,)).numpy(), random.uniform((5,)).numpy(), random.generator().permutation(20)]

    drupe.manual_seed(2**64 - 1)
    first = draw()
    drupe.manual_seed(2**64 - 1)
    for a, b in zip(first, draw(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, draw(), strict=True):
        assert (a != b).any()


def test_bad_arguments():
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=r"\[manual_seed\] seed is"):
            drupe.manual_seed(seed)
    with pytest.raises(ValueError, match=r"\[normal\] std is -1"):
        random.normal((2,), std=-1)
    with pytest.raises(ValueError, match=r"\[uniform\] low is 2"):
        random.uniform((2,), low=2)
    with pytest.raises(TypeError, match=r"\[normal\] dtype is int32"):
        random.normal((2,), dtype="int32")
    with pytest.raises(ValueError):
        random.uniform((-1,))
