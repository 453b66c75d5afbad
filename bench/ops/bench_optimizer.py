"""Steps of optimizers over all of ResNet-50's tensors, and the norm of its gradients, by which they are clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import numpy_dtype
from drupe.bench.harness import Case, Prepared, Setup

Shapes = list[tuple[int, ...]]
_MAX_NORM = 1.0


@dataclass(frozen=True)
class _Rule:
    """An optimizer: its first step in NumPy, in place, and what drupe and torch call it.

    Attributes:
        first_step: takes a parameter, its gradient and its states.
        states: how many arrays beside each parameter.
        flops: of an element.
        torch: the class in ``torch.optim``.
        options: the hyperparameters, named alike in drupe and torch.
        counts: whether drupe is told the number of the step.
        fused: whether torch has a kernel for all tensors together.
    """

    first_step: Callable[..., None]
    states: int
    flops: int
    torch: str
    options: dict[str, Any]
    counts: bool = False
    fused: bool = True


_SGD: dict[str, Any] = {"lr": 1e-2, "momentum": 0.9}
_ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
_ADAMW: dict[str, Any] = {**_ADAM, "weight_decay": 1e-2}
_RMSPROP: dict[str, Any] = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}


def _sgd(p: Any, g: Any, buffer: Any) -> None:
    buffer += g
    p -= _SGD["lr"] * buffer


def _adam(p: Any, g: Any, m: Any, v: Any) -> None:
    (b1, b2), lr = _ADAM["betas"], _ADAM["lr"]
    m += (1 - b1) * (g - m)
    v += (1 - b2) * (g * g - v)
    p -= lr / (1 - b1) * m / (np.sqrt(v / (1 - b2)) + _ADAM["eps"])


def _adamw(p: Any, g: Any, m: Any, v: Any) -> None:
    p *= 1 - _ADAMW["lr"] * _ADAMW["weight_decay"]
    _adam(p, g, m, v)


def _rmsprop(p: Any, g: Any, v: Any) -> None:
    v += (1 - _RMSPROP["alpha"]) * (g * g - v)
    p -= _RMSPROP["lr"] * g / (np.sqrt(v) + _RMSPROP["eps"])


_RULES = {
    "sgd": _Rule(_sgd, 1, 4, "SGD", _SGD),
    "adam": _Rule(_adam, 2, 12, "Adam", _ADAM, counts=True),
    "adamw": _Rule(_adamw, 2, 14, "AdamW", _ADAMW, counts=True),
    "rmsprop": _Rule(_rmsprop, 1, 9, "RMSprop", _RMSPROP, fused=False),
}
_NORMS = ("global_norm", "clip_factor")


def cases(quick: bool) -> Iterator[Case]:
    """The parameters, 25.6 million in 161 tensors. ``adamw`` has cases of its own."""
    for op in _RULES:
        if op != "adamw":
            yield step_case(op, quick)
    shapes = _parameters(quick)
    size = sum(int(np.prod(shape)) for shape in shapes)
    for op in _NORMS:
        yield Case(
            op=op,
            name=_network(quick),
            shapes=_described(shapes),
            dtype="float32",
            flops=2 * size,
            bytes_read=4 * size,
            bytes_written=8,
            setup=partial(norm, op, shapes),
        )


def _parameters(quick: bool) -> Shapes:
    """Return the shapes of ResNet-50's parameters, in order (He et al. 2015, table 1), or a few small ones."""
    if quick:
        return [(64, 3, 7, 7), (64,), (10, 64), (10,)]
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


def _network(quick: bool) -> str:
    return "toy" if quick else "resnet50"


def _described(shapes: Shapes) -> str:
    return f"{len(shapes)} tensors, {sum(int(np.prod(shape)) for shape in shapes)} elements"


def step_case(op: str, quick: bool, kind: str = "float32", target: float | None = None) -> Case:
    """Return the case of one step with states of a dtype, the peers' in float32."""
    shapes, rule = _parameters(quick), _RULES[op]
    size = sum(int(np.prod(shape)) for shape in shapes)
    moved = rule.states * numpy_dtype(kind).itemsize
    return Case(
        op=op,
        name=_network(quick) + ("" if kind == "float32" else f", {kind} states"),
        shapes=_described(shapes),
        dtype="float32",
        flops=rule.flops * size,
        bytes_read=(8 + moved) * size,
        bytes_written=(4 + moved) * size,
        setup=partial(step, op, shapes, kind),
        target=target,
        cpu_only=kind != "float32",
    )


def step(op: str, shapes: Shapes, kind: str, rng: np.random.Generator) -> Setup:
    """Every contender updates parameters of its own; they are compared after the first step."""
    rule = _RULES[op]
    params = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    grads = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

    def state(dtype: Any = np.float32) -> list[list[Any]]:
        zeros = [[np.zeros(shape, dtype) for shape in shapes] for _ in range(rule.states)]
        return [[p.astype(dtype) for p in params], [g.astype(dtype) for g in grads], *zeros]

    own = [[peers.here(array) for array in arrays] for arrays in state()]
    options = rule.options | ({"step": 1} if rule.counts else {})
    if kind != "float32":
        own[2:] = [[drupe.zeros(shape, kind) for shape in shapes] for _ in range(rule.states)]
        options |= {"seed": 0}
    if kind == "uint8":
        options |= {"scales": [drupe.zeros((rule.states, -(-int(np.prod(shape)) // 256))) for shape in shapes]}

    def call() -> Any:
        getattr(ops, op)(*own, **options)
        return own[0]

    def stepped(arrays: list[list[Any]]) -> Any:
        for tensors in zip(*arrays, strict=True):
            rule.first_step(*tensors)
        return arrays[0]

    def torch_call(**how: bool) -> Prepared:
        torch = peers.torch_module()
        leaves = [peers.torch_tensor(p, requires_grad=True) for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = peers.torch_tensor(g)
        optimizer = getattr(torch.optim, rule.torch)(leaves, **rule.options, **how)

        def run() -> Any:
            optimizer.step()
            return leaves

        return Prepared(run)

    rivals: dict[str, Callable[[], Any]] = {"numpy": lambda: partial(stepped, state())}
    if rule.fused:
        rivals["torch:fused"] = lambda: torch_call(fused=True)
    rivals["torch:foreach"] = lambda: torch_call(foreach=True)
    return Setup(drupe=call, reference=lambda: stepped(state(np.float64)), tolerance=1e-5, peers=rivals)


def norm(op: str, shapes: Shapes, rng: np.random.Generator) -> Setup:
    """The norm of all elements, and for ``clip_factor`` what clipping multiplies them by."""
    grads = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    own = [peers.here(g) for g in grads]

    def result(total: Any) -> Any:
        return total if op == "global_norm" else [total, min(1.0, _MAX_NORM / total)]

    def by_dot(arrays: list[Any]) -> Any:
        return result(sum(np.dot(a.reshape(-1), a.reshape(-1)) for a in arrays) ** 0.5)

    def torch(torch: Any, *tensors: Any) -> Any:
        total = torch.nn.utils.get_total_norm(tensors)
        return total if op == "global_norm" else [total, (_MAX_NORM / total).clamp(max=1.0)]

    return Setup(
        drupe=lambda: ops.global_norm(own) if op == "global_norm" else ops.clip_factor(own, _MAX_NORM),
        reference=lambda: by_dot([g.astype(float) for g in grads]),
        tolerance=1e-4,  # torch adds up in float32
        peers={"numpy": lambda: lambda: by_dot(grads), "torch": lambda: peers.torch_call(torch, *grads)},
    )
