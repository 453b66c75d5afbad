"""A survey on marriage: a table of numeric and categorical columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe.data._optional import need

_NUMERIC = ("rate_marriage", "age", "yrs_married", "children", "religious", "educ")
_CATEGORICAL = ("rate_marriage", "age", "yrs_married", "children", "religious", "educ", "occupation", "occupation_husb")
_OCCUPATIONS = (
    "student",
    "farming, unskilled or semi-skilled",
    "white-collar",
    "teacher, nurse, artist, technician, skilled worker",
    "managerial or business",
    "professional with an advanced degree",
)


@dataclass(frozen=True)
class Table:
    """A table with a binary target, ready for :class:`drupe.models.WideDeep`.

    Attributes:
        categorical: (N, C) int64, codes counted from 0 in each column.
        numeric: (N, F) float32, as surveyed.
        target: (N,) int64, 0 or 1.
        categorical_names: C column names.
        numeric_names: F column names.
        levels: for each categorical column what its codes stand for.
    """

    categorical: npt.NDArray[np.int64]
    numeric: npt.NDArray[np.float32]
    target: npt.NDArray[np.int64]
    categorical_names: tuple[str, ...]
    numeric_names: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many levels each categorical column has."""
        return tuple(len(level) for level in self.levels)

    def describe(self, row: int) -> dict[str, str]:
        """Return one row as a reader would want it: column -> value."""
        codes = self.categorical[row]
        return {name: self.levels[i][codes[i]] for i, name in enumerate(self.categorical_names)}


def fair() -> Table:
    """Return the 6366 answers of the 1974 Redbook survey that statsmodels carries; target: had an affair.

    Every column takes few values, so that all of them are given as categories (for the wide part and the
    embeddings), and the ordered ones as numbers too.

    Raises:
        ImportError: statsmodels or pandas is not installed.

    Reference:
        R. Fair, "A Theory of Extramarital Affairs", Journal of Political Economy 86(1), 1978.
    """
    frame: Any = need("statsmodels.datasets.fair", "drupe.data.fair").load_pandas().data
    columns = {name: np.asarray(frame[name], dtype=np.float64) for name in (*_CATEGORICAL, "affairs")}
    codes, levels = [], []
    for name in _CATEGORICAL:
        values, code = np.unique(columns[name], return_inverse=True)
        codes.append(code.reshape(-1))
        if name.startswith("occupation"):
            levels.append(tuple(_OCCUPATIONS[int(value) - 1] for value in values))
        else:
            levels.append(tuple(f"{value:g}" for value in values))
    return Table(
        categorical=np.stack(codes, axis=1).astype(np.int64),
        numeric=np.stack([columns[name] for name in _NUMERIC], axis=1).astype(np.float32),
        target=(columns["affairs"] > 0).astype(np.int64),
        categorical_names=_CATEGORICAL,
        numeric_names=_NUMERIC,
        levels=tuple(levels),
    )
