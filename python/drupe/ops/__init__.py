"""The ops. Each takes ``drupe.Tensor``, NumPy arrays, or anything with ``__dlpack__``, and gives back that kind."""

from drupe.ops.activation import gelu, relu, sigmoid, silu, tanh
from drupe.ops.gemm import gemm

__all__ = ["gelu", "gemm", "relu", "sigmoid", "silu", "tanh"]
