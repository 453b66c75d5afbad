"""Learning-rate schedules: functions from a step to a factor of the base rate, and what applies them.

A schedule is any callable that maps the number of steps done (0, 1, …) to a factor; those here are small immutable
objects. :class:`Scheduler` multiplies the rates of an optimizer's groups by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from drupe.optim import Optimizer

Schedule = Callable[[int], float]


def _check_count(name: str, what: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"[{name}] {what} is {value}: expected at least 1")


def _check_factor(name: str, what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"[{name}] {what} is {value}: expected a finite number of at least 0")


@dataclass(frozen=True)
class constant:  # noqa: N801
    """The same factor for ever, ``factor``."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor("constant", "factor", self.factor)

    def __call__(self, step: int) -> float:
        """Return the factor after so many steps."""
        return self.factor


@dataclass(frozen=True)
class step:  # noqa: N801
    """A factor that drops every ``size`` steps, ``gamma^floor(step / size)``."""

    size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check_count("step", "size", self.size)
        _check_factor("step", "gamma", self.gamma)

    def __call__(self, step: int) -> float:
        """Return the factor after so many steps."""
        return self.gamma ** (step // self.size)


@dataclass(frozen=True)
class linear:  # noqa: N801
    """A straight line from 1 to ``end`` in ``steps`` steps, ``end`` after that."""

    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_count("linear", "steps", self.steps)
        _check_factor("linear", "end", self.end)

    def __call__(self, step: int) -> float:
        """Return the factor after so many steps."""
        return 1 + (self.end - 1) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class cosine:  # noqa: N801
    """Half a cosine, ``end + (1 - end) (1 + cos(pi step / steps)) / 2``; ``end`` after ``steps`` steps.

    Reference:
        I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5.
    """

    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_count("cosine", "steps", self.steps)
        _check_factor("cosine", "end", self.end)

    def __call__(self, step: int) -> float:
        """Return the factor after so many steps."""
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2


@dataclass(frozen=True)
class warmup:  # noqa: N801
    """A linear start, ``(step + 1) / steps`` times ``then(0)``; from step ``steps`` on, ``then(step - steps)``.

    The first step has the factor ``1 / steps``, not 0, so that it is not lost.
    """

    steps: int
    then: Schedule = field(default_factory=constant)

    def __post_init__(self) -> None:
        _check_count("warmup", "steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the factor after so many steps."""
        if step < self.steps:
            return self.then(0) * (step + 1) / self.steps
        return self.then(step - self.steps)


class Scheduler:
    """Sets each group's rate to its base rate times ``schedule(steps done)``.

    Call :meth:`step` after each of the optimizer's. The base rates are those at construction.

    Args:
        optimizer: whose groups' ``"lr"`` is set, from now on.
        schedule: from steps done to a factor.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.steps_done = 0
        self._apply()

    @property
    def factor(self) -> float:
        """The factor in force."""
        return self.schedule(self.steps_done)

    def step(self) -> None:
        """Count one step, and set the rates for the next."""
        self.steps_done += 1
        self._apply()

    def _apply(self) -> None:
        # Groups that were added since start from the rate that they were given.
        groups = self.optimizer.param_groups
        self.base_lrs += [group["lr"] for group in groups[len(self.base_lrs) :]]
        for group, base in zip(groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor

    def state_dict(self) -> dict[str, Any]:
        """Return the step count and the base rates."""
        return {"steps_done": self.steps_done, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, and set the rates.

        Raises:
            ValueError: another number of groups, or keys that are missing or unknown.
        """
        if set(state) != {"steps_done", "base_lrs"}:
            raise ValueError(f"[scheduler] the state has {sorted(state)}: expected base_lrs and steps_done")
        if len(state["base_lrs"]) != len(self.optimizer.param_groups):
            raise ValueError(
                f"[scheduler] the state has {len(state['base_lrs'])} groups, "
                f"the optimizer {len(self.optimizer.param_groups)}"
            )
        self.steps_done = int(state["steps_done"])
        self.base_lrs = [float(lr) for lr in state["base_lrs"]]
        self._apply()
