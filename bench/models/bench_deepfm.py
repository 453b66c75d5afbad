"""DeepFM on 26 tables of 100k rows: logits of a batch, and a step of training by Adam, for two deep parts.

Gradients of the tables are sparse, and Adam touches the rows that they name; so does torch's SparseAdam, and its fused
Adam has the rest. ``torch:compile`` compiles all but the lookups, whose sparse gradients it does not take.
``torch:dense`` has gradients as large as the tables, and an Adam that moves every row: another optimizer, and what
torch.compile takes as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops, optim
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup
from drupe.models.deepfm import DeepFM, DeepFMConfig

_LR = 1e-3
_TARGET = 0.4


def cases(quick: bool) -> Iterator[Case]:
    """(batch, columns x rows x features, hidden widths): the paper's deep part, and one that narrows."""
    B, F, V, E = (32, 4, 100, 16) if quick else (4096, 26, 100_000, 16)
    for hidden in ((400, 400, 400), (256, 128, 64)):
        config = DeepFMConfig((V,) * F, embedding_size=E, hidden=hidden, sparse=True)
        widths = (F * E, *hidden, 1)
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        flops = 2 * B * weights + 4 * B * F * E
        touched = F * V * -math.expm1(-B / V) * (E + 1)  # numbers of the tables' rows that a batch names
        described: dict[str, Any] = {
            "op": "deepfm",
            "shapes": f"B{B} {F}x{V}x{E} deep {'-'.join(map(str, hidden))}",
            "dtype": "float32",
            "working_set": 4 * F * V * (E + 1),
        }
        yield Case(
            name="forward",
            flops=flops,
            bytes_read=4 * (touched + weights) + 8 * B * F,
            bytes_written=4 * B,
            setup=partial(forward, config, B),
            **described,
        )
        yield Case(
            name="training step",
            flops=3 * flops,
            bytes_read=12 * (touched + weights) + 8 * B * F,
            bytes_written=12 * (touched + weights),
            setup=partial(training, config, B),
            target=_TARGET,
            **described,
        )


def _draw(config: DeepFMConfig, B: int, rng: np.random.Generator) -> Any:
    return np.stack([rng.integers(0, size, B) for size in config.cardinalities], axis=1)


class _Torch:
    """The same network of torch's modules, with the same weights."""

    def __init__(self, config: DeepFMConfig, state: Mapping[str, Any], *, sparse: bool) -> None:
        torch = peers.torch_module()
        take = {name: peers.torch_tensor(value) for name, value in state.items()}
        self.first = torch.nn.EmbeddingBag.from_pretrained(take["first.weight"], False, mode="sum", sparse=sparse)
        self.embedding = torch.nn.Embedding.from_pretrained(take["embedding.weight"], False, sparse=sparse)
        linear = [torch.nn.Linear(*take[f"{name}.weight"].shape[::-1]) for name in self._names(config)]
        for module, name in zip(linear, self._names(config), strict=True):
            module.load_state_dict({key: take[f"{name}.{key}"] for key in ("weight", "bias")})
        steps = [step for module in linear for step in (module, torch.nn.ReLU())][:-1]
        self.deep = torch.nn.Sequential(*steps).to(drupe.get_default_device())
        self.starts = peers.torch_tensor(np.cumsum((0, *config.cardinalities[:-1])))
        self.interact = self._interact

    @staticmethod
    def _names(config: DeepFMConfig) -> list[str]:
        return [*(f"layers.{i}" for i in range(len(config.hidden))), "head"]

    def __call__(self, codes: Any) -> Any:
        rows = codes + self.starts
        return self.interact(self.first(rows), self.embedding(rows))

    def _interact(self, first: Any, v: Any) -> Any:
        second = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
        return (self.deep(v.flatten(1)) + first)[:, 0] + second

    def optimizers(self, torch: Any, *, sparse: bool) -> list[Any]:
        tables, deep = [self.first.weight, self.embedding.weight], list(self.deep.parameters())
        if not sparse:
            return [torch.optim.Adam(tables + deep, lr=_LR, fused=True)]
        return [torch.optim.SparseAdam(tables, lr=_LR), torch.optim.Adam(deep, lr=_LR, fused=True)]


def forward(config: DeepFMConfig, B: int, rng: np.random.Generator) -> Setup:
    """Logits, (B,)."""
    model = DeepFM(config).eval()
    state, codes = {name: value.numpy() for name, value in model.state_dict().items()}, _draw(config, B, rng)
    model.to(drupe.get_default_device())

    def run() -> Any:
        with drupe.no_grad():
            return model(codes)

    def torch(*, compiled: bool) -> Prepared:
        torch = peers.torch_module()
        theirs = _Torch(config, state, sparse=False)
        network = torch.compile(lambda codes: theirs(codes)) if compiled else theirs
        inputs = peers.torch_tensor(codes)

        def call() -> Any:
            with torch.inference_mode():
                return network(inputs)

        return Prepared(call)

    def onnx() -> bytes:
        nodes, constants = graph(config, state, B)
        return peers.onnx_model(nodes, {"codes": codes}, constants, output=np.float32)

    return Setup(
        drupe=run,
        peers={
            "torch": lambda: torch(compiled=False),
            "torch:compile": lambda: torch(compiled=True),
            "onnxruntime": lambda: peers.onnxruntime_call(onnx(), {"codes": codes}),
            "openvino": lambda: peers.openvino_call(onnx(), {"codes": codes}),
        },
    )


def graph(config: DeepFMConfig, state: Mapping[str, Any], B: int) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Return the network's ONNX nodes, from ``codes`` (B, C) to ``y`` (B,), and its constants."""
    nodes: list[Mapping[str, Any]] = []
    constants: dict[str, Any] = {
        "starts": np.cumsum((0, *config.cardinalities[:-1])),
        "axis": np.array([1]),
        "all": np.array([1, 2]),
        "half": np.array(0.5, np.float32),
        "flat": np.array([B, -1]),
        "batch": np.array([B]),
        "first": state["first.weight"],
        "vectors": state["embedding.weight"],
    }

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append({"op": op, "inputs": inputs, "outputs": [name], **attributes})
        return name

    rows = add("Add", "codes", "starts")
    first = add("Reshape", add("ReduceSum", add("Gather", "first", rows), "all", keepdims=0), "batch")
    v = add("Gather", "vectors", rows)
    total = add("ReduceSum", v, "axis", keepdims=0)
    squares = add("ReduceSum", add("Mul", v, v), "axis", keepdims=0)
    second = add("ReduceSum", add("Sub", add("Mul", total, total), squares), "axis", keepdims=0)
    x = add("Reshape", v, "flat")
    names = [*(f"layers.{i}" for i in range(len(config.hidden))), "head"]
    for name in names:
        constants.update({f"{name}.weight": state[f"{name}.weight"].T, f"{name}.bias": state[f"{name}.bias"]})
        x = add("Add", add("MatMul", x, f"{name}.weight"), f"{name}.bias")
        x = x if name == "head" else add("Relu", x)
    logits = add("Add", add("Reshape", x, "batch"), add("Mul", second, "half"))
    nodes.append({"op": "Add", "inputs": (logits, first), "outputs": ["y"]})
    return nodes, constants


def training(config: DeepFMConfig, B: int, rng: np.random.Generator) -> Setup:
    """Forward, loss, backward and Adam; the loss comes out."""
    model = DeepFM(config)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}  # before any step
    codes = _draw(config, B, rng)
    clicks = rng.integers(0, 2, B).astype(np.float32)
    model.to(drupe.get_default_device())
    optimizer = optim.Adam(model.parameters(), lr=_LR)
    targets = peers.here(clicks)

    def torch(*, compiled: bool, sparse: bool = True) -> Prepared:
        torch = peers.torch_module()
        network = _Torch(config, state, sparse=sparse)
        optimizers = network.optimizers(torch, sparse=sparse)
        if compiled and sparse:
            network.interact = torch.compile(network.interact)
        inputs, wanted = peers.torch_tensor(codes), peers.torch_tensor(clicks)

        def loss_of() -> Any:
            return torch.nn.functional.binary_cross_entropy_with_logits(network(inputs), wanted)

        return peers.torch_step(torch.compile(loss_of) if compiled and not sparse else loss_of, *optimizers)

    return Setup(
        drupe=peers.drupe_step(lambda: ops.bce_with_logits(model(codes), targets), optimizer),
        peers={
            "torch": lambda: torch(compiled=False),
            "torch:compile": lambda: torch(compiled=True),
            "torch:dense": lambda: torch(compiled=False, sparse=False),
            "torch:dense,compile": lambda: torch(compiled=True, sparse=False),
        },
        tolerance=1e-5,
    )
