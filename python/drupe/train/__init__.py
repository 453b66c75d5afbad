"""Training: ``fit``, ``predict`` and ``evaluate`` for networks, progress, checkpoints."""

from drupe.train.callbacks import Callback, PrintEpochs, StepInfo
from drupe.train.checkpoint import load_checkpoint, save_checkpoint
from drupe.train.history import History
from drupe.train.losses import LOSSES, Loss
from drupe.train.model import Model
from drupe.train.progress import ProgressBar

__all__ = [
    "LOSSES",
    "Callback",
    "History",
    "Loss",
    "Model",
    "PrintEpochs",
    "ProgressBar",
    "StepInfo",
    "load_checkpoint",
    "save_checkpoint",
]
