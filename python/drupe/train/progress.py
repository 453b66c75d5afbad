"""A progress bar for ``fit``."""

from __future__ import annotations

from typing import Any

from drupe.train.callbacks import Callback, StepInfo


class ProgressBar(Callback):
    """A bar with the smoothed loss, the metric on the validation data, and the time that is left, drawn by rich.

    Args:
        label: in front of the bar.
        console: a ``rich.console.Console`` to draw on; one on standard error by default.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, label: str = "training", console: Any = None) -> None:
        try:
            import rich.console
            import rich.progress
        except ImportError as error:
            raise ImportError("the progress bar needs rich: pip install 'drupe[cli]', or pass verbose=0") from error
        self.label = label
        self.loss: float | None = None
        self.metrics = ""
        self.task: Any = None
        columns = rich.progress
        self.progress = columns.Progress(
            columns.TextColumn("{task.description:<21}"),
            columns.BarColumn(bar_width=14),
            columns.TextColumn("{task.percentage:>3.0f}%"),
            columns.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            columns.TextColumn("{task.fields[state]}"),
            console=console or rich.console.Console(stderr=True),
            refresh_per_second=4,
        )

    def on_train_begin(self, epochs: int, steps: int) -> None:
        """Show the bar."""
        self.task = self.progress.add_task(self.label, total=epochs * steps, state="")
        self.progress.start()

    def on_step(self, info: StepInfo) -> None:
        """Move the bar."""
        self.loss = info.loss if self.loss is None else 0.9 * self.loss + 0.1 * info.loss
        state = f"loss {self.loss:.3f}{self.metrics}"
        self.progress.update(self.task, completed=info.epoch * info.steps + info.step + 1, state=state)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Remember the validation numbers, to show them beside the next epoch's loss."""
        shown = [(name.removeprefix("val_"), value) for name, value in logs.items() if name.startswith("val_")]
        self.metrics = "".join(f"  validation {value:.3f}" for name, value in shown if name != "loss")
        if self.loss is not None:
            state = f"loss {self.loss:.3f}{self.metrics}"
            self.progress.update(self.task, state=state)

    def on_train_end(self) -> None:
        """Leave the bar as it stands."""
        self.progress.stop()
