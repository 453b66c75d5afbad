"""The fully connected layer."""

from __future__ import annotations

from typing import Any, ClassVar

from drupe import ops
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

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, activation: str | None = None
    ) -> None:
        self.activation = activation
        self.weight = init.kaiming_uniform(Parameter(empty((out_features, in_features))))
        bound = init.fan_in_bound(self.weight)
        self.bias = init.uniform(Parameter(empty((out_features,))), -bound, bound) if bias else None

    def forward(self, x: Any, *, residual: Any = None) -> Any:
        """Return (..., N) for ``x`` (..., K) and an optional ``residual`` that broadcasts to the result."""
        kept = self._packed(self._prepare, self.weight)
        if isinstance(kept, ops.QuantizedWeight):
            return ops.gemm_quantized(x, kept, self.bias, residual=residual, activation=self.activation)
        return ops.gemm(
            x,
            self.weight if kept is None else kept,
            bias=self.bias,
            residual=residual,
            transpose_b=self._transposed,
            activation=self.activation,
        )

    def _prepare(self) -> ops.PackedWeight | ops.QuantizedWeight:
        if (how := self._quantization) is not None:
            return ops.quantize_weight(self.weight, how.dtype, transpose_b=self._transposed, group=how.group)
        return ops.pack_weight(self.weight, transpose_b=self._transposed)

    def extra_repr(self) -> str:
        """Name the sizes."""
        out_features, in_features = self.weight.shape
        extra = "" if self.bias is not None else ", bias=False"
        return f"{in_features}, {out_features}{extra}" + (f", {self.activation}" if self.activation else "")
