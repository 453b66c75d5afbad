"""Model: a Module that trains itself, with the interface that Keras and scikit-learn users expect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from drupe import io, optim
from drupe.autograd import no_grad
from drupe.data.batches import Arrays, Batches, arrays_of, batches, count_rows
from drupe.nn import Module
from drupe.tensor import Tensor, default_device
from drupe.train.callbacks import Callback, PrintEpochs
from drupe.train.history import History
from drupe.train.loop import Means, Run, call, evaluating, make_optimizer, make_schedule
from drupe.train.losses import Loss, find_loss
from drupe.train.progress import ProgressBar


class Model(Module):
    """A network with ``fit``, ``evaluate`` and ``predict``; subclasses define ``forward``.

    Inputs are one array, which ``forward`` takes as its argument; a tuple of arrays, its positional arguments; or a
    dict of arrays, its keyword arguments. The first dimension counts the examples.

    Attributes:
        default_loss: the loss of ``fit`` where none is given: a name or a :class:`Loss`.
    """

    default_loss: ClassVar[str | Loss] = "cross_entropy"

    def fit(
        self,
        x: Arrays,
        y: Arrays = None,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Arrays, Arrays] | None = None,
        optimizer: str | optim.Optimizer = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: str | Callable[[int], float] = "constant",
        warmup: float = 0.0,
        max_grad_norm: float | None = None,
        loss: str | Loss | Callable[[Any, Any], Tensor] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        verbose: int = 0,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> History:
        """Train. The same data, options, seed and initial values give the same bits, on any number of threads.

        Args:
            x: inputs (N, …), or a source of data with ``sample(rng) -> (x, y)``, asked once per epoch, and a length.
            y: targets (N, …); left out with a source.
            epochs: passes through the data.
            batch_size: examples per step; the last step of an epoch may have fewer.
            validation_data: (x, y) to evaluate after every epoch.
            optimizer: ``"adamw"``, ``"adam"``, ``"sgd"`` (momentum 0.9), ``"rmsprop"``, or one made before, whose own
                learning rate and decay then count.
            learning_rate: the highest of the run.
            weight_decay: of parameters with two or more dimensions; biases and norms have none.
            schedule: ``"constant"``, ``"cosine"`` or ``"linear"`` (both down to 0), or a function from the step,
                counted from 0, to a factor of the learning rate.
            warmup: the share of steps in which a named schedule first climbs from 0.
            max_grad_norm: scale gradients whose joint norm is larger down to it.
            loss: a name (``"cross_entropy"``, ``"bce_with_logits"``, ``"bpr"``, ``"mse"``), or a function of
                (output, target); that of the model by default.
            shuffle: draw another order in every epoch.
            seed: of the order, the source, and dropout; what :func:`drupe.manual_seed` set is left as it was.
            callbacks: see :class:`drupe.train.Callback`.
            verbose: 0 silent, 1 a progress bar, 2 a line per epoch.
            checkpoint: a file to write after every epoch, with the optimizer's state.
            resume: go on from ``checkpoint``, if it exists, as if training had never stopped.

        Returns:
            The numbers of every epoch, and the loss of every step.

        Raises:
            ValueError: no data, lengths that differ, options out of range, an unknown name.
            TypeError: targets of a dtype that the loss cannot take.
            FloatingPointError: the loss is not finite; the parameters are those before that step.
        """
        if max_grad_norm is not None and not (math.isfinite(max_grad_norm) and max_grad_norm > 0):
            raise ValueError(f"[fit] max_grad_norm is {max_grad_norm}: expected a number above 0")
        _check_options(epochs=epochs, learning_rate=learning_rate, weight_decay=weight_decay, warmup=warmup)
        if resume and checkpoint is None:
            raise ValueError("[fit] resume=True needs the name of a checkpoint")
        chosen = find_loss(self.default_loss if loss is None else loss)
        source = x if hasattr(x, "sample") else None
        if source is None and y is None:
            raise ValueError("[fit] y is missing")
        rows = count_rows(x, y, op="fit") if source is None else len(source)
        if rows == 0:
            raise ValueError("[fit] the data is empty")
        if source is None:
            _check_targets(y, chosen, "fit")
        if validation_data is not None:
            count_rows(*validation_data, op="fit: validation_data")
            _check_targets(validation_data[1], chosen, "fit: validation_data")
        if batch_size < 1:
            raise ValueError(f"[fit] batch_size is {batch_size}: expected 1 or more")
        steps = -(-rows // batch_size)
        stepper = make_optimizer(self.parameter_groups(weight_decay), optimizer, learning_rate)
        listeners = [*callbacks, *_reporters(verbose, type(self).__name__)]
        run = Run(
            model=self,
            optimizer=stepper,
            loss=chosen,
            schedule=make_schedule(schedule, epochs * steps, warmup),
            epochs=epochs,
            steps=steps,
            max_grad_norm=max_grad_norm,
            seed=seed,
            callbacks=listeners,
            checkpoint=None if checkpoint is None else Path(checkpoint),
        )
        if resume:
            run.restore()

        def epoch_batches(epoch: int) -> Batches:
            data = (x, y) if source is None else source.sample(np.random.default_rng([seed, epoch, 1]))
            epoch_data = batches(*data, batch_size=batch_size, shuffle=shuffle, seed=seed)
            epoch_data.epoch = epoch
            return epoch_data

        def validate() -> dict[str, float]:
            if validation_data is None:
                return {}
            return self.evaluate(*validation_data, batch_size=max(batch_size, 64), loss=chosen)

        return run(epoch_batches, validate)

    def evaluate(
        self,
        x: Arrays,
        y: Arrays,
        *,
        batch_size: int = 64,
        loss: str | Loss | Callable[[Any, Any], Tensor] | None = None,
    ) -> dict[str, float]:
        """Return the loss and its metric over a data set, with dropout off and running statistics fixed.

        Args:
            x: inputs (N, …).
            y: targets (N, …).
            batch_size: examples at a time; it does not change the result but for rounding.
            loss: as for :meth:`fit`.

        Returns:
            ``loss``, and ``accuracy`` or what else belongs to the loss.

        Raises:
            ValueError: no data, or lengths that differ.
        """
        chosen = find_loss(self.default_loss if loss is None else loss)
        count_rows(x, y, op="evaluate")
        _check_targets(y, chosen, "evaluate")
        means = Means(chosen)
        with evaluating(self), no_grad(), default_device(self.device):
            for inputs, target in batches(x, y, batch_size=batch_size):
                output = call(self, inputs)
                means.add(float(chosen.function(output, target).item()), output, target)
        return means.result()

    def predict(self, x: Arrays, *, batch_size: int = 64) -> npt.NDArray[Any]:
        """Return what ``forward`` gives for every example (logits, say), with dropout off.

        Args:
            x: inputs (N, …).
            batch_size: examples at a time.

        Returns:
            The outputs (N, …), a NumPy array.

        Raises:
            ValueError: no data, or lengths that differ.
        """
        count_rows(x, op="predict")
        with evaluating(self), no_grad(), default_device(self.device):
            parts = [call(self, inputs).numpy() for inputs in batches(x, batch_size=batch_size)]
        return np.concatenate(parts)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameters to train in two groups: those of two or more dimensions decay, the rest does not."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError(f"[fit] {type(self).__name__} has no parameters to train")
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def save(self, path: str | Path) -> None:
        """Write the parameters and buffers to a safetensors file."""
        io.save(path, self.state_dict())

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote; errors as :func:`drupe.load` and ``load_state_dict``."""
        self.load_state_dict(io.load(path))


def _check_options(**options: float) -> None:
    for name, value in options.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"[fit] {name} is {value}: expected a number that is not negative")
    if options["warmup"] > 1:
        raise ValueError(f"[fit] warmup is {options['warmup']}: expected a share of the steps, at most 1")


def _check_targets(y: Arrays, loss: Loss, op: str) -> None:
    if not loss.integers:
        return
    for target in arrays_of(y):
        if target.dtype.kind not in "iu":
            raise TypeError(f"[{op}] y is {target.dtype}: expected integers, the numbers of the classes")


def _reporters(verbose: int, label: str) -> list[Callback]:
    if verbose not in (0, 1, 2):
        raise ValueError(f"[fit] verbose is {verbose}: expected 0, 1 or 2")
    if verbose == 1:
        return [ProgressBar(label)]
    return [PrintEpochs()] if verbose == 2 else []
