"""What ``fit`` tells whoever listens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class StepInfo:
    """Where training stands.

    Attributes:
        epoch: from 0.
        epochs: how many there will be.
        step: within the epoch, from 0.
        steps: per epoch.
        loss: of this step.
        learning_rate: of this step.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float


class Callback:
    """Base of the callbacks of ``fit``; every method does nothing."""

    def on_train_begin(self, epochs: int, steps: int) -> None:
        """Before the first step; ``steps`` are per epoch."""

    def on_step(self, info: StepInfo) -> None:
        """After every optimizer step."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After every epoch, with its numbers. To stop early, raise ``StopIteration``."""

    def on_train_end(self) -> None:
        """After the last step, or an error."""


class PrintEpochs(Callback):
    """Print one line per epoch.

    Args:
        file: where to; standard output by default.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self.epochs = 0

    def on_train_begin(self, epochs: int, steps: int) -> None:
        """Remember how many epochs there are."""
        self.epochs = epochs

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Print the numbers."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
        print(f"epoch {epoch + 1}/{self.epochs}  {numbers}", file=self.file or sys.stdout)
