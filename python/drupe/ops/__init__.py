"""The ops. Each takes ``drupe.Tensor``, NumPy arrays, or anything with ``__dlpack__``, and gives back that kind."""

from drupe.ops.activation import gelu, relu, sigmoid, silu, tanh
from drupe.ops.attention import attention
from drupe.ops.batch_norm import batch_norm
from drupe.ops.conv2d import conv2d
from drupe.ops.gemm import gemm
from drupe.ops.group_norm import group_norm
from drupe.ops.layer_norm import layer_norm
from drupe.ops.rms_norm import rms_norm
from drupe.ops.softmax import log_softmax, softmax

__all__ = [
    "attention",
    "batch_norm",
    "conv2d",
    "gelu",
    "gemm",
    "group_norm",
    "layer_norm",
    "log_softmax",
    "relu",
    "rms_norm",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]
