"""BERT: an encoder of text, its masked-language-model head, and a classifier on top.

Names of parameters and of the configuration are those of Hugging Face's ``BertForMaskedLM`` and
``BertForSequenceClassification``, so that their checkpoints load here and ours there.

Reference:
    J. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    arXiv:1810.04805.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from drupe import nn, ops
from drupe.models._pretrained import ACTIVATIONS, read_config, read_state, write
from drupe.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter
from drupe.tensor import Tensor, zeros
from drupe.train import Model

Bert = TypeVar("Bert", bound="_Pretrained")


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT, named as in Hugging Face's ``config.json``; the defaults are those of bert-base-uncased.

    Attention probabilities are never dropped out: the fused kernel does not hold them.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    num_labels: int = 2

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"[BertConfig] {self.num_attention_heads} attention heads do not divide hidden size {self.hidden_size}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f'[BertConfig] hidden_act is "{self.hidden_act}": expected one of {", ".join(ACTIVATIONS)}'
            )

    @classmethod
    def base(cls, **changes: Any) -> BertConfig:
        """Return the sizes of BERT-base: 12 layers of 768."""
        return replace(cls(), **changes)

    @classmethod
    def large(cls, **changes: Any) -> BertConfig:
        """Return the sizes of BERT-large: 24 layers of 1024."""
        sizes = cls(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        return replace(sizes, **changes)

    @classmethod
    def tiny(cls, **changes: Any) -> BertConfig:
        """Return sizes that train on a processor in a minute: 2 layers of 128."""
        sizes = cls(
            vocab_size=4096,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=128,
        )
        return replace(sizes, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BertConfig:
        """Return the configuration in a ``config.json``; entries that mean nothing here are passed over."""
        known = {field.name for field in fields(cls)}
        chosen = {name: value for name, value in values.items() if name in known}
        if "num_labels" not in chosen and "id2label" in values:
            chosen["num_labels"] = len(values["id2label"])
        return cls(**chosen)


class BertEmbeddings(Module):
    """Sum of word, position and segment vectors, normalised."""

    def __init__(self, config: BertConfig) -> None:
        D = config.hidden_size
        self.word_embeddings = Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.position_embeddings = Embedding(config.max_position_embeddings, D)
        self.token_type_embeddings = Embedding(config.type_vocab_size, D)
        self.LayerNorm = LayerNorm(D, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
        """Return (B, S, D) for token ids (B, S)."""
        B, S = input_ids.shape
        limit = self.position_embeddings.weight.shape[0]
        if limit < S:
            raise ValueError(f"[BertEmbeddings] input_ids is {(B, S)}: there are positions for {limit} tokens only")
        if token_type_ids is None:
            token_type_ids = np.zeros((1, S), np.int64)
        x = self.word_embeddings(input_ids)  # (B, S, D)
        context = self.position_embeddings(np.arange(S)) + self.token_type_embeddings(token_type_ids)  # (1 or B, S, D)
        return self.dropout(self.LayerNorm(x + context))


class BertSelfAttention(Module):
    """Scaled dot-product attention of several heads."""

    def __init__(self, config: BertConfig) -> None:
        D = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = Linear(D, D)
        self.key = Linear(D, D)
        self.value = Linear(D, D)

    def forward(self, x: Tensor, mask: Mapping[str, Any]) -> Any:
        """Return (B, S, D)."""
        q, k, v = (
            ops.split_heads(layer(x), self.heads)[0]  # (B, H, S, D / H)
            for layer in (self.query, self.key, self.value)
        )
        return ops.merge_heads(ops.attention(q, k, v, **mask))


class BertOutput(Module):
    """Project, drop out, add to what came before, normalise: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: BertConfig) -> None:
        self.dense = Linear(in_features, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        """Return (B, S, D)."""
        if self.training and self.dropout.p > 0:
            return self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return self.LayerNorm(self.dense(x, residual=residual))


class BertAttention(Module):
    """The first half of a layer."""

    def __init__(self, config: BertConfig) -> None:
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, x: Tensor, mask: Mapping[str, Any]) -> Any:
        """Return (B, S, D)."""
        return self.output(self.self(x, mask), x)


class BertIntermediate(Module):
    """The wide layer of the second half."""

    def __init__(self, config: BertConfig) -> None:
        activation = ACTIVATIONS[config.hidden_act]
        self.dense = Linear(config.hidden_size, config.intermediate_size, activation=activation)

    def forward(self, x: Tensor) -> Any:
        """Return (B, S, I)."""
        return self.dense(x)


class BertLayer(Module):
    """Attention, then a two-layer perceptron, each with a residual connection."""

    def __init__(self, config: BertConfig) -> None:
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Mapping[str, Any]) -> Any:
        """Return (B, S, D)."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class BertEncoder(Module):
    """The layers, one after another."""

    def __init__(self, config: BertConfig) -> None:
        self.layer = ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Mapping[str, Any]) -> Any:
        """Return (B, S, D)."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class BertPooler(Module):
    """One vector per row, from its first token."""

    def __init__(self, config: BertConfig) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, activation="tanh")

    def forward(self, x: Tensor) -> Any:
        """Return (B, D) for (B, S, D)."""
        B, S, D = x.shape
        first = ops.embedding(x.reshape((B * S, D)), np.arange(B) * S)  # (B, D)
        return self.dense(first)


class BertModel(Module):
    """The encoder without a head.

    Args:
        config: the sizes.
        pooler: whether there is one; masked language modelling needs none.
    """

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if pooler else None

    def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Any:
        """Return the last hidden states.

        Args:
            input_ids: (B, S), integers.
            attention_mask: (B, S), 0 where there is padding; none by default.
            token_type_ids: (B, S), the segments; 0 by default.

        Returns:
            (B, S, D).
        """
        if len(input_ids.shape) != 2:
            raise ValueError(f"[BertModel] input_ids has shape {tuple(input_ids.shape)}: expected (batch, tokens)")
        mask = _attention_arguments(attention_mask, tuple(input_ids.shape))
        return self.encoder(self.embeddings(input_ids, token_type_ids), mask)


class _Pretrained(Model):
    """What the models with heads share: initial values, and checkpoints."""

    aliases: ClassVar[Mapping[str, str]] = {}  # a tied parameter's other names -> the name that it is saved under
    heads: ClassVar[tuple[str, ...]] = ()  # prefixes of what a checkpoint of another model may lack

    def __init__(self, config: BertConfig) -> None:
        self.config = config

    def _initialise(self) -> None:
        """Draw weights from a truncated normal distribution, as the authors do; biases start at zero."""
        for module in self.modules():
            if isinstance(module, Linear | Embedding):
                nn.init.trunc_normal(module.weight, std=self.config.initializer_range)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros(module.bias)
            if isinstance(module, Embedding) and module.padding_idx is not None:
                nn.init.zeros(module.weight.detach()[module.padding_idx])

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` as Hugging Face does: tied parameters once."""
        config = asdict(self.config)
        labels = config.pop("num_labels")
        config |= {
            "architectures": [type(self).__name__],
            "model_type": "bert",
            "attention_probs_dropout_prob": 0.0,
            "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
            "label2id": {f"LABEL_{i}": i for i in range(labels)},
        }
        state = {name: value for name, value in self.state_dict().items() if name not in self.aliases}
        write(directory, config, state)

    @classmethod
    def from_pretrained(cls: type[Bert], directory: str | Path, **changes: Any) -> Bert:
        """Return the model of a directory with ``config.json`` and ``model.safetensors``.

        A head that the checkpoint lacks keeps its random values; parameters of other heads are passed over.

        Args:
            directory: written by :meth:`save_pretrained` or by Hugging Face's.
            **changes: fields of the configuration to change, such as ``num_labels``.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: the encoder is incomplete, or a shape differs from the configuration's.
        """
        config = BertConfig.from_dict(read_config(directory))
        model = cls(replace(config, **changes))
        model.load_pretrained(read_state(directory))
        return model

    def load_pretrained(self, state: Mapping[str, Any]) -> list[str]:
        """Copy what fits from a checkpoint of any BERT model: see :meth:`from_pretrained`.

        Args:
            state: name -> array; with or without the prefix ``bert.``, with old names of LayerNorm's parameters or new.

        Returns:
            The names of parameters that the checkpoint lacks.
        """
        targets = self.state_dict()
        found = {}
        for name, value in state.items():
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            name = name if name in targets or f"bert.{name}" not in targets else f"bert.{name}"
            if name in targets:
                found[name] = value
        found |= {other: found[name] for other, name in self.aliases.items() if name in found}
        missing = [name for name in targets if name not in found]
        essential = [name for name in missing if not name.startswith(self.heads)]
        if essential:
            raise ValueError(f"[load_pretrained] the checkpoint lacks {', '.join(essential)}")
        self.load_state_dict(found, strict=False)
        return missing


class BertPredictionHeadTransform(Module):
    """A dense layer before the decoder."""

    def __init__(self, config: BertConfig) -> None:
        D = config.hidden_size
        self.dense = Linear(D, D, activation=ACTIVATIONS[config.hidden_act])
        self.LayerNorm = LayerNorm(D, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Any:
        """Return the shape of ``x`` (..., D)."""
        return self.LayerNorm(self.dense(x))


class BertLMPredictionHead(Module):
    """From hidden states to logits over the vocabulary, by the transpose of the word vectors."""

    def __init__(self, config: BertConfig, word_embeddings: Parameter) -> None:
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.decoder.weight = word_embeddings
        self.bias = Parameter(zeros((config.vocab_size,)))
        self.decoder.bias = self.bias

    def forward(self, x: Tensor) -> Any:
        """Return (..., V) for (..., D)."""
        return self.decoder(self.transform(x))


class BertOnlyMLMHead(Module):
    """Holds the head under the name that checkpoints have for it."""

    def __init__(self, config: BertConfig, word_embeddings: Parameter) -> None:
        self.predictions = BertLMPredictionHead(config, word_embeddings)

    def forward(self, x: Tensor) -> Any:
        """Return (..., V) for (..., D)."""
        return self.predictions(x)


class BertForMaskedLM(_Pretrained):
    """BERT that guesses hidden tokens; input and output layer share their weights.

    Args:
        config: the sizes.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    heads = ("cls.",)

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, pooler=False)
        self.cls = BertOnlyMLMHead(config, self.bert.embeddings.word_embeddings.weight)
        self._initialise()

    def forward(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, masked_positions: Any = None
    ) -> Any:
        """Return logits over the vocabulary; arguments as :meth:`BertModel.forward`.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S).
            token_type_ids: (B, S).
            masked_positions: (B, P), the only positions to give logits for; all by default.

        Returns:
            (B, S, V), or (B, P, V).
        """
        x = self.bert(input_ids, attention_mask, token_type_ids)  # (B, S, D)
        if masked_positions is not None:
            B, S, D = x.shape
            positions = np.asarray(masked_positions)
            if positions.ndim != 2 or len(positions) != B or np.any((positions < 0) | (positions >= S)):
                raise IndexError(f"[BertForMaskedLM] masked_positions {positions.shape} must lie in rows of {S} tokens")
            x = ops.embedding(x.reshape((B * S, D)), positions + S * np.arange(B)[:, None])  # (B, P, D)
        return self.cls(x)


class BertForSequenceClassification(_Pretrained):
    """BERT that sorts texts into ``config.num_labels`` classes.

    Args:
        config: the sizes.
    """

    heads = ("classifier.", "bert.pooler.")

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self._initialise()

    def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Any:
        """Return logits (B, num_labels); arguments as :meth:`BertModel.forward`."""
        x = self.bert(input_ids, attention_mask, token_type_ids)  # (B, S, D)
        assert self.bert.pooler is not None
        return self.classifier(self.dropout(self.bert.pooler(x)))


def _attention_arguments(attention_mask: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the mask as :func:`drupe.ops.attention` takes it: lengths where padding is on the right, else a bias."""
    if attention_mask is None:
        return {}
    mask = np.asarray(attention_mask) != 0  # (B, S)
    if mask.shape != shape:
        raise ValueError(f"[BertModel] attention_mask is {mask.shape}, input_ids {shape}: expected the same shape")
    if mask.all():
        return {}
    lengths = mask.sum(axis=1)
    if np.array_equal(mask, np.arange(shape[1]) < lengths[:, None]):
        return {"lengths": lengths.astype(np.int64)}
    bias = np.where(mask, np.float32(0), np.float32(-np.inf))
    return {"bias": bias[:, None, None, :]}  # (B, 1, 1, S)
