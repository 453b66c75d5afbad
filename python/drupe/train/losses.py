"""The losses that ``fit`` knows by name, with the metric that belongs to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import ops
from drupe.tensor import Tensor

# From (output, target) as arrays to (sum of the metric, how many it sums over).
Metric = Callable[[npt.NDArray[Any], npt.NDArray[Any]], tuple[float, int]]


@dataclass(frozen=True)
class Loss:
    """A loss and how to report on it.

    Attributes:
        function: (output, target) -> the mean loss, one element.
        metric_name: such as ``"accuracy"``; empty for none.
        metric: see :data:`Metric`.
        count: target -> how many elements the mean of ``function`` is over; batches weigh by it.
        integers: whether targets must be integers.
    """

    function: Callable[[Any, Any], Any]
    metric_name: str = ""
    metric: Metric | None = None
    count: Callable[[npt.NDArray[Any]], int] = len
    integers: bool = False


def _cross_entropy(output: Tensor, target: Tensor) -> Any:
    classes = output.shape[-1]
    return ops.cross_entropy(output.reshape((-1, classes)), target.reshape((-1,)))


def _accuracy(output: npt.NDArray[Any], target: npt.NDArray[Any]) -> tuple[float, int]:
    counted = target != -100
    hits = (output.argmax(axis=-1) == target) & counted
    return float(hits.sum()), int(counted.sum())


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Any:
    return ops.bce_with_logits(output, Tensor(target.detach().numpy().astype(output.dtype)))


def _binary_accuracy(output: npt.NDArray[Any], target: npt.NDArray[Any]) -> tuple[float, int]:
    return float(((output > 0) == (target > 0.5)).sum()), target.size


def _pairwise_ranking(output: Any, target: Tensor) -> Any:
    """Mean ``-log sigmoid`` of the differences (BPR), where a target of 1 wants one above 0; and the penalty, if any.

    Reference:
        S. Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, arXiv:1205.2618.
    """
    difference, penalty = output if isinstance(output, tuple) else (output, None)
    loss = _binary_cross_entropy(difference, target)
    return loss if penalty is None else loss + penalty


def _absolute_error(output: npt.NDArray[Any], target: npt.NDArray[Any]) -> tuple[float, int]:
    return float(np.abs(output.astype(np.float64) - target).sum()), target.size


def _size(target: npt.NDArray[Any]) -> int:
    return target.size


LOSSES = {
    "cross_entropy": Loss(
        _cross_entropy, "accuracy", _accuracy, lambda target: int((target != -100).sum()), integers=True
    ),
    "bce_with_logits": Loss(_binary_cross_entropy, "accuracy", _binary_accuracy, _size),
    "bpr": Loss(_pairwise_ranking, "accuracy", _binary_accuracy, _size),
    "mse": Loss(lambda output, target: ops.mse(output, target), "mean_absolute_error", _absolute_error, _size),
}


def find_loss(loss: str | Loss | Callable[[Any, Any], Tensor]) -> Loss:
    """Return a loss by name, or wrap a function.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(loss)
    if loss not in LOSSES:
        raise ValueError(f'[fit] loss is "{loss}": expected one of {", ".join(LOSSES)}, or a function')
    return LOSSES[loss]
