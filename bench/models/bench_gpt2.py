"""GPT-2 small: a prompt of 512 tokens, and one more token behind a context of 512; the logits of the last position.

With weights of int8, drupe's other numbers are bfloat16; it is held against the float32 logits, and beside the float32
peers as well as those with weights of int8: openvino's are dequantised as they are read, onnxruntime quantises what it
multiplies them with too.

Drupe and torch keep keys and values in memory of a fixed capacity. The graph of the other peers gets those of the
context as inputs, laid out as its products want them, and keeps nothing: it has less to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup
from drupe.models import GPT2Config, GPT2LMHeadModel

_TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2}
# Of the prompt and of a step, by dtype.
_TARGETS = {"float32": (0.9, 1.0), "bfloat16": (0.95, 0.55)}
# Of a step with weights of int8, beside peers of these weights.
_INT8_TARGETS = {"float32": 0.3, "int8": 1.0}


def cases(quick: bool) -> Iterator[Case]:
    """Weights of float32, of bfloat16 and, for a step, of int8."""
    S = 16 if quick else 512
    config = GPT2Config.tiny() if quick else GPT2Config.small()
    D, V, layers = config.n_embd, config.vocab_size, config.n_layer
    weights = layers * 12 * D * D
    for dtype, (prompt_target, step_target) in _TARGETS.items():
        width = 4 if dtype == "float32" else 2
        described: dict[str, Any] = {"op": "gpt2", "shapes": f"S{S} D{D} L{layers}", "dtype": dtype}
        yield Case(
            name="prefill",
            flops=2 * S * weights + layers * 2 * S * S * D + 2 * D * V,
            bytes_read=width * (weights + D * V),
            bytes_written=width * (layers * 2 * S * D + V),
            setup=partial(prefill, config, S, dtype),
            target=prompt_target,
            **described,
        )
        yield Case(
            name="decode",
            flops=2 * weights + layers * 4 * S * D + 2 * D * V,
            bytes_read=width * (weights + D * V + layers * 2 * S * D),
            bytes_written=width * (layers * 2 * D + V),
            setup=partial(decode, config, S, dtype),
            target=step_target,
            **described,
        )
    for kind, target in _INT8_TARGETS.items():
        yield Case(
            op="gpt2",
            name=f"decode, beside {kind}",
            shapes=f"S{S} D{D} L{layers}",
            dtype="int8",
            flops=2 * weights + layers * 4 * S * D + 2 * D * V,
            bytes_read=weights + D * V + 2 * layers * 2 * S * D,
            bytes_written=2 * (layers * 2 * D + V),
            setup=partial(decode_int8, config, S, kind),
            target=target,
            cpu_only=True,
        )


def _model(config: GPT2Config) -> tuple[GPT2LMHeadModel, dict[str, Any]]:
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # so that the context counts
        if parameter.ndim == 2:
            drupe.nn.init.normal(parameter, std=0.05)
    return model, {name: value.numpy().copy() for name, value in model.transformer.state_dict().items()}


def prefill(config: GPT2Config, S: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The logits (1, 1, V) behind a prompt, whose keys and values are kept."""
    model, state = _model(config)
    model.astype(dtype).to(drupe.get_default_device()).pack_weights()
    tokens = rng.integers(0, config.vocab_size, (1, S))
    return _setup(model, state, tokens, [], dtype)


def decode(config: GPT2Config, S: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The logits (1, 1, V) behind one more token."""
    model, state = _model(config)
    model.astype(dtype).to(drupe.get_default_device())
    token, past = _context(model, S, rng)
    return _setup(model, state, token, past, dtype)


def decode_int8(config: GPT2Config, S: int, kind: str, rng: np.random.Generator) -> Setup:
    """The same with weights of int8, beside peers with weights of ``kind``."""
    model, state = _model(config)
    token, past = _context(model, S, rng)
    exact = _setup(model, state, token, past, "float32")
    expected = exact.drupe()
    model.astype("bfloat16").quantize_weights("int8")
    run = _setup(model, state, token, past, "bfloat16").drupe
    rivals = {name: exact.peers[name] for name in ("onnxruntime", "openvino")}
    if kind == "int8":
        feeds = _feeds(token, past)

        def openvino() -> Prepared:
            nodes, constants = quantized(*decoder_graph(config, state, 1, S))
            return peers.openvino_call(peers.onnx_model(nodes, feeds, constants, output=np.float32), feeds)

        def onnxruntime() -> Prepared:
            nodes, constants = decoder_graph(config, state, 1, S)
            model = peers.onnx_model(nodes, feeds, constants, output=np.float32)
            return peers.onnxruntime_call(peers.dynamic_int8(model), feeds)

        rivals = {"openvino:int8": openvino, "onnxruntime:int8": onnxruntime}
    return Setup(drupe=run, peers=rivals, reference=lambda: expected, tolerance=_TOLERANCE["bfloat16"])


def _context(model: GPT2LMHeadModel, S: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    """Return a token, and the keys and values of S before it: for each layer two (1, H, S, D / H)."""
    context, token = np.split(rng.integers(0, model.config.vocab_size, (1, S + 1)), [S], axis=1)
    with drupe.no_grad():
        cache = model.make_cache(1, S)
        model(context, cache=cache, last=True)
    past = [tuple(x.astype("float32").numpy() for x in pair) for pair in zip(cache.keys, cache.values, strict=True)]
    return token, past


def _feeds(tokens: Any, past: list[Any]) -> dict[str, Any]:
    """Return the inputs of :func:`decoder_graph`."""
    feeds: dict[str, Any] = {"ids": tokens}
    for i, (k, v) in enumerate(past):
        feeds |= {f"k{i}": np.ascontiguousarray(k.swapaxes(2, 3)), f"v{i}": v}
    return feeds


def _setup(model: GPT2LMHeadModel, state: Mapping[str, Any], tokens: Any, past: list[Any], dtype: str) -> Setup:
    config, S, start = model.config, tokens.shape[1], past[0][0].shape[2] if past else 0
    cache = model.make_cache(1, start + S)
    for layer, (k, v) in enumerate(past):
        cache.append(layer, drupe.tensor(k, dtype), drupe.tensor(v, dtype), 0)

    def run() -> Any:
        cache.lengths = np.full(1, start)
        with drupe.no_grad():
            return model(tokens, cache=cache, last=True).astype("float32")

    feeds = _feeds(tokens, past)

    def onnx() -> bytes:
        nodes, constants = decoder_graph(config, state, S, start)
        return peers.onnx_model(nodes, feeds, constants, output=np.float32)

    rivals: dict[str, Callable[[], Prepared]] = {
        "torch": lambda: torch_decoder(config, state, tokens, past, dtype),
        "openvino": lambda: peers.openvino_call(onnx(), feeds, dtype),
    }
    if dtype == "float32":
        rivals["onnxruntime"] = lambda: peers.onnxruntime_call(onnx(), feeds)
    return Setup(drupe=run, peers=rivals, tolerance=_TOLERANCE[dtype])


def torch_decoder(config: GPT2Config, state: Mapping[str, Any], tokens: Any, past: list[Any], dtype: str) -> Prepared:
    """Return the same in torch: its fused attention, and a cache that it writes in place."""
    torch = peers.torch_module()
    functional, kind, H = torch.nn.functional, getattr(torch, dtype), config.n_head
    weights = {name: peers.torch_tensor(value).to(kind) for name, value in state.items()}
    weights |= {name: value.T.contiguous() for name, value in weights.items() if ".c_" in name and value.ndim == 2}
    ids, S = peers.torch_tensor(tokens), tokens.shape[1]
    start = past[0][0].shape[2] if past else 0
    shape = (2, 1, H, start + S, config.n_embd // H)
    caches = [torch.zeros(shape, dtype=kind, device=ids.device) for _ in range(config.n_layer)]
    for cached, pair in zip(caches, past, strict=False):
        for to, array in zip(cached, pair, strict=True):
            to[:, :, :start] = peers.torch_tensor(array).to(kind)

    def norm(x: Any, name: str) -> Any:
        affine = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(x, (config.n_embd,), *affine, config.layer_norm_epsilon)

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def call() -> Any:
        with torch.inference_mode():
            x = weights["wte.weight"][ids] + weights["wpe.weight"][start : start + S]
            for i, cached in enumerate(caches):
                q, k, v = (
                    linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").view(1, S, 3, H, -1).permute(2, 0, 3, 1, 4)
                )
                cached[0, :, :, start:], cached[1, :, :, start:] = k, v
                y = functional.scaled_dot_product_attention(q, cached[0], cached[1], is_causal=S > 1)
                x = x + linear(y.transpose(1, 2).reshape(1, S, -1), f"h.{i}.attn.c_proj")
                y = functional.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
                x = x + linear(y, f"h.{i}.mlp.c_proj")
            return functional.linear(norm(x[:, -1:], "ln_f"), weights["wte.weight"])

    return Prepared(call)


def decoder_graph(
    config: GPT2Config, state: Mapping[str, Any], S: int, start: int
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Return the ONNX nodes from ``ids`` (1, S) to ``y`` (1, 1, V), and their constants.

    Behind a context of ``start`` tokens S is 1, and layer i reads ``k{i}`` (1, H, D / H, start) and ``v{i}``
    (1, H, start, D / H).
    """
    D, H = config.n_embd, config.n_head
    nodes: list[Mapping[str, Any]] = []
    constants: dict[str, Any] = {
        "heads": np.array([1, S, H, D // H]),
        "join": np.array([1, S, D]),
        "scale": np.array((D // H) ** -0.5, np.float32),
        "wte": state["wte.weight"],
        "head": np.ascontiguousarray(state["wte.weight"].T),
        "positions": state["wpe.weight"][start : start + S],
        "masked": np.triu(np.full((S, S), -np.inf, np.float32), 1),
        "last": np.array([S - 1]),
        "parts": np.array([start, S]),
    }

    def add(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append({"op": op, "inputs": inputs, "outputs": names, **attributes})
        return names[0] if outputs == 1 else names

    def norm(x: str, prefix: str) -> str:
        names = [f"{prefix}.weight", f"{prefix}.bias"]
        constants.update({name: state[name] for name in names})
        return str(add("LayerNormalization", x, *names, axis=-1, epsilon=config.layer_norm_epsilon))

    def linear(x: str, prefix: str) -> str:
        weight, bias = f"{prefix}.weight", f"{prefix}.bias"
        constants.update({weight: state[weight], bias: state[bias]})
        return str(add("Add", add("MatMul", x, weight), bias))

    def heads(x: str, *perm: int) -> str:
        return str(add("Transpose", add("Reshape", x, "heads"), perm=perm))

    x = add("Add", add("Gather", "wte", "ids"), "positions")
    for i in range(config.n_layer):
        fused = add("Split", linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), outputs=3, axis=-1, num_outputs=3)
        q, k, v = heads(fused[0], 0, 2, 1, 3), heads(fused[1], 0, 2, 3, 1), heads(fused[2], 0, 2, 1, 3)
        q = add("Mul", q, "scale")
        if start:
            logits = add("Concat", add("MatMul", q, f"k{i}"), add("MatMul", q, k), axis=-1)
            p = add("Split", add("Softmax", logits, axis=-1), "parts", outputs=2, axis=-1)
            y = add("Add", add("MatMul", p[0], f"v{i}"), add("MatMul", p[1], v))
        else:
            y = add("MatMul", add("Softmax", add("Add", add("MatMul", q, k), "masked"), axis=-1), v)
        y = linear(add("Reshape", add("Transpose", y, perm=(0, 2, 1, 3)), "join"), f"h.{i}.attn.c_proj")
        x = add("Add", y, x)
        y = add("Gelu", linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        x = add("Add", linear(y, f"h.{i}.mlp.c_proj"), x)
    x = norm(add("Gather", x, "last", axis=1), "ln_f")
    nodes.append({"op": "MatMul", "inputs": [x, "head"], "outputs": ["y"]})
    return nodes, constants


def quantized(
    nodes: list[Mapping[str, Any]], constants: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Return the graph with the constants that it multiplies with as int8, and a scale for each column."""
    constants, before = dict(constants), []
    for name in [node["inputs"][1] for node in nodes if node["op"] == "MatMul"]:
        if name in constants:
            weight = constants.pop(name)
            scale = np.abs(weight).max(axis=0) / np.float32(127)
            constants |= {f"{name}.int8": np.rint(weight / scale).astype(np.int8), f"{name}.scale": scale}
            inputs = (f"{name}.int8", f"{name}.scale")
            before.append({"op": "DequantizeLinear", "inputs": inputs, "outputs": [name], "axis": 1})
    return [*before, *nodes], constants
