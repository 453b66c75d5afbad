"""What a training run was like."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """Numbers of a training run.

    Attributes:
        epochs: per epoch, by name: ``loss``, ``accuracy`` …, ``val_loss`` …, ``learning_rate``, ``seconds``.
        steps: the loss of every step.
    """

    epochs: dict[str, list[float]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)

    def add(self, logs: dict[str, float]) -> None:
        """Append the numbers of an epoch."""
        for name, value in logs.items():
            self.epochs.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> list[float]:
        return self.epochs[name]

    def __len__(self) -> int:
        return len(self.epochs.get("loss", []))

    @property
    def final(self) -> dict[str, float]:
        """The numbers of the last epoch."""
        return {name: values[-1] for name, values in self.epochs.items()}
