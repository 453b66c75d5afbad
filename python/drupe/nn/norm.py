"""Normalisation layers and dropout."""

from __future__ import annotations

from typing import Any

from drupe import ops
from drupe.nn.module import Module
from drupe.nn.parameter import Buffer, Parameter
from drupe.tensor import ones, zeros


class LayerNorm(Module):
    """``(h - mean) / sqrt(var + eps) weight + bias`` with ``h = x + residual`` (:func:`drupe.ops.layer_norm`).

    Args:
        features: D, the size of the last dimension, or those of the last dimensions, over which mean and variance go.
        eps: keeps the root from zero.
        bias: whether there is one.

    Attributes:
        weight: (D,) or those sizes, ones at first.
        bias: the same, zeros at first, or None.
    """

    def __init__(self, features: int | tuple[int, ...], eps: float = 1e-5, *, bias: bool = True) -> None:
        shape = (features,) if isinstance(features, int) else tuple(features)
        self.eps = eps
        self.weight = Parameter(ones(shape))
        self.bias = Parameter(zeros(shape)) if bias else None

    def forward(self, x: Any, *, residual: Any = None) -> Any:
        """Return the shape of ``x`` (..., D), and of ``residual`` if there is one."""
        ndim = self.weight.ndim
        return ops.layer_norm(x, self.weight, self.bias, residual=residual, eps=self.eps, ndim=ndim)

    def extra_repr(self) -> str:
        """Name the sizes."""
        shape = self.weight.shape
        return f"{shape[0] if len(shape) == 1 else shape}, eps={self.eps}"


class RMSNorm(Module):
    """``h / sqrt(mean(h^2) + eps) weight`` with ``h = x + residual`` (:func:`drupe.ops.rms_norm`).

    Args:
        features: D, the size of the last dimension.
        eps: keeps the root from zero.

    Attributes:
        weight: (D,), ones at first.
    """

    def __init__(self, features: int, eps: float = 1e-6) -> None:
        self.eps = eps
        self.weight = Parameter(ones((features,)))

    def forward(self, x: Any, *, residual: Any = None) -> Any:
        """Return the shape of ``x`` (..., D), and of ``residual`` if there is one."""
        return ops.rms_norm(x, self.weight, residual=residual, eps=self.eps)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"{self.weight.size}, eps={self.eps}"


class GroupNorm(Module):
    """Normalise each group of channels of each sample (:func:`drupe.ops.group_norm`).

    Args:
        groups: how many; divides ``channels``.
        channels: C.
        eps: keeps the root from zero.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Attributes:
        weight: (C,), ones at first.
        bias: (C,), zeros at first.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, *, layout: str = "NCHW") -> None:
        if groups < 1 or channels % groups:
            raise ValueError(f"[GroupNorm] {groups} groups do not divide {channels} channels")
        self.groups, self.eps, self.layout = groups, eps, layout
        self.weight = Parameter(ones((channels,)))
        self.bias = Parameter(zeros((channels,)))

    def forward(self, x: Any) -> Any:
        """Return the shape of ``x`` (B, C, H, W)."""
        return ops.group_norm(x, self.weight, self.bias, groups=self.groups, eps=self.eps, layout=self.layout)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"{self.groups}, {self.weight.size}, eps={self.eps}"


class BatchNorm2d(Module):
    """Normalise each channel over the batch, or by running statistics after ``eval()`` (:func:`drupe.ops.batch_norm`).

    Args:
        channels: C.
        eps: keeps the root from zero.
        momentum: the weight of the newest batch in the running statistics.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Attributes:
        weight: (C,), ones at first.
        bias: (C,), zeros at first.
        running_mean: (C,), zeros at first.
        running_var: (C,), ones at first; unbiased.
        num_batches_tracked: how many batches these have seen, int64.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, *, layout: str = "NCHW") -> None:
        self.eps, self.momentum, self.layout = eps, momentum, layout
        self.weight = Parameter(ones((channels,)))
        self.bias = Parameter(zeros((channels,)))
        self.running_mean = Buffer(zeros((channels,)))
        self.running_var = Buffer(ones((channels,)))
        self.num_batches_tracked = Buffer(zeros((), "int64"))

    def forward(self, x: Any) -> Any:
        """Return the shape of ``x`` (B, C, H, W); update the running statistics while training."""
        if self.training:
            self.num_batches_tracked.copy_from(ops.add(self.num_batches_tracked, 1))
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            layout=self.layout,
        )

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"{self.weight.size}, eps={self.eps}, momentum={self.momentum}"


class Dropout(Module):
    """While training, set elements to zero with probability ``p`` and scale the rest by ``1 / (1 - p)``.

    Args:
        p: in [0, 1).
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"[Dropout] p is {p}: expected a probability")
        self.p = p

    def forward(self, x: Any) -> Any:
        """Apply :func:`drupe.ops.dropout`; ``x`` itself after ``eval()`` or where ``p`` is 0."""
        return ops.dropout(x, self.p) if self.training and self.p > 0 else x

    def extra_repr(self) -> str:
        """Name the probability."""
        return f"p={self.p}"
