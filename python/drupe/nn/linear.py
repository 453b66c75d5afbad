"""The fully connected layer."""

from __future__ import annotations

from typing import Any, ClassVar

from drupe import ops
from drupe.autograd import is_grad_enabled
from drupe.nn import init
from drupe.nn.module import Module
from drupe.nn.parameter import Parameter
from drupe.tensor import empty


class Linear(Module):
    """``y = activation(x weight^T + bias + residual)``, one fused :func:`drupe.ops.gemm`.

    Args:
        in_features: K, the size of the last dimension of ``x``.
        out_features: N.
        bias: whether there is one.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``, ``"tanh"`` or None.

    Attributes:
        weight: (N, K), uniform in +-1 / sqrt(K) at first.
        bias: (N,), the same, or None.
    """

    _transposed: ClassVar[bool] = True  # whether the weight is (N, K)
    _packed: ops.PackedWeight | None = None
    _packed_version = 0

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, activation: str | None = None
    ) -> None:
        self.activation = activation
        self.weight = init.kaiming_uniform(Parameter(empty((out_features, in_features))))
        bound = init.fan_in_bound(self.weight)
        self.bias = init.uniform(Parameter(empty((out_features,))), -bound, bound) if bias else None

    def forward(self, x: Any, *, residual: Any = None) -> Any:
        """Return (..., N) for ``x`` (..., K) and an optional ``residual`` that broadcasts to the result."""
        return ops.gemm(
            x,
            self._packed if self._may_use_packed() else self.weight,
            bias=self.bias,
            residual=residual,
            transpose_b=self._transposed,
            activation=self.activation,
        )

    def _pack(self) -> None:
        self._packed = ops.pack_weight(self.weight, transpose_b=self._transposed)
        self._packed_version = self.weight.version

    def _unpack(self) -> None:
        self._packed = None

    def _may_use_packed(self) -> bool:
        """Whether there is a packed weight that is still this layer's; one that may have changed is dropped."""
        if self._packed is None:
            return False
        replaced = self._packed.raw is not self.weight.raw or self._packed_version != self.weight.version
        if replaced or (is_grad_enabled() and self.weight.requires_grad):
            self._packed = None
        return self._packed is not None

    def extra_repr(self) -> str:
        """Name the sizes."""
        out_features, in_features = self.weight.shape
        extra = "" if self.bias is not None else ", bias=False"
        return f"{in_features}, {out_features}{extra}" + (f", {self.activation}" if self.activation else "")
