"""Convolution and pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drupe import ops
from drupe.autograd import is_grad_enabled
from drupe.nn import init
from drupe.nn.module import Module
from drupe.nn.norm import BatchNorm2d
from drupe.nn.parameter import Parameter
from drupe.tensor import Tensor, empty

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
Sources = list[tuple[Any, int]]  # what a copy was made from, and their versions


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
        self._constant = False  # whether pack_weights() was called
        self._packed: _Packed | None = None
        self.weight = init.kaiming_uniform(Parameter(empty(shape)))
        bound = init.fan_in_bound(self.weight)
        self.bias = init.uniform(Parameter(empty((out_channels,))), -bound, bound) if bias else None

    def forward(self, x: Any, *, residual: Any = None) -> Any:
        """Return (B, K, H', W') for ``x`` (B, C, H, W); channels last with ``layout="NHWC"``."""
        packed = self._constants(None)
        weight, bias = (self.weight, self.bias) if packed is None else (packed.filters, packed.bias)
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

    def _pack(self) -> None:
        self._constant, self._packed = True, None

    def _unpack(self) -> None:
        self._constant, self._packed = False, None

    def _constants(self, norm: BatchNorm2d | None) -> _Packed | None:
        """Return the packed weight and the bias, a norm folded into them; None, for good, if they may have changed."""
        if not self._constant:
            return None
        tensors: list[Tensor | None] = [self.weight, self.bias]
        if norm is not None:
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        sources: Sources = [(None, 0) if t is None else (t.raw, t.version) for t in tensors]
        if is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            self._unpack()
        elif self._packed is None:
            weight, bias = (self.weight, self.bias) if norm is None else _fold(self, norm)
            self._packed = _Packed(sources, ops.pack_filters(weight.detach(), **self._window()), bias)
        elif len(sources) != len(self._packed.sources) or any(
            raw is not other or version != before
            for (raw, version), (other, before) in zip(sources, self._packed.sources, strict=True)
        ):
            self._unpack()
        return self._packed

    def extra_repr(self) -> str:
        """Name the sizes."""
        out_channels, in_channels, *kernel = self.weight.shape
        text = f"{in_channels * self.groups}, {out_channels}, kernel_size={tuple(kernel)}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != 0 else ""
        text += f", dilation={self.dilation}" if self.dilation != 1 else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        text += ", bias=False" if self.bias is None else ""
        return text + (f", {self.activation}" if self.activation else "")


@dataclass(frozen=True)
class _Packed:
    sources: Sources
    filters: ops.PackedFilters
    bias: Tensor | None


def _fold(conv: Conv2d, norm: BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of one convolution that does what both do after ``eval()``."""
    dtype = conv.weight.raw.dtype
    wide = "float64" if dtype == "float64" else "float32"
    weight, gain, shift, mean, var = (
        t.detach().astype(wide) for t in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = gain / ops.sqrt(var + norm.eps)
    center = mean if conv.bias is None else mean - conv.bias.detach().astype(wide)
    folded = weight * scale.reshape((scale.size, 1, 1, 1))
    return folded.astype(dtype), (shift - center * scale).astype(dtype)


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
    if not norm.training and conv.activation is None and (packed := conv._constants(norm)) is not None:
        return conv._convolve(x, packed.filters, packed.bias, residual, activation)
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
