"""BERT-base on eight rows of 128 tokens: the encoder's forward pass, and a step of training a classifier.

Dropout is off, so that everybody computes the same numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops, optim
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup
from drupe.models.bert import BertConfig, BertForSequenceClassification, BertModel
from drupe.nn import Module

_OPTIONS: dict[str, Any] = {"lr": 1e-4, "weight_decay": 1e-2}
_TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2}


def cases(quick: bool) -> Iterator[Case]:
    """(B, S) tokens; float32, and bfloat16 weights."""
    B, S = (2, 16) if quick else (8, 128)
    config = BertConfig.tiny(hidden_dropout_prob=0.0) if quick else BertConfig.base(hidden_dropout_prob=0.0)
    D, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * D * D + 2 * D * config.intermediate_size)
    flops = 2 * B * S * weights + layers * 4 * B * S * S * D
    for dtype, forward_target, training_target in (("float32", 0.95, 0.5), ("bfloat16", 0.95, 0.75)):
        width = 4 if dtype == "float32" else 2
        described: dict[str, Any] = {"op": "bert", "shapes": f"B{B} S{S} D{D} L{layers}", "dtype": dtype}
        yield Case(
            name="forward",
            flops=flops,
            bytes_read=width * weights,
            bytes_written=width * B * S * D,
            setup=partial(forward, config, B, S, dtype),
            target=forward_target,
            **described,
        )
        yield Case(
            name="training step",
            flops=3 * flops,
            bytes_read=2 * width * weights + 16 * weights,
            bytes_written=width * weights + 12 * weights,
            setup=partial(training, config, B, S, dtype),
            target=training_target,
            **described,
        )


def _draw(config: BertConfig, B: int, S: int, rng: np.random.Generator) -> Any:
    return rng.integers(0, config.vocab_size, (B, S))


def _state(model: Module) -> dict[str, Any]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def _torch_model(kind: str, config: BertConfig, state: Mapping[str, Any]) -> Any:
    """Return Hugging Face's model with these weights."""
    transformers = importlib.import_module("transformers")

    peers.torch_module()
    sizes = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = getattr(transformers, kind)(sizes)
    theirs.load_state_dict({name: peers.torch_tensor(value) for name, value in state.items()}, strict=False)
    return theirs.to(drupe.get_default_device())


def forward(config: BertConfig, B: int, S: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The last hidden states, (B, S, D)."""
    model = BertModel(config, pooler=False).eval()
    tokens = _draw(config, B, S, rng)
    state = _state(model)
    model.astype(dtype).to(drupe.get_default_device()).pack_weights()

    def run() -> Any:
        with drupe.no_grad():
            return model(tokens).astype("float32")

    def torch(*, compiled: bool) -> Prepared:
        torch = peers.torch_module()
        theirs = _torch_model("BertModel", config, state).to(getattr(torch, dtype)).eval()
        network = torch.compile(theirs) if compiled else theirs
        ids = peers.torch_tensor(tokens)

        def call() -> Any:
            with torch.inference_mode():
                return network(ids).last_hidden_state

        return Prepared(call)

    def onnx() -> bytes:
        nodes, constants = encoder_graph(config, state, B, S)
        return peers.onnx_model(nodes, {"ids": tokens}, constants, output=np.float32)

    rivals: dict[str, Callable[[], Prepared]] = {
        "torch": lambda: torch(compiled=False),
        "torch:compile": lambda: torch(compiled=True),
        "openvino": lambda: peers.openvino_call(onnx(), {"ids": tokens}, dtype),
    }
    if dtype == "float32":
        rivals["onnxruntime"] = lambda: peers.onnxruntime_call(onnx(), {"ids": tokens})
    return Setup(drupe=run, peers=rivals, tolerance=_TOLERANCE[dtype])


def encoder_graph(
    config: BertConfig, state: Mapping[str, Any], B: int, S: int
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Return the encoder's ONNX nodes, from ``ids`` (B, S) to ``y`` (B, S, D), and its constants.

    Args:
        config: the sizes.
        state: the parameters of a :class:`BertModel`.
        B: rows.
        S: tokens of a row.
    """
    D, H = config.hidden_size, config.num_attention_heads
    nodes: list[Mapping[str, Any]] = []
    positions, segments = (state[f"embeddings.{kind}_embeddings.weight"] for kind in ("position", "token_type"))
    constants: dict[str, Any] = {
        "split": np.array([B, S, H, D // H]),
        "join": np.array([B, S, D]),
        "scale": np.array((D // H) ** -0.5, np.float32),
        "words": state["embeddings.word_embeddings.weight"],
        "context": positions[:S] + segments[0],
    }

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append({"op": op, "inputs": inputs, "outputs": [name], **attributes})
        return name

    def norm(x: str, prefix: str) -> str:
        names = [f"{prefix}.weight", f"{prefix}.bias"]
        constants.update({name: state[name] for name in names})
        return add("LayerNormalization", x, *names, axis=-1, epsilon=config.layer_norm_eps)

    def linear(x: str, prefix: str) -> str:
        weight, bias = f"{prefix}.weight", f"{prefix}.bias"
        constants.update({weight: state[weight].T, bias: state[bias]})
        return add("Add", add("MatMul", x, weight), bias)

    def heads(x: str, *perm: int) -> str:
        return add("Transpose", add("Reshape", x, "split"), perm=perm)

    x = norm(add("Add", add("Gather", "words", "ids"), "context"), "embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        q = heads(linear(x, f"{layer}.attention.self.query"), 0, 2, 1, 3)
        k = heads(linear(x, f"{layer}.attention.self.key"), 0, 2, 3, 1)
        v = heads(linear(x, f"{layer}.attention.self.value"), 0, 2, 1, 3)
        p = add("Softmax", add("Mul", add("MatMul", q, k), "scale"), axis=-1)
        y = add("Reshape", add("Transpose", add("MatMul", p, v), perm=(0, 2, 1, 3)), "join")
        y = linear(y, f"{layer}.attention.output.dense")
        x = norm(add("Add", y, x), f"{layer}.attention.output.LayerNorm")
        y = linear(add("Gelu", linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(add("Add", y, x), f"{layer}.output.LayerNorm")
    nodes.append({"op": "Identity", "inputs": [x], "outputs": ["y"]})
    return nodes, constants


def training(config: BertConfig, B: int, S: int, dtype: str, rng: np.random.Generator) -> Setup:
    """Forward, loss, backward and AdamW; the loss comes out. bfloat16: drupe's weights have a float32 master copy."""
    model = BertForSequenceClassification(config)
    tokens, labels = _draw(config, B, S, rng), rng.integers(0, config.num_labels, B)
    state = _state(model)
    model.astype(dtype).to(drupe.get_default_device())
    optimizer = optim.AdamW(model.parameters(), **_OPTIONS)

    def torch(*, compiled: bool) -> Prepared:
        torch = peers.torch_module()
        network = _torch_model("BertForSequenceClassification", config, state)
        ids, targets = peers.torch_tensor(tokens), peers.torch_tensor(labels)
        adamw = torch.optim.AdamW(network.parameters(), fused=True, **_OPTIONS)

        def loss_of() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                return network(ids, labels=targets).loss

        return peers.torch_step(torch.compile(loss_of) if compiled else loss_of, adamw)

    return Setup(
        drupe=peers.drupe_step(lambda: ops.cross_entropy(model(tokens), labels), optimizer),
        peers={"torch": lambda: torch(compiled=False), "torch:compile": lambda: torch(compiled=True)},
        tolerance=_TOLERANCE[dtype],
    )
