"""Batch normalisation of ResNet-50's first convolution: 64 channels at 112x112."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup, as_arrays


def cases(quick: bool) -> Iterator[Case]:
    """(B, S, S, C): forward in training and in inference, and backward of the former."""
    B, C, S = (2, 8, 12) if quick else (8, 64, 112)
    size = B * C * S * S
    described = (("training", training, 7, 1), ("inference", inference, 4, 1), ("backward", backward, 9, 2))
    for name, setup, flops, reads in described:
        yield Case(
            op="batch_norm",
            name=f"nhwc {name}",
            shapes=f"B{B} {C} {S}x{S}",
            dtype="float32",
            flops=flops * size,
            bytes_read=4 * (size * reads + 4 * C),
            bytes_written=4 * size,
            setup=partial(setup, (B, S, S, C)),
        )


def _nchw(x: Any) -> Any:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _view_nchw(output: Any) -> Any:
    """Bring images, the first output, to NHWC."""
    images, *rest = as_arrays(output)
    return [images.transpose(0, 2, 3, 1), *rest]


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> list[Any]:
    return [rng.standard_normal(s, dtype=np.float32) for s in (shape, shape[-1], shape[-1])]


def _normalised(x: Any) -> Any:
    """By the batch's statistics."""
    centred = x - x.mean((0, 1, 2))
    return centred / np.sqrt((centred * centred).mean((0, 1, 2)) + 1e-5)


def _torch(
    torch: Any, x: Any, weight: Any, bias: Any, mean: Any = None, var: Any = None, *, training: bool = True
) -> Any:
    return torch.nn.functional.batch_norm(x, mean, var, weight, bias, training)


def _torch_nhwc(torch: Any, x: Any, *rest: Any, training: bool = True) -> Any:
    return _torch(torch, x.permute(0, 3, 1, 2), *rest, training=training).permute(0, 2, 3, 1)


def _jax(jax: Any, x: Any, weight: Any, bias: Any) -> Any:
    return (x - x.mean((0, 1, 2))) * (jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * weight) + bias


def training(shape: tuple[int, ...], rng: np.random.Generator) -> Setup:
    """``(x - mean) / sqrt(var + eps) weight + bias`` by the batch's statistics, which also go into running ones."""
    arrays = _draw(shape, rng)
    x, weight, bias = arrays
    running = [np.zeros(shape[-1], np.float32), np.ones(shape[-1], np.float32)]
    nchw = {"torch": lambda: peers.torch_call(_torch, _nchw(x), weight, bias, *running)}
    return Setup(
        drupe=peers.drupe_call(partial(ops.batch_norm, training=True, layout="NHWC"), *arrays, *running),
        reference=lambda: _normalised(x.astype(float)) * weight + bias,
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _normalised(x) * weight + bias,
            **peers.with_view(nchw, _view_nchw),
            "torch:nhwc": lambda: peers.torch_call(_torch_nhwc, *arrays, *running),
            "jax": lambda: peers.jax_call(_jax, *arrays),
        },
    )


def inference(shape: tuple[int, ...], rng: np.random.Generator) -> Setup:
    """The same by given statistics."""
    x, weight, bias = _draw(shape, rng)
    mean, var = rng.standard_normal(shape[-1], dtype=np.float32), rng.random(shape[-1], dtype=np.float32) + 0.5
    named = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    nodes: list[dict[str, Any]] = [
        {"op": "BatchNormalization", "inputs": ["x", *named], "outputs": ["y"], "epsilon": 1e-5}
    ]

    def scaled(x: Any) -> Any:
        scale = weight / np.sqrt(var + 1e-5)
        return x * scale + (bias - mean * scale)

    nchw = {
        "torch": lambda: peers.torch_call(partial(_torch, training=False), _nchw(x), *named.values()),
        **peers.onnx_peers(nodes, {"x": _nchw(x)}, named),
    }
    return Setup(
        drupe=peers.drupe_call(partial(ops.batch_norm, training=False, layout="NHWC"), x, *named.values()),
        reference=lambda: scaled(x.astype(float)),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: scaled(x),
            **peers.with_view(nchw, _view_nchw),
            "torch:nhwc": lambda: peers.torch_call(partial(_torch_nhwc, training=False), x, *named.values()),
            "jax": lambda: peers.jax_call(lambda jax, x: scaled(x), x),
        },
    )


def backward(shape: tuple[int, ...], rng: np.random.Generator) -> Setup:
    """The gradients of x, weight and bias, in training."""
    arrays = _draw(shape, rng)
    dy = rng.standard_normal(shape, dtype=np.float32)
    leaves = [drupe.tensor(a, requires_grad=True) for a in arrays]
    y = ops.batch_norm(*leaves, training=True, layout="NHWC")

    def reference() -> Any:
        x, weight, _ = (a.astype(float) for a in arrays)
        axes = (0, 1, 2)
        normal, scale = _normalised(x), weight / np.sqrt(x.var(axes) + 1e-5)
        dx = scale * (dy - dy.mean(axes, dtype=float) - normal * (dy * normal).mean(axes))
        return [dx, (dy * normal).sum(axes), dy.sum(axes, dtype=float)]

    nchw = {"torch": lambda: peers.torch_backward(_torch, _nchw(dy), _nchw(arrays[0]), *arrays[1:])}
    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, *leaves),
        reference=reference,
        tolerance=1e-4,
        peers={
            **peers.with_view(nchw, _view_nchw),
            "torch:nhwc": lambda: peers.torch_backward(_torch_nhwc, dy, *arrays),
            "jax": lambda: peers.jax_backward(_jax, dy, *arrays),
        },
    )
