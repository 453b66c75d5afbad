"""Activations by themselves, GELU in its exact form: a BERT layer's intermediate values, and what fits in a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import IN_CACHE, IN_MEMORY, TOLERANCE, Shape, erf, exact, normal, numpy_dtype, sampled, text
from drupe.bench.harness import Case, Prepared, Setup


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _normal_mass(x: Any) -> Any:
    return 0.5 * (1 + erf(x / np.sqrt(2)))


@dataclass(frozen=True)
class _Activation:
    """An activation: its value and its slope in NumPy, and the operators of an ONNX graph from x to y."""

    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    flops: int
    onnx: Sequence[tuple[str, str, str]]  # operator, its inputs, its output
    options: dict[str, Any] = field(default_factory=dict)  # of jax's
    targets: tuple[float | None, float | None] = (None, None)  # of the larger in float32: forward, backward


_ACTIVATIONS = {
    "relu": _Activation(lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0, 1, [("Relu", "x", "y")]),
    "gelu": _Activation(
        lambda x: x * _normal_mass(x),
        lambda x: _normal_mass(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
        25,
        [("Gelu", "x", "y")],
        {"approximate": False},
        (0.8, 0.3),
    ),
    "silu": _Activation(
        lambda x: x * _sigmoid(x),
        lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
        22,
        [("Sigmoid", "x", "s"), ("Mul", "xs", "y")],
    ),
    "sigmoid": _Activation(_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x)), 22, [("Sigmoid", "x", "y")]),
    "tanh": _Activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2, 22, [("Tanh", "x", "y")]),
}


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns, forward and backward."""
    large = (64, 256) if quick else IN_MEMORY
    small = (16, 96) if quick else IN_CACHE
    for op, described in _ACTIVATIONS.items():
        for shape, dtype in ((large, "float32"), (small, "float32"), (small, "bfloat16")):
            size, width = int(np.prod(shape)), numpy_dtype(dtype).itemsize
            for name, setup, reads, target in zip(
                ("forward", "backward"), (forward, backward), (1, 2), described.targets, strict=True
            ):
                yield Case(
                    op=op,
                    name=name,
                    shapes=text(shape),
                    dtype=dtype,
                    flops=described.flops * size,
                    bytes_read=width * size * reads,
                    bytes_written=width * size,
                    setup=partial(setup, op, shape, dtype),
                    target=target if shape == large else None,
                )


def _torch(name: str, torch: Any, x: Any) -> Any:
    return getattr(torch.nn.functional, name)(x)


def _jax(name: str, jax: Any, x: Any) -> Any:
    return getattr(jax.nn, name)(x, **_ACTIVATIONS[name].options)


def forward(name: str, shape: Shape, dtype: str, rng: np.random.Generator) -> Setup:
    """The activation of each element; some rows are compared."""
    x = normal(rng, shape, dtype)
    described = _ACTIVATIONS[name]
    rivals: dict[str, Callable[[], Prepared]] = {
        "torch": lambda: peers.torch_call(partial(_torch, name), x),
        "jax": lambda: peers.jax_call(partial(_jax, name), x),
    }
    if dtype == "float32":
        if name != "gelu":  # NumPy has no erf
            rivals = {"numpy": lambda: Prepared(lambda: described.value(x))} | rivals
        nodes = [{"op": op, "inputs": [*inputs], "outputs": [y]} for op, inputs, y in described.onnx]
        rivals |= peers.onnx_peers(nodes, {"x": x})
    return Setup(
        drupe=peers.drupe_call(getattr(ops, name), x),
        reference=lambda: described.value(exact(sampled(x)[0])),
        tolerance=TOLERANCE[dtype],
        view=sampled,
        peers=peers.with_view(rivals, sampled),
    )


def backward(name: str, shape: Shape, dtype: str, rng: np.random.Generator) -> Setup:
    """The slope times a gradient."""
    a, dy = (normal(rng, shape, dtype) for _ in range(2))
    x = drupe.tensor(a, requires_grad=True)
    y = getattr(ops, name)(x)

    def reference() -> Any:
        z, gradient = map(exact, sampled([a, dy]))
        return _ACTIVATIONS[name].slope(z) * gradient

    rivals = {
        "torch": lambda: peers.torch_backward(partial(_torch, name), dy, a),
        "jax": lambda: peers.jax_backward(partial(_jax, name), dy, a),
    }
    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, x),
        reference=reference,
        tolerance=TOLERANCE[dtype],
        view=sampled,
        peers=peers.with_view(rivals, sampled),
    )
