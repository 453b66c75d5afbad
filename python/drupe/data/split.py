"""Hold some data out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


def split(
    rows: int, *, fraction: float = 0.2, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide ``range(rows)`` at random into indices to train on and indices to hold out, both ascending.

    Args:
        rows: how many there are.
        fraction: in (0, 1): how many to hold out, of the rows or, if given, of the groups.
        seed: of the choice.
        groups: one label per row; rows of one group stay together, so that near-copies do not leak.

    Returns:
        (training indices, held-out indices); neither is empty.

    Raises:
        ValueError: fewer than two rows or groups, a ``fraction`` outside (0, 1), or a wrong number of groups.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"[split] fraction is {fraction}: expected a number between 0 and 1")
    labels: Sequence[Hashable] = range(rows) if groups is None else groups
    if len(labels) != rows:
        raise ValueError(f"[split] {len(labels)} groups for {rows} rows")
    unique = list(dict.fromkeys(labels))
    if len(unique) < 2:
        raise ValueError(f"[split] cannot divide {len(unique)} group(s) in two")
    order = np.random.default_rng(seed).permutation(len(unique))
    held = min(max(1, round(fraction * len(unique))), len(unique) - 1)
    held_groups = {unique[i] for i in order[:held]}
    mask = np.array([label in held_groups for label in labels])
    return np.flatnonzero(~mask), np.flatnonzero(mask)
