"""Handwritten digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from drupe.data._optional import need


def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the 1797 handwritten digits that scikit-learn carries.

    Returns:
        Images (1797, 1, 8, 8), float32 in [0, 1], and labels (1797,), int64 in [0, 10).

    Raises:
        ImportError: scikit-learn is not installed.

    Reference:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    bunch: Any = need("sklearn.datasets", "drupe.data.digits").load_digits()
    images = np.ascontiguousarray(bunch.images[:, None], dtype=np.float32) / np.float32(16)
    return images, bunch.target.astype(np.int64)
