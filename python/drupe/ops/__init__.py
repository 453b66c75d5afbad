"""The ops. Each takes ``drupe.Tensor``, NumPy arrays, or anything with ``__dlpack__``, and gives back that kind."""

from drupe.ops.activation import gelu, relu, sigmoid, silu, tanh
from drupe.ops.attention import attention
from drupe.ops.batch_norm import batch_norm
from drupe.ops.conv2d import conv2d
from drupe.ops.embedding import embedding
from drupe.ops.gemm import gemm
from drupe.ops.group_norm import group_norm
from drupe.ops.layer_norm import layer_norm
from drupe.ops.optimizer import adam, adamw, global_norm, rmsprop, sgd
from drupe.ops.pool2d import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from drupe.ops.rms_norm import rms_norm
from drupe.ops.softmax import log_softmax, softmax

__all__ = [
    "adam",
    "adamw",
    "adaptive_avg_pool2d",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "embedding",
    "gelu",
    "gemm",
    "global_norm",
    "group_norm",
    "layer_norm",
    "log_softmax",
    "max_pool2d",
    "relu",
    "rms_norm",
    "rmsprop",
    "sgd",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]
