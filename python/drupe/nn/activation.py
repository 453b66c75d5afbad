"""Activations as layers."""

from __future__ import annotations

from typing import Any

from drupe import ops
from drupe.nn.module import Module


class ReLU(Module):
    """``max(x, 0)``."""

    def forward(self, x: Any) -> Any:
        """Apply :func:`drupe.ops.relu`."""
        return ops.relu(x)


class GELU(Module):
    """``x Phi(x)``.

    Args:
        approximate: the tanh approximation instead.
    """

    def __init__(self, *, approximate: bool = False) -> None:
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        """Apply :func:`drupe.ops.gelu`."""
        return ops.gelu(x, approximate=self.approximate)

    def extra_repr(self) -> str:
        """Name the variant."""
        return "approximate=True" if self.approximate else ""


class SiLU(Module):
    """``x sigmoid(x)``."""

    def forward(self, x: Any) -> Any:
        """Apply :func:`drupe.ops.silu`."""
        return ops.silu(x)


class Sigmoid(Module):
    """``1 / (1 + e^-x)``."""

    def forward(self, x: Any) -> Any:
        """Apply :func:`drupe.ops.sigmoid`."""
        return ops.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Any) -> Any:
        """Apply :func:`drupe.ops.tanh`."""
        return ops.tanh(x)
