"""Convolution and pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe import ops
from drupe.nn import init
from drupe.nn.module import Module
from drupe.nn.norm import BatchNorm2d
from drupe.nn.parameter import Parameter
from drupe.tensor import Tensor, empty

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


class Conv2d(Module):
    """Two-dimensional convolution (:func:`drupe.ops.conv2d`).

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: (R, S), or one number for both.
        stride: (rows, columns), or one number for both.
        padding: rows and columns of zeros on each side, or ((top, bottom), (left, right)).
        dilation: (rows, columns), or one number for both.
        groups: divides C and K.
        bias: whether there is one.
        activation: as for :class:`Linear`.
        layout: ``"NCHW"`` or ``"NHWC"``, of input and output.
        algorithm: ``"auto"``, ``"direct"`` or ``"winograd"``.

    Attributes:
        weight: (K, C / groups, R, S), uniform in +-1 / sqrt(C / groups R S) at first.
        bias: (K,), the same, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str | None = None,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"[Conv2d] {groups} groups do not divide {in_channels} input and {out_channels} output channels"
            )
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.activation, self.layout, self.algorithm = activation, layout, algorithm
        shape = (out_channels, in_channels // groups, *_pair(kernel_size))
        self.weight = init.kaiming_uniform(Parameter(empty(shape)))
        bound = init.fan_in_bound(self.weight)
        self.bias = init.uniform(Parameter(empty((out_channels,))), -bound, bound) if bias else None

    def forward(self, x: Any, *, residual: Any = None) -> Any:
        """Return (B, K, H', W') for ``x`` (B, C, H, W); channels last with ``layout="NHWC"``."""
        packed = self._packed(lambda: self._filters(self.weight), self.weight)
        weight, bias = self.weight if packed is None else packed, self.bias
        return self._convolve(x, weight, bias, residual, self.activation)

    def _convolve(self, x: Any, weight: Any, bias: Any, residual: Any, activation: str | None) -> Any:
        return ops.conv2d(
            x,
            weight,
            bias=bias,
            residual=residual,
            **self._window(),
            activation=activation,
            layout=self.layout,
        )

    def _window(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups", "algorithm")
        return {name: getattr(self, name) for name in names}

    def _filters(self, weight: Tensor) -> ops.PackedFilters:
        return ops.pack_filters(weight, **self._window())

    def _folded(self, norm: BatchNorm2d) -> tuple[ops.PackedFilters, Tensor] | None:
        """Return the weight and the bias of one convolution that does what both do after ``eval()``, if packed."""

        def fold() -> tuple[ops.PackedFilters, Tensor]:
            dtype = self.weight.raw.dtype
            wide = "float64" if dtype == "float64" else "float32"
            weight, gain, shift, mean, var = (
                t.detach().astype(wide)
                for t in (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
            )
            scale = gain / ops.sqrt(var + norm.eps)
            center = mean if self.bias is None else mean - self.bias.detach().astype(wide)
            scaled = weight * scale.reshape((scale.size, 1, 1, 1))
            return self._filters(scaled.astype(dtype)), (shift - center * scale).astype(dtype)

        sources = self.weight, self.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
        return self._packed(fold, *sources)

    def extra_repr(self) -> str:
        """Name the sizes."""
        out_channels, in_channels, *kernel = self.weight.shape
        text = f"{in_channels * self.groups}, {out_channels}, kernel_size={tuple(kernel)}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != 0 else ""
        text += f", dilation={self.dilation}" if self.dilation != 1 else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        text += ", bias=False" if self.bias is None else ""
        return text + (f", {self.activation}" if self.activation else "")


def conv_norm(x: Any, conv: Conv2d, norm: BatchNorm2d, *, residual: Any = None, activation: str | None = None) -> Any:
    """Return ``activation(norm(conv(x)) + residual)``.

    After ``eval()`` and :meth:`Module.pack_weights` the norm's scale is part of the convolution's weight, and all of it
    one :func:`drupe.ops.conv2d`: the same numbers but for rounding. In 16 bits the scaled weight is rounded, the
    convolution's result is not.

    Args:
        x: (B, C, H, W); channels last with ``layout="NHWC"``, which both layers then have.
        conv: the convolution.
        norm: of its output channels.
        residual: the shape of the result.
        activation: the name of an op of one argument: ``"relu"``, ``"gelu"``, …
    """
    if not norm.training and conv.activation is None and (folded := conv._folded(norm)) is not None:
        return conv._convolve(x, *folded, residual, activation)
    y = norm(conv(x))
    y = y if residual is None else y + residual
    return y if activation is None else getattr(ops, activation)(y)


class MaxPool2d(Module):
    """Maximum over windows (:func:`drupe.ops.max_pool2d`).

    Args:
        kernel_size: (rows, columns), or one number for both.
        stride: the same; ``kernel_size`` by default.
        padding: rows and columns of -infinity on each side.
        layout: ``"NCHW"`` or ``"NHWC"``.
    """

    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, *, layout: str = "NCHW"
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.layout = padding, layout

    def forward(self, x: Any) -> Any:
        """Return (B, C, H', W') for ``x`` (B, C, H, W)."""
        return ops.max_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding, layout=self.layout)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(MaxPool2d):
    """Mean over windows (:func:`drupe.ops.avg_pool2d`); arguments as :class:`MaxPool2d`, padding with zeros."""

    def forward(self, x: Any) -> Any:
        """Return (B, C, H', W') for ``x`` (B, C, H, W)."""
        return ops.avg_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding, layout=self.layout)


class AdaptiveAvgPool2d(Module):
    """Mean over as many windows as asked for (:func:`drupe.ops.adaptive_avg_pool2d`).

    Args:
        output_size: (H', W'), or one number for both.
        layout: ``"NCHW"`` or ``"NHWC"``.
    """

    def __init__(self, output_size: Pair, *, layout: str = "NCHW") -> None:
        self.output_size, self.layout = output_size, layout

    def forward(self, x: Any) -> Any:
        """Return (B, C, H', W') for ``x`` (B, C, H, W)."""
        return ops.adaptive_avg_pool2d(x, self.output_size, layout=self.layout)

    def extra_repr(self) -> str:
        """Name the size."""
        return f"output_size={self.output_size}"
