"""The ops. Each takes ``drupe.Tensor``, NumPy arrays, or anything with ``__dlpack__``, and gives back that kind.

A processor with AVX512-BF16 may round results of bfloat16 by instruction in products, activations, norms, softmax,
losses and dropout: to nearest even, but those below 1.2e-38 to zero.
"""

from drupe.ops.activation import gelu, relu, sigmoid, silu, tanh
from drupe.ops.attention import attention
from drupe.ops.batch_norm import batch_norm
from drupe.ops.bce_with_logits import bce_with_logits
from drupe.ops.cached_attention import cached_attention
from drupe.ops.conv2d import conv2d
from drupe.ops.cross_entropy import cross_entropy
from drupe.ops.ctc_loss import ctc_loss
from drupe.ops.dropout import dropout
from drupe.ops.elementwise import (
    abs,
    add,
    ceil,
    clamp,
    cos,
    div,
    eq,
    erf,
    exp,
    expm1,
    floor,
    ge,
    gt,
    isfinite,
    isnan,
    le,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    pow,
    reciprocal,
    round,
    rsqrt,
    sign,
    sin,
    sqrt,
    square,
    sub,
    where,
)
from drupe.ops.embedding import embedding
from drupe.ops.embedding_bag import embedding_bag
from drupe.ops.embedding_step import embedding_bag_step, embedding_step
from drupe.ops.fm_interaction import fm_interaction
from drupe.ops.gemm import gemm
from drupe.ops.gemm_int8 import gemm_int8
from drupe.ops.gemm_quantized import gemm_quantized
from drupe.ops.group_norm import group_norm
from drupe.ops.gru import gru
from drupe.ops.heads import append_rows, merge_heads, split_heads
from drupe.ops.layer_norm import layer_norm
from drupe.ops.linear_cross_entropy import linear_cross_entropy
from drupe.ops.lstm import lstm
from drupe.ops.matmul import matmul
from drupe.ops.mse import mse
from drupe.ops.optimizer import adam, adamw, clip_factor, global_norm, rmsprop, sgd
from drupe.ops.pack_filters import PackedFilters, pack_filters
from drupe.ops.pack_weight import PackedWeight, pack_weight
from drupe.ops.pool2d import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from drupe.ops.quantize_int8 import quantize_int8
from drupe.ops.quantize_weight import QuantizedWeight, quantize_weight
from drupe.ops.reduce import all, any, argmax, argmin, logsumexp, max, mean, min, prod, sum, topk, var
from drupe.ops.rms_norm import rms_norm
from drupe.ops.sample import sample
from drupe.ops.shape import (
    broadcast_to,
    cast,
    concat,
    contiguous,
    flatten,
    getitem,
    pad,
    permute,
    reshape,
    split,
    squeeze,
    stack,
    transpose,
    unsqueeze,
)
from drupe.ops.softmax import log_softmax, softmax
from drupe.ops.spmm import propagate, spmm
from drupe.ops.table_rows import hash_ids, table_rows

__all__ = [
    "PackedFilters",
    "PackedWeight",
    "QuantizedWeight",
    "abs",
    "adam",
    "adamw",
    "adaptive_avg_pool2d",
    "add",
    "all",
    "any",
    "append_rows",
    "argmax",
    "argmin",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "bce_with_logits",
    "broadcast_to",
    "cached_attention",
    "cast",
    "ceil",
    "clamp",
    "clip_factor",
    "concat",
    "contiguous",
    "conv2d",
    "cos",
    "cross_entropy",
    "ctc_loss",
    "div",
    "dropout",
    "embedding",
    "embedding_bag",
    "embedding_bag_step",
    "embedding_step",
    "eq",
    "erf",
    "exp",
    "expm1",
    "flatten",
    "floor",
    "fm_interaction",
    "ge",
    "gelu",
    "gemm",
    "gemm_int8",
    "gemm_quantized",
    "getitem",
    "global_norm",
    "group_norm",
    "gru",
    "gt",
    "hash_ids",
    "isfinite",
    "isnan",
    "layer_norm",
    "le",
    "linear_cross_entropy",
    "log",
    "log1p",
    "log_softmax",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsumexp",
    "lstm",
    "lt",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "merge_heads",
    "min",
    "minimum",
    "mse",
    "mul",
    "ne",
    "neg",
    "pack_filters",
    "pack_weight",
    "pad",
    "permute",
    "pow",
    "prod",
    "propagate",
    "quantize_int8",
    "quantize_weight",
    "reciprocal",
    "relu",
    "reshape",
    "rms_norm",
    "rmsprop",
    "round",
    "rsqrt",
    "sample",
    "sgd",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softmax",
    "split",
    "split_heads",
    "spmm",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "sub",
    "sum",
    "table_rows",
    "tanh",
    "topk",
    "transpose",
    "unsqueeze",
    "var",
    "where",
]
