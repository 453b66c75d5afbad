"""What users took, paired with what they did not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


class Interactions:
    """A data source for ``fit`` of recommenders: each interaction, beside an item that its user did not take.

    An epoch has every interaction once. The other item is drawn uniformly from those that the user has no interaction
    with, anew in every epoch.

    Args:
        users: (N,), integers from 0.
        items: (N,), integers in [0, num_items).
        num_items: how many items there are.

    Raises:
        ValueError: no interactions, lists that differ in length, an item or a user out of range, or a user who took
            all items.

    Reference:
        S. Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, arXiv:1205.2618.
    """

    def __init__(self, users: npt.ArrayLike, items: npt.ArrayLike, num_items: int) -> None:
        self.users, self.items = (np.asarray(x).astype(np.int64) for x in (users, items))
        self.num_items = num_items
        if self.users.shape != self.items.shape or self.users.ndim != 1 or self.users.size == 0:
            raise ValueError(
                f"[Interactions] users is {self.users.shape}, items is {self.items.shape}: "
                "expected lists of the same length, not empty"
            )
        if self.users.min() < 0 or self.items.min() < 0 or self.items.max() >= num_items:
            raise ValueError(f"[Interactions] expected users from 0 and items in [0, {num_items})")
        self._taken = np.unique(self.users * num_items + self.items)
        most = np.bincount(self._taken // num_items)
        if most.max() >= num_items:
            raise ValueError(f"[Interactions] user {most.argmax()} took all {num_items} items: none is left to draw")

    def __len__(self) -> int:
        return self.users.size

    def sample(self, rng: np.random.Generator) -> tuple[tuple[Integers, Integers, Integers], npt.NDArray[Any]]:
        """Return the users, their items and others of one epoch, and targets that say that the former are better."""
        return (self.users, self.items, self.draw_others(rng)), np.ones(len(self), np.float32)

    def draw_others(self, rng: np.random.Generator) -> Integers:
        """Return for each interaction an item that its user did not take."""
        others = np.empty_like(self.items)
        wanted = np.arange(len(self))
        while wanted.size:
            others[wanted] = rng.integers(0, self.num_items, wanted.size)
            keys = self.users[wanted] * self.num_items + others[wanted]
            places = np.minimum(np.searchsorted(self._taken, keys), self._taken.size - 1)
            wanted = wanted[self._taken[places] == keys]
        return others
