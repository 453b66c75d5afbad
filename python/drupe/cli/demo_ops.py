"""The first part of ``drupe demo``: every op against NumPy, for its numbers, its gradient and its time.

The expectation is the op's formula in NumPy, evaluated in float64. The same formula in float32 is what is timed: what
one would write without drupe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from drupe import Tensor, no_grad, ops, tensor
from drupe.bench.ops.bench_dropout import uniforms

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One op on one set of inputs.

    Attributes:
        name: of the op, as in ``drupe.ops``.
        shapes: of the inputs, for the reader.
        inputs: scale -> arrays, float32 (or integers); scale 0 is small, for the gradient.
        drupe: arrays -> array.
        numpy: the same, in NumPy.
        tolerance: of the largest difference, relative to the largest value expected.
        gradient: whether one flows to the float inputs.
    """

    name: str
    shapes: str
    inputs: Callable[[np.random.Generator, int], list[Array]]
    drupe: Callable[..., Any]
    numpy: Callable[..., Any]
    tolerance: float = 1e-5
    gradient: bool = True


@dataclass(frozen=True)
class Check:
    """How a case went.

    Attributes:
        case: which.
        error: the largest difference from NumPy in float64, relative to the largest value.
        gradient_error: of the tape's derivative along a random direction, from a central difference; NaN for none.
        drupe_ms: the time of the fastest call.
        numpy_ms: the same, of NumPy in float32.
    """

    case: Case
    error: float
    gradient_error: float
    drupe_ms: float
    numpy_ms: float

    @property
    def passed(self) -> bool:
        """Whether both errors are within tolerance."""
        return self.error <= self.case.tolerance and not self.gradient_error > 1e-6


# ---- the formulas in NumPy


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)


def _windows(x: Array, size: int, stride: int = 1) -> Array:
    """Return (B, C, H', W', size, size)."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def _conv2d(x: Array, weight: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.tensordot(_windows(padded, 3), weight, axes=((1, 4, 5), (1, 2, 3)))  # (B, H, W, K)
    return np.asarray(y.transpose(0, 3, 1, 2))


def _attention(q: Array, k: Array, v: Array) -> Array:
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    future = np.triu(np.ones(logits.shape[-2:], bool), 1)
    return np.asarray(_softmax(np.where(future, -np.inf, logits)) @ v)


def _normalise(x: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + 1e-5))


def _group_norm(x: Array, weight: Array, bias: Array) -> Array:
    B, C, H, W = x.shape
    y = _normalise(x.reshape(B, 4, C // 4, H, W), (2, 3, 4)).reshape(x.shape)
    return np.asarray(y * weight[:, None, None] + bias[:, None, None])


def _bce(x: Array, y: Array) -> Array:
    return np.asarray(np.mean(np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))))


def _dropout(x: Array) -> Array:
    return np.asarray(np.where(uniforms(x.size, 1).reshape(x.shape) >= 0.1, x / 0.9, 0))


def _adam(p: Array, g: Array, m: Array, v: Array, *, decoupled: bool) -> Array:
    if decoupled:
        p = p * (1 - 1e-3 * 0.01)
    else:
        g = g + 0.01 * p
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    return np.asarray(p - 1e-3 * (m / (1 - 0.9**3)) / (np.sqrt(v / (1 - 0.999**3)) + 1e-8))


def _rmsprop(p: Array, g: Array, v: Array) -> Array:
    return np.asarray(p - 0.01 * g / (np.sqrt(0.99 * v + 0.01 * g * g) + 1e-8))


def _stepped(op: Callable[..., None], **options: Any) -> Callable[..., Any]:
    """Return an optimizer's step as a function: a parameter, its gradient and states -> the new parameter."""

    def run(p: Any, g: Any, *states: Any) -> Any:
        p = p.copy()
        op([p], [g], *([state.copy()] for state in states), **options)
        return p

    return run


# ---- the cases


def _normal(*shapes: tuple[int, ...], small: tuple[tuple[int, ...], ...]) -> Callable[..., list[Array]]:
    """Return a maker of normal float32 arrays of these shapes, or of small ones."""

    def make(rng: np.random.Generator, scale: int) -> list[Array]:
        return [rng.standard_normal(shape).astype(np.float32) for shape in (shapes if scale else small)]

    return make


def _labelled(rng: np.random.Generator, scale: int) -> list[Array]:
    rows, classes = (512, 4096) if scale else (5, 7)
    return [rng.standard_normal((rows, classes)).astype(np.float32), rng.integers(0, classes, rows)]


def _binary(rng: np.random.Generator, scale: int) -> list[Array]:
    n = 1_000_000 if scale else 11
    return [rng.standard_normal(n).astype(np.float32), rng.integers(0, 2, n).astype(np.float32)]


def _indexed(rng: np.random.Generator, scale: int) -> list[Array]:
    V, D, N, L = (30_000, 128, 4096, 8) if scale else (9, 4, 5, 3)
    return [rng.standard_normal((V, D)).astype(np.float32), rng.integers(0, V, (N, L))]


def _moments(rng: np.random.Generator, scale: int) -> list[Array]:
    p, g, m, v = (rng.standard_normal(2_000_000).astype(np.float32) for _ in range(4))
    return [p, g, m, v * v]


def _squares(rng: np.random.Generator, scale: int) -> list[Array]:
    p, g, _, v = _moments(rng, scale)
    return [p, g, v]


def _matrix_cases() -> Iterator[Case]:
    square = _normal((768, 768), (768, 768), small=((3, 5), (5, 4)))
    yield Case("gemm", "768×768 · 768×768", square, ops.gemm, np.matmul)
    batch = _normal((8, 128, 128), (8, 128, 128), small=((2, 3, 5), (2, 5, 4)))
    yield Case("matmul", "8×128×128 · 8×128×128", batch, ops.matmul, np.matmul)
    linear = _normal((512, 256), (1024, 256), (1024,), small=((3, 5), (4, 5), (4,)))
    yield Case(
        "gemm + bias + gelu",
        "512×256 · 256×1024",
        linear,
        lambda x, w, b: ops.gemm(x, w, bias=b, transpose_b=True, activation="gelu_tanh"),
        lambda x, w, b: _gelu_tanh(x @ w.T + b),
    )
    images = _normal((8, 32, 28, 28), (32, 32, 3, 3), small=((2, 3, 5, 4), (2, 3, 3, 3)))
    yield Case("conv2d", "8×32×28×28, 3×3", images, lambda x, w: ops.conv2d(x, w, padding=1), _conv2d)
    heads = _normal(*[(1, 8, 256, 64)] * 3, small=((1, 2, 4, 3),) * 3)
    yield Case(
        "attention", "1×8×256×64, causal", heads, lambda q, k, v: ops.attention(q, k, v, causal=True), _attention
    )


def _row_cases() -> Iterator[Case]:
    rows = _normal((2048, 768), small=((3, 5),))
    weighted = _normal((2048, 768), (768,), (768,), small=((3, 5), (5,), (5,)))
    yield Case("softmax", "2048×768", rows, ops.softmax, _softmax)
    yield Case("log_softmax", "2048×768", rows, ops.log_softmax, _log_softmax)
    yield Case("layer_norm", "2048×768", weighted, ops.layer_norm, lambda x, w, b: _normalise(x, (-1,)) * w + b)
    yield Case(
        "rms_norm",
        "2048×768",
        _normal((2048, 768), (768,), small=((3, 5), (5,))),
        lambda x, w: ops.rms_norm(x, w, eps=1e-5),
        lambda x, w: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * w,
    )
    images = _normal((16, 64, 28, 28), (64,), (64,), small=((3, 4, 3, 2), (4,), (4,)))
    yield Case(
        "batch_norm",
        "16×64×28×28",
        images,
        lambda x, w, b: ops.batch_norm(x, w, b, training=True),
        lambda x, w, b: _normalise(x, (0, 2, 3)) * w[:, None, None] + b[:, None, None],
    )
    yield Case("group_norm", "16×64×28×28", images, lambda x, w, b: ops.group_norm(x, w, b, groups=4), _group_norm)


def _loss_cases() -> Iterator[Case]:
    yield Case(
        "cross_entropy",
        "512×4096",
        _labelled,
        ops.cross_entropy,
        lambda x, y: -_log_softmax(x)[np.arange(len(y)), y].mean(),
    )
    yield Case("bce_with_logits", "1 000 000", _binary, ops.bce_with_logits, _bce)
    pair = _normal((1_000_000,), (1_000_000,), small=((7,), (7,)))
    yield Case("mse", "1 000 000", pair, ops.mse, lambda x, y: np.mean((x - y) ** 2))
    yield Case("embedding", "30 000×128, 4096×8", _indexed, ops.embedding, lambda w, i: w[i])
    yield Case(
        "embedding_bag",
        "30 000×128, 4096×8",
        _indexed,
        lambda w, i: ops.embedding_bag(w, i, mode="mean"),
        lambda w, i: w[i].mean(axis=1),
    )


def _pointwise_cases() -> Iterator[Case]:
    images = _normal((16, 64, 28, 28), small=((2, 3, 4, 6),))
    yield Case(
        "max_pool2d",
        "16×64×28×28, 2×2",
        images,
        lambda x: ops.max_pool2d(x, 2),
        lambda x: _windows(x, 2, 2).max((4, 5)),
    )
    yield Case(
        "avg_pool2d",
        "16×64×28×28, 2×2",
        images,
        lambda x: ops.avg_pool2d(x, 2),
        lambda x: _windows(x, 2, 2).mean((4, 5)),
    )
    yield Case(
        "adaptive_avg_pool2d",
        "16×64×28×28 to 7×7",
        _normal((16, 64, 28, 28), small=((2, 3, 14, 7),)),
        lambda x: ops.adaptive_avg_pool2d(x, 7),
        lambda x: x.reshape(*x.shape[:2], 7, x.shape[2] // 7, 7, x.shape[3] // 7).mean((3, 5)),
    )
    wide = _normal((1024, 1024), (1024,), small=((3, 4), (4,)))
    yield Case("add, broadcast", "1024×1024 + 1024", wide, ops.add, np.add)
    square = _normal((1024, 1024), small=((3, 4),))
    yield Case("exp", "1024×1024", square, ops.exp, np.exp)
    yield Case("gelu (tanh)", "1024×1024", square, lambda x: ops.gelu(x, approximate=True), _gelu_tanh)
    yield Case("dropout", "1024×1024, a tenth", square, lambda x: ops.dropout(x, 0.1, seed=1), _dropout)
    pair = _normal((1024, 1024), (1024, 1024), small=((3, 4), (3, 4)))
    yield Case(
        "gt, where",
        "1024×1024",
        pair,
        lambda a, b: ops.where(ops.gt(a, b), a, b),
        lambda a, b: np.where(a > b, a, b),
    )


def _reduction_cases() -> Iterator[Case]:
    square = _normal((1024, 1024), small=((3, 4),))
    yield Case("sum of rows", "1024×1024", square, lambda x: ops.sum(x, axis=1), lambda x: x.sum(axis=1))
    yield Case("var of columns", "1024×1024", square, lambda x: ops.var(x, axis=0), lambda x: x.var(axis=0))
    yield Case("argmax", "1024×1024", square, lambda x: ops.argmax(x, axis=1), lambda x: x.argmax(axis=1), 0.0, False)
    yield Case(
        "topk",
        "1024×1024, 10",
        square,
        lambda x: ops.topk(x, 10)[0],
        lambda x: -np.sort(-x, axis=1)[:, :10],
        0.0,
        False,
    )


def _copy_cases() -> Iterator[Case]:
    square = _normal((1024, 1024), small=((3, 4),))
    yield Case(
        "permute, contiguous",
        "32×128×12×64",
        _normal((32, 128, 12, 64), small=((2, 3, 4, 5),)),
        lambda x: ops.contiguous(ops.permute(x, (0, 2, 1, 3))),
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 1, 3)),
        0.0,
    )
    yield Case(
        "concat",
        "1024×1024, 1024×512",
        _normal((1024, 1024), (1024, 512), small=((3, 4), (3, 2))),
        lambda *parts: ops.concat(parts, axis=1),
        lambda *parts: np.concatenate(parts, axis=1),
        0.0,
    )
    yield Case("pad", "1024×1024 by 1", square, lambda x: ops.pad(x, [(1, 1)] * 2), lambda x: np.pad(x, 1), 0.0)
    yield Case(
        "cast",
        "1024×1024 to bfloat16",
        square,
        lambda x: ops.cast(x, "bfloat16"),
        lambda x: x.astype(ml_dtypes.bfloat16),
        0.0,
        False,
    )


def _optimizer_cases() -> Iterator[Case]:
    adam = {"step": 3, "lr": 1e-3, "weight_decay": 0.01}
    for name, op in (("adam", ops.adam), ("adamw", ops.adamw)):
        formula = partial(_adam, decoupled=name == "adamw")
        yield Case(name, "2 000 000", _moments, _stepped(op, **adam), formula, 1e-6, False)
    yield Case("rmsprop", "2 000 000", _squares, _stepped(ops.rmsprop, lr=0.01), _rmsprop, 1e-6, False)
    moments = _normal(*[(2_000_000,)] * 3, small=())
    sgd = _stepped(ops.sgd, lr=0.1, momentum=0.9)
    yield Case("sgd", "2 000 000", moments, sgd, lambda p, g, b: p - 0.1 * (0.9 * b + g), 1e-6, False)
    yield Case(
        "global_norm",
        "2 000 000, three",
        moments,
        lambda *arrays: ops.global_norm(arrays),
        lambda *arrays: np.sqrt(sum(np.vdot(x, x) for x in arrays)),
        gradient=False,
    )


def cases() -> list[Case]:
    """Return the cases."""
    return [
        *_matrix_cases(),
        *_row_cases(),
        *_loss_cases(),
        *_pointwise_cases(),
        *_reduction_cases(),
        *_copy_cases(),
        *_optimizer_cases(),
    ]


# ---- checking


def check(case: Case, rng: np.random.Generator, *, rounds: int = 7) -> Check:
    """Compare an op with NumPy, and time both in turns."""
    inputs = case.inputs(rng, 1)
    exact = np.asarray(case.numpy(*[_double(x) for x in inputs]), dtype=np.float64)
    with no_grad():
        actual = np.asarray(case.drupe(*inputs), dtype=np.float64)
    error = math.inf
    if actual.shape == exact.shape:
        error = float(np.abs(actual - exact).max() / max(1e-30, np.abs(exact).max()))
        error = error if math.isfinite(error) else math.inf
    times: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - begun > 0.5:
            break
        for function, taken in zip((case.drupe, case.numpy), times, strict=True):
            start = time.perf_counter()
            function(*inputs)
            taken.append(time.perf_counter() - start)
    drupe_ms, numpy_ms = (1e3 * min(taken) for taken in times)
    gradient_error = _gradient_error(case, rng) if case.gradient else math.nan
    return Check(case, error, gradient_error, drupe_ms, numpy_ms)


def _double(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype == np.float32 else x


def _gradient_error(case: Case, rng: np.random.Generator, step: float = 1e-5) -> float:
    """Return how far the tape's derivative along a direction is from NumPy's central difference, in float64."""
    inputs = [_double(x) for x in case.inputs(rng, 0)]
    # Targets are float too, but the losses' gradients flow to the first input only.
    flows = [
        x.dtype == np.float64 and not (case.name in ("mse", "bce_with_logits") and i) for i, x in enumerate(inputs)
    ]
    directions = [rng.standard_normal(x.shape) if flow else None for x, flow in zip(inputs, flows, strict=True)]
    leaves = [tensor(x, requires_grad=flow) for x, flow in zip(inputs, flows, strict=True)]
    y = case.drupe(*leaves)
    weights = rng.standard_normal(y.shape)
    y.backward(weights)
    slope = 0.0
    for leaf, direction in zip(leaves, directions, strict=True):
        if direction is not None:
            assert isinstance(leaf.grad, Tensor)
            slope += float(np.sum(leaf.grad.numpy() * direction))

    def value(t: float) -> float:
        moved = [x if d is None else x + t * d for x, d in zip(inputs, directions, strict=True)]
        return float(np.sum(case.numpy(*moved) * weights))

    expected = (value(step) - value(-step)) / (2 * step)
    error = abs(slope - expected) / max(1.0, abs(expected))
    return error if math.isfinite(error) else math.inf
