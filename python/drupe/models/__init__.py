"""Networks: each a file of its own, with its configuration on top, under the parameter names of the original."""

from drupe.models.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)
from drupe.models.deepfm import DeepFM, DeepFMConfig
from drupe.models.gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Model
from drupe.models.light_gcn import LightGCN, LightGCNConfig
from drupe.models.resnet import ResNet, ResNetConfig
from drupe.models.wide_deep import WideDeep, WideDeepConfig

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertModel",
    "DeepFM",
    "DeepFMConfig",
    "GPT2Config",
    "GPT2LMHeadModel",
    "GPT2Model",
    "LightGCN",
    "LightGCNConfig",
    "ResNet",
    "ResNetConfig",
    "WideDeep",
    "WideDeepConfig",
]
