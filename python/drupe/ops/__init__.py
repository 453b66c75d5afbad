"""The ops. Each takes ``drupe.Tensor``, NumPy arrays, or anything with ``__dlpack__``, and gives back that kind."""

from drupe.ops.activation import gelu, relu, sigmoid, silu, tanh
from drupe.ops.attention import attention
from drupe.ops.conv2d import conv2d
from drupe.ops.gemm import gemm
from drupe.ops.softmax import log_softmax, softmax

__all__ = ["attention", "conv2d", "gelu", "gemm", "log_softmax", "relu", "sigmoid", "silu", "softmax", "tanh"]
