"""Initialisers: each fills the tensor that it is given, by the generator of ``drupe.manual_seed``, and returns it."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from drupe import random
from drupe.tensor import Tensor, as_tensor

T = TypeVar("T", bound=Tensor)


def _fans(tensor: Tensor) -> tuple[int, int]:
    """Return (inputs per output, outputs per input) of a weight (out, in, kernel…)."""
    if tensor.ndim < 2:
        raise ValueError(f"[init] a weight of shape {tensor.shape} has no fan-in: expected 2 or more dimensions")
    kernel = math.prod(tensor.shape[2:])
    return tensor.shape[1] * kernel, tensor.shape[0] * kernel


def fan_in_bound(weight: Tensor) -> float:
    """Return ``1 / sqrt(fan_in)``: the bound of :func:`kaiming_uniform`'s default, and of the bias beside it."""
    return 1 / math.sqrt(max(1, _fans(weight)[0]))


def uniform(tensor: T, low: float = 0.0, high: float = 1.0) -> T:
    """Fill with numbers uniform in [low, high); a float dtype."""
    return _fill(tensor, random.uniform(tensor.shape, low=low, high=high, dtype=tensor.dtype))


def normal(tensor: T, mean: float = 0.0, std: float = 1.0) -> T:
    """Fill with normal numbers; a float dtype."""
    return _fill(tensor, random.normal(tensor.shape, mean=mean, std=std, dtype=tensor.dtype))


def trunc_normal(tensor: T, mean: float = 0.0, std: float = 1.0, *, bound: float = 2.0) -> T:
    """Fill with normal numbers of which none is more than ``bound`` deviations from the mean.

    Raises:
        ValueError: ``bound`` is below 0.1: hardly a normal number is left.
    """
    if not bound >= 0.1:
        raise ValueError(f"[init] bound is {bound}: expected 0.1 or more")
    rng = random.generator()
    z = rng.standard_normal(tensor.shape)
    while (outside := np.abs(z) > bound).any():
        z[outside] = rng.standard_normal(np.count_nonzero(outside))
    return _fill(tensor, mean + std * z)


def zeros(tensor: T) -> T:
    """Fill with zeros."""
    return _fill(tensor, np.zeros(tensor.shape))


def ones(tensor: T) -> T:
    """Fill with ones."""
    return _fill(tensor, np.ones(tensor.shape))


def kaiming_uniform(tensor: T, *, negative_slope: float = math.sqrt(5), mode: str = "fan_in") -> T:
    """Fill uniformly in +-sqrt(6 / ((1 + negative_slope^2) fan)).

    Args:
        tensor: (out, in, kernel…).
        negative_slope: of the leaky ReLU that follows: 0 for a ReLU. The default gives ``+-1 / sqrt(fan)``, the usual
            start of linear and convolution layers.
        mode: ``"fan_in"`` keeps the forward signal's scale, ``"fan_out"`` the gradient's.

    Returns:
        ``tensor``.

    Raises:
        ValueError: fewer than 2 dimensions, or another mode.

    Reference:
        K. He et al., "Delving Deep into Rectifiers", arXiv:1502.01852, section 2.2.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, negative_slope, mode)
    return uniform(tensor, -bound, bound)


def kaiming_normal(tensor: T, *, negative_slope: float = 0.0, mode: str = "fan_in") -> T:
    """Fill with normal numbers of variance 2 / ((1 + negative_slope^2) fan); the rest as :func:`kaiming_uniform`."""
    return normal(tensor, 0, _kaiming_std(tensor, negative_slope, mode))


def xavier_uniform(tensor: T, *, gain: float = 1.0) -> T:
    """Fill uniformly in +-gain sqrt(6 / (fan_in + fan_out)).

    Reference:
        X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
        2010, section 4.2.1.
    """
    bound = gain * math.sqrt(6 / max(1, sum(_fans(tensor))))
    return uniform(tensor, -bound, bound)


def xavier_normal(tensor: T, *, gain: float = 1.0) -> T:
    """Fill with normal numbers of variance gain^2 2 / (fan_in + fan_out); reference as :func:`xavier_uniform`."""
    return normal(tensor, 0, gain * math.sqrt(2 / max(1, sum(_fans(tensor)))))


def _kaiming_std(tensor: Tensor, negative_slope: float, mode: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'[init] mode is "{mode}": expected "fan_in" or "fan_out"')
    fan = _fans(tensor)[mode == "fan_out"]
    return math.sqrt(2 / ((1 + negative_slope**2) * max(1, fan)))


def _fill(tensor: T, values: Any) -> T:
    tensor.copy_from(as_tensor(values, tensor.raw.dtype))
    return tensor
