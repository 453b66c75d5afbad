"""ResNet's poolings: of windows of 3x3, stride 2, at its start (maximum, and mean), and of all at its end (mean)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup


class _Images(NamedTuple):
    """Square images, and the windows that are pooled."""

    B: int
    C: int
    S: int
    kernel: int
    stride: int
    padding: int

    @property
    def pooled(self) -> int:
        """The extent of the result."""
        return (self.S + 2 * self.padding - self.kernel) // self.stride + 1


_FOLDS: dict[str, Callable[..., Any]] = {"max_pool2d": np.max, "avg_pool2d": np.mean, "adaptive_avg_pool2d": np.mean}
_ONNX = {"max_pool2d": "MaxPool", "avg_pool2d": "AveragePool", "adaptive_avg_pool2d": "GlobalAveragePool"}


def cases(quick: bool) -> Iterator[Case]:
    """(B, C, S, S) in NHWC, forward and backward."""
    first, last = ((2, 8, 16), (2, 32, 7)) if quick else ((8, 64, 112), (8, 2048, 7))
    for op in _FOLDS:
        whole = op == "adaptive_avg_pool2d"
        at = _Images(*last, last[-1], 1, 0) if whole else _Images(*first, 3, 2, 1)
        size, pooled = at.B * at.C * at.S**2, at.B * at.C * at.pooled**2
        described: dict[str, Any] = {"op": op, "shapes": f"B{at.B} {at.C} {at.S}x{at.S}", "dtype": "float32"}
        described |= {"target": 0.7 if op == "max_pool2d" else None}
        name = "1x1 nhwc" if whole else "3x3/2 nhwc"
        yield Case(
            name=name,
            flops=at.kernel**2 * pooled,
            bytes_read=4 * size,
            bytes_written=4 * pooled,
            setup=partial(forward, op, at),
            **described,
        )
        yield Case(
            name=f"{name} backward",
            flops=pooled if op == "max_pool2d" else size,
            bytes_read=4 * pooled,
            bytes_written=4 * size,
            setup=partial(backward, op, at),
            **described,
        )


def _windows(op: str, at: _Images, x: Any) -> Any:
    """(B, C, S, S) -> (B, C, pooled, pooled, elements of a window)."""
    border = ((0, 0), (0, 0), (at.padding, at.padding), (at.padding, at.padding))
    padded = np.pad(x, border, constant_values=-np.inf if op == "max_pool2d" else 0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (at.kernel, at.kernel), axis=(2, 3))
    return windows[:, :, :: at.stride, :: at.stride].reshape(at.B, at.C, at.pooled, at.pooled, -1)


def _options(op: str, at: _Images) -> dict[str, Any]:
    """What drupe and torch take after the images."""
    if op == "adaptive_avg_pool2d":
        return {"output_size": 1}
    return {"kernel_size": at.kernel, "stride": at.stride, "padding": at.padding}


def _torch(op: str, at: _Images, torch: Any, x: Any) -> Any:
    return getattr(torch.nn.functional, op)(x, **_options(op, at))


def _jax(op: str, at: _Images, jax: Any, x: Any) -> Any:
    lax, border = jax.lax, (at.padding, at.padding)
    start, fold, scale = (-np.inf, lax.max, 1) if op == "max_pool2d" else (0.0, lax.add, at.kernel**2)
    window, strides = (1, 1, at.kernel, at.kernel), (1, 1, at.stride, at.stride)
    return lax.reduce_window(x, start, fold, window, strides, ((0, 0), (0, 0), border, border)) / scale


def _node(op: str, at: _Images) -> dict[str, Any]:
    node: dict[str, Any] = {"op": _ONNX[op], "inputs": ["x"], "outputs": ["y"]}
    if op != "adaptive_avg_pool2d":
        node |= {"kernel_shape": [at.kernel] * 2, "strides": [at.stride] * 2, "pads": [at.padding] * 4}
    return node | ({"count_include_pad": 1} if op == "avg_pool2d" else {})


def _nhwc(x: Any) -> Any:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def forward(op: str, at: _Images, rng: np.random.Generator) -> Setup:
    """The pooling alone."""
    x = rng.standard_normal((at.B, at.C, at.S, at.S), dtype=np.float32)

    def nhwc() -> Prepared:
        torch = peers.torch_module()
        images = peers.torch_tensor(x).to(memory_format=torch.channels_last)

        def call() -> Any:
            with torch.inference_mode():
                return _torch(op, at, torch, images)

        return Prepared(call)

    return Setup(
        drupe=peers.drupe_call(partial(getattr(ops, op), **_options(op, at), layout="NHWC"), _nhwc(x)),
        reference=lambda: _FOLDS[op](_windows(op, at, x.astype(float)), -1),
        tolerance=0 if op == "max_pool2d" else 1e-6,
        view=lambda y: np.asarray(y).transpose(0, 3, 1, 2),
        peers={
            "torch": lambda: peers.torch_call(partial(_torch, op, at), x),
            "torch:nhwc": nhwc,
            "jax": lambda: peers.jax_call(partial(_jax, op, at), x),
            **peers.onnx_peers([_node(op, at)], {"x": x}),
        },
    )


def backward(op: str, at: _Images, rng: np.random.Generator) -> Setup:
    """Each window's gradient goes to its maximum, or to all of it alike."""
    x = rng.standard_normal((at.B, at.C, at.S, at.S), dtype=np.float32)
    dy = rng.standard_normal((at.B, at.C, at.pooled, at.pooled), dtype=np.float32)
    images = drupe.tensor(_nhwc(x), requires_grad=True)
    y = getattr(ops, op)(images, **_options(op, at), layout="NHWC")

    def reference() -> Any:
        best = _windows(op, at, x).argmax(-1)
        reach, inside = at.stride * at.pooled, slice(at.padding, at.padding + at.S)
        dx = np.zeros((at.B, at.C, at.S + at.kernel, at.S + at.kernel))
        for tap in range(at.kernel**2):
            row, column = divmod(tap, at.kernel)
            share = best == tap if op == "max_pool2d" else at.kernel**-2
            dx[:, :, row : row + reach : at.stride, column : column + reach : at.stride] += share * dy
        return dx[:, :, inside, inside]

    def nhwc() -> Prepared:
        torch = peers.torch_module()
        leaf, upstream = (peers.torch_tensor(a).to(memory_format=torch.channels_last) for a in (x, dy))
        output = _torch(op, at, torch, leaf.requires_grad_())
        return Prepared(lambda: torch.autograd.grad(output, [leaf], upstream, retain_graph=True))

    return Setup(
        drupe=peers.drupe_backward(lambda: y, _nhwc(dy), images),
        reference=reference,
        tolerance=1e-5,
        view=lambda grads: grads[0].numpy().transpose(0, 3, 1, 2),
        peers={
            "torch": lambda: peers.torch_backward(partial(_torch, op, at), dy, x),
            "torch:nhwc": nhwc,
            "jax": lambda: peers.jax_backward(partial(_jax, op, at), dy, x),
        },
    )
