from __future__ import annotations

import numpy as np
import pytest

from drupe.data import ShiftedImages


def test_every_image_is_moved_as_a_whole(rng):
    images = rng.uniform(1, 2, (400, 2, 4, 5)).astype(np.float32)
    labels = np.arange(400)
    source = ShiftedImages(images, labels)
    assert len(source) == 400
    shifted, same = source.sample(np.random.default_rng(0))
    assert shifted.shape == images.shape
    assert shifted.dtype == np.float32
    np.testing.assert_array_equal(same, labels)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moves = []
    for before, after in zip(padded, shifted, strict=True):
        found = [(y, x) for y in range(3) for x in range(3) if np.array_equal(before[:, y : y + 4, x : x + 5], after)]
        assert len(found) == 1
        moves += found
    assert len(set(moves)) == 9


def test_the_generator_decides(rng):
    images, labels = rng.standard_normal((20, 1, 8, 8)).astype(np.float32), np.zeros(20, np.int64)
    source = ShiftedImages(images, labels, pixels=2)
    first, again, other = (source.sample(np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    still = ShiftedImages(images, labels, pixels=0).sample(np.random.default_rng(0))[0]
    np.testing.assert_array_equal(still, images)


@pytest.mark.parametrize(
    ("shape", "rows", "pixels", "message"),
    [
        ((3, 8, 8), 3, 1, r"images \(3, 8, 8\), labels \(3,\)"),
        ((3, 1, 8, 8), 2, 1, r"images \(3, 1, 8, 8\), labels \(2,\)"),
        ((3, 1, 8, 8), 3, -1, "pixels is -1"),
    ],
)
def test_errors(shape, rows, pixels, message):
    with pytest.raises(ValueError, match=message):
        ShiftedImages(np.zeros(shape, np.float32), np.zeros(rows, np.int64), pixels=pixels)
