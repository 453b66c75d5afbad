"""One AdamW step over all of ResNet-50's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup

_OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "uint8": 1}  # an element's; the peers' are float32
Shapes = list[tuple[int, ...]]


def cases(quick: bool) -> Iterator[Case]:
    """The parameters, 25.6 million in 161 tensors; four arrays are read and three written."""
    shapes = [(64, 3, 7, 7), (64,), (10, 64), (10,)] if quick else resnet50_shapes()
    size = sum(int(np.prod(shape)) for shape in shapes)
    for kind, bytes_each in _STATE_BYTES.items():
        yield Case(
            op="adamw",
            name=("toy" if quick else "resnet50") + ("" if kind == "float32" else f", {kind} states"),
            shapes=f"{len(shapes)} tensors, {size} elements",
            dtype="float32",
            flops=14 * size,
            bytes_read=(8 + 2 * bytes_each) * size,
            bytes_written=(4 + 2 * bytes_each) * size,
            setup=partial(step, shapes, kind),
            target=1.0 if kind == "float32" else 0.6,
            cpu_only=kind != "float32",
        )


def resnet50_shapes() -> Shapes:
    """Return the shapes of ResNet-50's parameters, in order (He et al. 2015, table 1)."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, into, kernel in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, into, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _step(p: Any, g: Any, m: Any, v: Any) -> None:
    """The first step, in place."""
    (b1, b2), lr = _OPTIONS["betas"], _OPTIONS["lr"]
    p *= 1 - lr * _OPTIONS["weight_decay"]
    m += (1 - b1) * (g - m)
    v += (1 - b2) * (g * g - v)
    p -= lr / (1 - b1) * m / (np.sqrt(v / (1 - b2)) + _OPTIONS["eps"])


def step(shapes: Shapes, kind: str, rng: np.random.Generator) -> Setup:
    """Every contender updates parameters of its own; they are compared after the first step."""
    params = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    grads = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

    def state(dtype: Any = np.float32) -> list[list[Any]]:
        zeros = [[np.zeros(shape, dtype) for shape in shapes] for _ in range(2)]
        return [[p.astype(dtype) for p in params], [g.astype(dtype) for g in grads], *zeros]

    own = [[peers.here(array) for array in arrays] for arrays in state()]
    if kind != "float32":
        own[2:] = [[drupe.zeros(shape, kind) for shape in shapes] for _ in range(2)]
    coded = kind == "uint8"
    scales = [drupe.zeros((2, -(-int(np.prod(shape)) // 256))) for shape in shapes] if coded else None

    def call() -> Any:
        params, grads, means, squares = own
        ops.adamw(params, grads, means, squares, step=1, seed=0, scales=scales, **_OPTIONS)
        return params

    def numpy_call() -> Any:
        arrays = state()

        def run() -> Any:
            for tensors in zip(*arrays, strict=True):
                _step(*tensors)
            return arrays[0]

        return run

    def reference() -> Any:
        arrays = state(np.float64)
        for tensors in zip(*arrays, strict=True):
            _step(*tensors)
        return arrays[0]

    def torch_call(**how: bool) -> Prepared:
        torch = peers.torch_module()
        leaves = [peers.torch_tensor(p, requires_grad=True) for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = peers.torch_tensor(g)
        optimizer = torch.optim.AdamW(leaves, **_OPTIONS, **how)

        def run() -> Any:
            optimizer.step()
            return leaves

        return Prepared(run)

    return Setup(
        drupe=call,
        reference=reference,
        tolerance=1e-5,
        peers={
            "numpy": numpy_call,
            "torch:fused": lambda: torch_call(fused=True),
            "torch:foreach": lambda: torch_call(foreach=True),
        },
    )
