"""GPT-2: a decoder that guesses the next token, and generates text with it.

Names of parameters and of the configuration are those of Hugging Face's ``GPT2LMHeadModel``, so that its checkpoints
load here and ours there.

Reference:
    A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from drupe import nn, ops
from drupe.models._generate import generate
from drupe.models._pretrained import ACTIVATIONS, read_config, read_state, write
from drupe.models._sight import Sight, look
from drupe.nn import Dropout, Embedding, KVCache, LayerNorm, Linear, Module, ModuleList, Parameter
from drupe.tensor import Tensor, empty, zeros
from drupe.train import Model
from drupe.train.losses import Loss

_IGNORED = -100  # a label that does not count


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2, named as in Hugging Face's ``config.json``; the defaults are those of the smallest, gpt2.

    Attention probabilities are never dropped out: the fused kernel does not hold them.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"[GPT2Config] {self.n_head} attention heads do not divide n_embd {self.n_embd}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f'[GPT2Config] activation_function is "{self.activation_function}": expected one of '
                f"{', '.join(ACTIVATIONS)}"
            )

    @classmethod
    def small(cls, **changes: Any) -> GPT2Config:
        """Return the sizes of gpt2: 12 layers of 768."""
        return replace(cls(), **changes)

    @classmethod
    def medium(cls, **changes: Any) -> GPT2Config:
        """Return the sizes of gpt2-medium: 24 layers of 1024."""
        return replace(cls(n_embd=1024, n_layer=24, n_head=16), **changes)

    @classmethod
    def large(cls, **changes: Any) -> GPT2Config:
        """Return the sizes of gpt2-large: 36 layers of 1280."""
        return replace(cls(n_embd=1280, n_layer=36, n_head=20), **changes)

    @classmethod
    def xl(cls, **changes: Any) -> GPT2Config:
        """Return the sizes of gpt2-xl: 48 layers of 1600."""
        return replace(cls(n_embd=1600, n_layer=48, n_head=25), **changes)

    @classmethod
    def tiny(cls, **changes: Any) -> GPT2Config:
        """Return sizes that train on a processor in a minute: 2 layers of 128."""
        sizes = cls(
            vocab_size=4096, n_positions=128, n_embd=128, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
        )
        return replace(sizes, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """Return the configuration in a ``config.json``; entries that mean nothing here are passed over.

        Raises:
            ValueError: it has attention to another sequence, which these layers have not.
        """
        if values.get("add_cross_attention"):
            raise ValueError("[GPT2Config] add_cross_attention is set: expected a decoder alone")
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class Conv1D(Linear):
    """``y = activation(x weight + bias + residual)``: a linear layer that holds its weight as (in, out).

    Args:
        in_features: K.
        out_features: N.
        activation: as of :class:`drupe.nn.Linear`.

    Attributes:
        weight: (K, N).
        bias: (N,), zeros at first.
    """

    _transposed = False

    def __init__(self, in_features: int, out_features: int, *, activation: str | None = None) -> None:
        self.activation = activation
        self.weight = nn.init.normal(Parameter(empty((in_features, out_features))), std=0.02)
        self.bias = Parameter(zeros((out_features,)))

    def extra_repr(self) -> str:
        """Name the sizes."""
        in_features, out_features = self.weight.shape
        return f"{in_features}, {out_features}" + (f", {self.activation}" if self.activation else "")


class GPT2Attention(Module):
    """Causal attention of several heads, between one projection for q, k and v and one behind."""

    def __init__(self, config: GPT2Config, index: int) -> None:
        D = config.n_embd
        self.heads, self.index = config.n_head, index
        self.scale = 1 / math.sqrt(D // config.n_head) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= index + 1
        self.c_attn = Conv1D(D, 3 * D)
        self.c_proj = Conv1D(D, D)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Any, residual: Any, sight: Sight, last: bool) -> Any:
        """Return ``residual`` (B, S, D) plus the attention of ``x`` (B, S, D); with ``last`` (B, 1, D) of both."""
        fused = self.c_attn(x)  # (B, S, 3 D)
        if sight.cache is not None and not last:
            y = sight.cache.attend(self.index, fused, sight.starts, scale=self.scale, **sight.mask)
            return _project(self.c_proj, self.resid_dropout, y, residual)
        q, k, v = ops.split_heads(fused, self.heads, 3)  # (B, H, S, D / H)
        if sight.cache is not None:
            k, v = sight.cache.append(self.index, k, v, sight.starts)  # (B, H, n, D / H)
        if last:
            q = ops.split_heads(sight.last(fused), self.heads, 3)[0]  # (B, H, 1, D / H)
            residual = sight.last(residual)  # (B, 1, D)
        y = ops.attention(q, k, v, scale=self.scale, **(sight.last_mask if last else sight.mask))
        return _project(self.c_proj, self.resid_dropout, ops.merge_heads(y), residual)


class GPT2MLP(Module):
    """Two layers, with the activation between them."""

    def __init__(self, config: GPT2Config) -> None:
        D = config.n_embd
        inner = 4 * D if config.n_inner is None else config.n_inner
        self.c_fc = Conv1D(D, inner, activation=ACTIVATIONS[config.activation_function])
        self.c_proj = Conv1D(inner, D)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Any, residual: Any) -> Any:
        """Return ``residual`` plus what is made of ``x``, both (B, S, D)."""
        return _project(self.c_proj, self.dropout, self.c_fc(x), residual)


class GPT2Block(Module):
    """Attention, then the two-layer perceptron: each normalises first, and adds to what came before."""

    def __init__(self, config: GPT2Config, index: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, index)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Any, sight: Sight, last: bool = False) -> Any:
        """Return (B, S, D), or with ``last`` (B, 1, D)."""
        x = self.attn(self.ln_1(x), x, sight, last)
        return self.mlp(self.ln_2(x), x)


class GPT2Model(Module):
    """The decoder without a head.

    Args:
        config: the sizes.
    """

    def __init__(self, config: GPT2Config) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = ModuleList(GPT2Block(config, i) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        cache: KVCache | None = None,
        last: bool = False,
    ) -> Any:
        """Return the last hidden states; arguments as :meth:`GPT2LMHeadModel.forward`.

        Returns:
            (B, S, D), or with ``last`` (B, 1, D), of the last token of each sequence that is no padding.
        """
        if len(input_ids.shape) != 2:
            raise ValueError(f"[GPT2Model] input_ids has shape {tuple(input_ids.shape)}: expected (batch, tokens)")
        B, S = input_ids.shape
        sight = look(attention_mask, (B, S), cache, self.wte.weight.dtype)
        x = self.drop(self.wte(input_ids) + self._positions(position_ids, S, sight))  # (B, S, D)
        layers = list(self.h)
        for layer in layers[:-1]:
            x = layer(x, sight)
        x = layers[-1](x, sight, last and S > 1)
        if cache is not None:
            cache.lengths = cache.lengths + (S if sight.counts is None else sight.counts)
        return self.ln_f(x)

    def _positions(self, position_ids: Any, S: int, sight: Sight) -> Any:
        """Return the vectors (1 or B, S, D) of the positions."""
        end = S + (sight.starts if isinstance(sight.starts, int) else max(sight.starts))
        limit = self.wpe.weight.shape[0]
        if position_ids is None and end > limit:
            raise ValueError(f"[GPT2Model] {end} tokens: there are positions for {limit} tokens only")
        if position_ids is None:
            position_ids = np.reshape(sight.starts, (-1, 1)) + np.arange(S)
        return self.wpe(position_ids)


def _next_tokens(tokens: Any) -> Any:
    """Return the labels: each position's is the token after it, and the last has none."""
    return ops.pad(tokens[:, 1:], ((0, 0), (0, 1)), _IGNORED)


def _causal_loss(logits: Tensor, tokens: Tensor) -> Any:
    return ops.cross_entropy(logits, _next_tokens(tokens), ignore_index=_IGNORED)


def _next_token_accuracy(logits: npt.NDArray[Any], tokens: npt.NDArray[Any]) -> tuple[float, int]:
    counted = tokens[:, 1:] != _IGNORED
    hits = (logits[:, :-1].argmax(axis=-1) == tokens[:, 1:]) & counted
    return float(hits.sum()), int(counted.sum())


_CAUSAL_LOSS = Loss(
    _causal_loss,
    "accuracy",
    _next_token_accuracy,
    lambda tokens: int((tokens[:, 1:] != _IGNORED).sum()),
    integers=True,
)


class GPT2LMHeadModel(Model):
    """GPT-2 with logits over the vocabulary, by the transpose of the word vectors.

    ``fit`` takes the token ids as its input and, with -100 where they do not count, as its target: the loss compares
    the logits at each position with the token after it.

    Args:
        config: the sizes.
    """

    default_loss: ClassVar[str | Loss] = _CAUSAL_LOSS

    def __init__(self, config: GPT2Config) -> None:
        self.config = config
        self.transformer = GPT2Model(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as the authors do: the deeper the network, the less each layer adds at first."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal(parameter, std=std / math.sqrt(2 * self.config.n_layer))
            elif parameter.ndim == 2:
                nn.init.normal(parameter, std=std)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        cache: KVCache | None = None,
        last: bool = False,
    ) -> Any:
        """Return the logits of the tokens that come next.

        Args:
            input_ids: (B, S), integers.
            attention_mask: (B, S), 0 where there is padding, which with a cache is on the right alone; none by default.
            position_ids: (B, S) or (1, S); by default from 0 on, or from the end of what the cache holds.
            cache: of the tokens before these, which join it; under :func:`drupe.no_grad` alone.
            last: give the logits of the last token of each sequence alone, not counting padding, which leaves out most
                of the work of the last layer and of the head.

        Returns:
            (B, S, V), or (B, 1, V).

        Raises:
            ValueError: shapes that do not fit, more tokens than positions or room in the cache.
            IndexError: a token or a position that does not exist.
            RuntimeError: a cache while operations are recorded.
        """
        x = self.transformer(input_ids, attention_mask, position_ids=position_ids, cache=cache, last=last)
        return self.lm_head(x)

    def make_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """Return an empty cache for so many sequences of up to ``capacity`` tokens, by default ``n_positions``.

        Raises:
            ValueError: the capacity is more than ``n_positions``, or negative.
        """
        config, weight = self.config, self.transformer.wte.weight
        capacity = config.n_positions if capacity is None else capacity
        if capacity > config.n_positions:
            raise ValueError(f"[make_cache] room for {capacity} tokens, but n_positions is {config.n_positions}")
        return KVCache(
            config.n_layer,
            batch,
            config.n_head,
            capacity,
            config.n_embd // config.n_head,
            dtype=weight.dtype,
            device=weight.device,
        )

    def generate(
        self,
        input_ids: Any,
        max_new_tokens: int,
        *,
        attention_mask: Any = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        seed: int = 0,
    ) -> npt.NDArray[np.int64]:
        """Continue prompts, greedily unless there is a temperature.

        Args:
            input_ids: (B, S), integers, S at least 1.
            max_new_tokens: how many tokens to add, at most.
            attention_mask: (B, S), 0 where there is padding, which is on the left or on the right; none by default.
            temperature: as of :func:`drupe.ops.sample`; 0 takes the likeliest token.
            top_k: as there.
            top_p: as there.
            eos_token_id: the token that ends a sequence, and pads it afterwards; by default the configuration's, and
                -1 for none.
            seed: of the draws: the same seed gives the same tokens.

        Returns:
            (B, S + n): the prompts as they came, and n new tokens: fewer than ``max_new_tokens`` where all sequences
            have ended.

        Raises:
            ValueError: shapes that do not fit, an empty prompt, more tokens than positions, an option out of range.
            IndexError: a token that does not exist.
        """
        eos = self.config.eos_token_id if eos_token_id is None else eos_token_id
        return generate(
            self,
            input_ids,
            max_new_tokens,
            attention_mask=attention_mask,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=eos,
            seed=seed,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` as Hugging Face does: tied parameters once."""
        config = asdict(self.config) | {
            "architectures": [type(self).__name__],
            "model_type": "gpt2",
            "attn_pdrop": 0.0,
            "torch_dtype": str(self.transformer.wte.weight.dtype),
        }
        state = self.state_dict()
        if self.config.tie_word_embeddings:
            del state["lm_head.weight"]
        write(directory, config, state)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **changes: Any) -> GPT2LMHeadModel:
        """Return the model of a directory with ``config.json`` and ``model.safetensors``, in float32.

        Args:
            directory: written by :meth:`save_pretrained` or by Hugging Face's, of the bare ``GPT2Model`` too.
            **changes: fields of the configuration to change, such as ``resid_pdrop``.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: parameters are missing, or a shape differs from the configuration's.
        """
        config = GPT2Config.from_dict(read_config(directory))
        model = cls(replace(config, **changes))
        model.load_pretrained(read_state(directory))
        return model

    def load_pretrained(self, state: Mapping[str, Any]) -> None:
        """Copy the parameters of a checkpoint: see :meth:`from_pretrained`.

        Args:
            state: name -> array; with or without the prefix ``transformer.``, which heads have not. A head that shares
                its weight may be missing, and what is no parameter (``attn.bias``, the mask) is passed over.

        Raises:
            ValueError: parameters are missing, or a shape differs.
        """
        targets = self.state_dict()
        found = {}
        for name, value in state.items():
            name = name if name in targets else f"transformer.{name}"
            if name in targets:
                found[name] = value
        if self.config.tie_word_embeddings and "transformer.wte.weight" in found:
            found["lm_head.weight"] = found["transformer.wte.weight"]
        missing = [name for name in targets if name not in found]
        if missing:
            raise ValueError(f"[load_pretrained] the checkpoint lacks {', '.join(missing)}")
        self.load_state_dict(found)


def _project(layer: Conv1D, dropout: Dropout, x: Any, residual: Any) -> Any:
    """Return ``residual`` plus the projection of ``x``, in one product where nothing is dropped out."""
    if dropout.training and dropout.p > 0:
        return dropout(layer(x)) + residual
    return layer(x, residual=residual)
