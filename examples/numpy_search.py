"""drupe's ops in a NumPy program: the nearest neighbours of handwritten digits, without a network.

Arrays go in and come out as NumPy arrays; a strided slice is read where it lies.

    pip install ".[demo]" && python examples/numpy_search.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from drupe import ops


def nearest(queries: np.ndarray, library: np.ndarray, k: int) -> np.ndarray:
    """Return (queries, k): which rows of the library point most nearly the same way as each query."""
    unit = ops.rms_norm(library)  # equal lengths, so that products compare directions
    similarity = ops.gemm(queries, unit, transpose_b=True)  # (queries, library)
    return ops.topk(similarity, k)[1]


def main() -> None:
    """Classify the odd rows of the digits by a vote of their five nearest even rows."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    library, queries = images[::2], images[1::2]
    votes = labels[::2][nearest(queries, library, k=5)]
    predicted = np.array([np.bincount(row).argmax() for row in votes])
    accuracy = (predicted == labels[1::2]).mean()
    print(f"{accuracy:.1%} of {len(queries)} digits recognised by their 5 nearest neighbours")
    assert accuracy > 0.97


if __name__ == "__main__":
    main()
