"""The loop behind ``fit``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import ops, optim, random, schedules
from drupe.data.batches import Arrays, Batches
from drupe.nn import Module
from drupe.tensor import Tensor, default_device
from drupe.train.callbacks import Callback, StepInfo
from drupe.train.checkpoint import load_checkpoint, save_checkpoint
from drupe.train.history import History
from drupe.train.losses import Loss

Schedule = Callable[[int], float]


def call(model: Module, inputs: Arrays) -> Any:
    """Call a model with one array, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Means:
    """Running means of a loss and its metric."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.total, self.count, self.metric, self.metric_count = 0.0, 0, 0.0, 0

    def add(self, value: float, output: Tensor, target: Any) -> None:
        """Add a batch: the mean loss over it, what the network gave, and what was wanted."""
        wanted = to_numpy(target)
        weight = self.loss.count(wanted)
        if weight:
            self.total += value * weight
            self.count += weight
        if self.loss.metric is not None:
            hits, counted = self.loss.metric(to_numpy(output), wanted)
            self.metric += hits
            self.metric_count += counted

    def result(self) -> dict[str, float]:
        """Return the means by name."""
        means = {"loss": self.total / max(1, self.count)}
        if self.loss.metric is not None:
            means[self.loss.metric_name] = self.metric / max(1, self.metric_count)
        return means


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """Return the array without its history; a target of several arrays as its first."""
    if isinstance(x, dict):
        x = next(iter(x.values()))
    elif isinstance(x, tuple):
        x = x[0]
    return x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x)


def make_optimizer(groups: list[dict[str, Any]], optimizer: Any, learning_rate: float) -> optim.Optimizer:
    """Return an optimizer by name for these groups of parameters, or the one that is given.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor an optimizer.
    """
    if isinstance(optimizer, optim.Optimizer):
        return optimizer
    if not isinstance(optimizer, str):
        raise TypeError(f"[fit] optimizer is {type(optimizer).__name__}: expected a name or a drupe.optim.Optimizer")
    makers: dict[str, Callable[[], optim.Optimizer]] = {
        "adam": lambda: optim.Adam(groups, lr=learning_rate),
        "adamw": lambda: optim.AdamW(groups, lr=learning_rate),
        "rmsprop": lambda: optim.RMSprop(groups, lr=learning_rate),
        "sgd": lambda: optim.SGD(groups, lr=learning_rate, momentum=0.9),
    }
    if optimizer not in makers:
        raise ValueError(f'[fit] optimizer is "{optimizer}": expected one of {", ".join(makers)}')
    return makers[optimizer]()


def make_schedule(schedule: str | Schedule, steps: int, warmup: float) -> Schedule:
    """Return a function from the step to a factor of the learning rate.

    Raises:
        ValueError: an unknown name.
    """
    if callable(schedule):
        return schedule
    climb = round(warmup * steps)
    rest = max(1, steps - climb)
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": schedules.constant,
        "cosine": lambda: schedules.cosine(rest),
        "linear": lambda: schedules.linear(rest),
    }
    if schedule not in makers:
        raise ValueError(f'[fit] schedule is "{schedule}": expected one of {", ".join(makers)}, or a function')
    then = makers[schedule]()
    return schedules.warmup(climb, then) if climb else then


@dataclass
class Run:
    """One run of training.

    Attributes:
        model: what is trained.
        optimizer: by which.
        loss: towards what.
        schedule: from the step to a factor of the optimizer's learning rates.
        epochs: how many.
        steps: of the optimizer per epoch.
        max_grad_norm: see ``fit``.
        seed: of dropout.
        callbacks: who listens.
        checkpoint: the file to write after every epoch, if any.
        history: so far.
    """

    model: Module
    optimizer: optim.Optimizer
    loss: Loss
    schedule: Schedule
    epochs: int
    steps: int
    max_grad_norm: float | None
    seed: int
    callbacks: Sequence[Callback]
    checkpoint: Path | None
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        self.rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]

    def restore(self) -> None:
        """Go back to where the checkpoint was written, if there is one."""
        assert self.checkpoint is not None
        if not self.checkpoint.exists():
            return
        saved = load_checkpoint(self.checkpoint, self.model, self.optimizer)
        self.rates = saved["rates"]
        self.history = History(saved["epochs"], saved["steps"])

    def __call__(self, epoch_batches: Callable[[int], Batches], validate: Callable[[], dict[str, float]]) -> History:
        """Train from the epoch that the history has reached."""
        for callback in self.callbacks:
            callback.on_train_begin(self.epochs, self.steps)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.train()
        try:
            with random.preserved(), default_device(self.model.device):
                for epoch in range(len(self.history), self.epochs):
                    self._epoch(epoch, epoch_batches(epoch), validate)
        except StopIteration:
            pass
        finally:
            for module, mode in modes:
                module.training = mode
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
            for callback in self.callbacks:
                callback.on_train_end()
        return self.history

    def _epoch(self, epoch: int, data: Batches, validate: Callable[[], dict[str, float]]) -> None:
        start = time.perf_counter()
        # Anew for every epoch, so that one that follows a restart draws what it would have drawn without.
        random.manual_seed(int(np.random.SeedSequence([self.seed, epoch, 2]).generate_state(1)[0]))
        means = Means(self.loss)
        for step, (inputs, target) in enumerate(data):
            factor = self.schedule(epoch * self.steps + step)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            value = self._step(inputs, target, means, f"epoch {epoch + 1}, step {step + 1}")
            self.history.steps.append(value)
            rate = self.optimizer.param_groups[0]["lr"]
            info = StepInfo(epoch, self.epochs, step, self.steps, value, rate)
            for callback in self.callbacks:
                callback.on_step(info)
        logs = means.result()
        logs |= {f"val_{name}": value for name, value in validate().items()}
        logs |= {"learning_rate": rate, "seconds": time.perf_counter() - start}
        self.history.add(logs)
        if self.checkpoint is not None:
            state = {"epochs": self.history.epochs, "steps": self.history.steps, "rates": self.rates}
            save_checkpoint(self.checkpoint, self.model, self.optimizer, state)
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs)

    def _step(self, inputs: Arrays, target: Arrays, means: Means, where: str) -> float:
        output = call(self.model, inputs)
        loss = self.loss.function(output, target)
        value = float(loss.item())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"[fit] the loss became {value} in {where}: lower the learning rate, set max_grad_norm, "
                "or look for values in the data that are not finite"
            )
        loss.backward()
        self.optimizer.step(grad_scale=self._clip())
        self.optimizer.zero_grad()
        means.add(value, output, target)
        return value

    def _clip(self) -> float:
        """Return the factor that brings the joint norm of all gradients down to the limit."""
        if self.max_grad_norm is None:
            return 1.0
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = ops.global_norm(grads)
        return min(1.0, self.max_grad_norm / norm) if norm > 0 else 1.0
