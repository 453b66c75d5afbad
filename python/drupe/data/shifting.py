"""Images moved by a few pixels: more examples from the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]


class ShiftedImages:
    """A data source for ``fit`` that moves every image by up to some pixels, otherwise in every epoch.

    Pixels that move in from outside are zero.

    Args:
        images: (N, C, H, W).
        labels: (N, …), passed through.
        pixels: P: how far at most, up or down, left or right; each of the (2 P + 1)^2 moves is as likely.

    Raises:
        ValueError: images of other than four dimensions, lengths that differ, or a negative ``pixels``.
    """

    def __init__(self, images: Images, labels: npt.NDArray[Any], *, pixels: int = 1) -> None:
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"[ShiftedImages] images {images.shape}, labels {labels.shape}: expected (N, C, H, W) and (N, …)"
            )
        if pixels < 0:
            raise ValueError(f"[ShiftedImages] pixels is {pixels}: expected a number that is not negative")
        self.images, self.labels, self.pixels = images, labels, pixels

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, rng: np.random.Generator) -> tuple[Images, npt.NDArray[Any]]:
        """Return the images and labels of one epoch."""
        N, _, H, W = self.images.shape
        margin = (self.pixels, self.pixels)
        padded = np.pad(self.images, ((0, 0), (0, 0), margin, margin))
        views = np.lib.stride_tricks.sliding_window_view(padded, (H, W), axis=(2, 3))  # (N, C, 2 P + 1, 2 P + 1, H, W)
        down, right = rng.integers(0, 2 * self.pixels + 1, (2, N))
        return views[np.arange(N), :, down, right], self.labels
