"""Layers: each holds its parameters and calls one op. Names of parameters are PyTorch's."""

from drupe.nn import init
from drupe.nn.activation import GELU, ReLU, Sigmoid, SiLU, Tanh
from drupe.nn.attention import MultiHeadAttention
from drupe.nn.container import Flatten, Identity, ModuleList, Sequential
from drupe.nn.conv import AdaptiveAvgPool2d, AvgPool2d, Conv2d, MaxPool2d, conv_norm
from drupe.nn.embedding import Embedding, EmbeddingBag
from drupe.nn.kv_cache import KVCache
from drupe.nn.linear import Linear
from drupe.nn.module import Module
from drupe.nn.norm import BatchNorm2d, Dropout, GroupNorm, LayerNorm, RMSNorm
from drupe.nn.parameter import Buffer, Parameter
from drupe.nn.recurrent import GRU, LSTM

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Buffer",
    "Conv2d",
    "Dropout",
    "Embedding",
    "EmbeddingBag",
    "Flatten",
    "GroupNorm",
    "Identity",
    "KVCache",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "MultiHeadAttention",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "conv_norm",
    "init",
]
