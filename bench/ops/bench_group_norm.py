"""Group normalisation of ResNet-50's first stage: 256 channels at 56x56 in 32 groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup, as_arrays


def cases(quick: bool) -> Iterator[Case]:
    """(B, S, S, C) or (B, C, S, S), forward and backward (of x, weight and bias)."""
    B, C, S, groups = (2, 16, 12, 4) if quick else (8, 256, 56, 32)
    size = B * C * S * S
    directions = (("forward", forward, 7, 1), ("backward", backward, 13, 2))
    for layout, (name, setup, flops, reads) in product(("NHWC", "NCHW"), directions):
        yield Case(
            op="group_norm",
            name=f"{layout.lower()} {name}",
            shapes=f"B{B} {C}/{groups} {S}x{S}",
            dtype="float32",
            flops=flops * size,
            bytes_read=4 * (size * reads + 2 * C),
            bytes_written=4 * size,
            setup=partial(setup, (B, S, S, C), groups, layout),
        )


def _nchw(x: Any) -> Any:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _view_nchw(output: Any) -> Any:
    """Bring images, the first output, to NHWC."""
    images, *rest = as_arrays(output)
    return [images.transpose(0, 2, 3, 1), *rest]


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> list[Any]:
    return [rng.standard_normal(s, dtype=np.float32) for s in (shape, shape[-1], shape[-1])]


def _grouped(x: Any, groups: int) -> Any:
    """(B, S, S, C) -> (B, S, S, groups, C / groups)."""
    return x.reshape(*x.shape[:3], groups, -1)


def _group_norm(groups: int, x: Any, weight: Any, bias: Any) -> Any:
    """For arrays of NumPy and of jax alike."""
    g = _grouped(x, groups)
    centred = g - g.mean((1, 2, 4), keepdims=True)
    var = (centred * centred).mean((1, 2, 4), keepdims=True)
    return (centred * (var + 1e-5) ** -0.5).reshape(x.shape) * weight + bias


def _torch(groups: int, torch: Any, x: Any, weight: Any, bias: Any) -> Any:
    return torch.nn.functional.group_norm(x, groups, weight, bias)


def _torch_nhwc(groups: int, torch: Any, x: Any, weight: Any, bias: Any) -> Any:
    return _torch(groups, torch, x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)


def _jax(groups: int, jax: Any, *arrays: Any) -> Any:
    return _group_norm(groups, *arrays)


# How images, which are drawn in NHWC, get into a layout, and how the outputs get back.
_LAYOUTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "NHWC": (lambda x: x, as_arrays),
    "NCHW": (_nchw, _view_nchw),
}


def forward(shape: tuple[int, ...], groups: int, layout: str, rng: np.random.Generator) -> Setup:
    """``(x - mean) / sqrt(var + eps) weight + bias``, the statistics per image and group."""
    x, weight, bias = _draw(shape, rng)
    into, view = _LAYOUTS[layout]
    nchw = {"torch": lambda: peers.torch_call(partial(_torch, groups), _nchw(x), weight, bias)}
    return Setup(
        drupe=peers.drupe_call(partial(ops.group_norm, groups=groups, layout=layout), into(x), weight, bias),
        view=view,
        reference=lambda: _group_norm(groups, x.astype(float), weight, bias),
        tolerance=1e-5,
        peers={
            "numpy": lambda: lambda: _group_norm(groups, x, weight, bias),
            **peers.with_view(nchw, _view_nchw),
            "torch:nhwc": lambda: peers.torch_call(partial(_torch_nhwc, groups), x, weight, bias),
            "jax": lambda: peers.jax_call(partial(_jax, groups), x, weight, bias),
        },
    )


def backward(shape: tuple[int, ...], groups: int, layout: str, rng: np.random.Generator) -> Setup:
    """The gradients of x, weight and bias."""
    arrays = _draw(shape, rng)
    dy = rng.standard_normal(shape, dtype=np.float32)
    into, view = _LAYOUTS[layout]
    leaves = [drupe.tensor(a, requires_grad=True) for a in (into(arrays[0]), *arrays[1:])]
    y = ops.group_norm(*leaves, groups=groups, layout=layout)

    def reference() -> Any:
        x, weight, _ = (a.astype(float) for a in arrays)
        axes: dict[str, Any] = {"axis": (1, 2, 4), "keepdims": True}
        g, upstream = _grouped(x, groups), _grouped(dy * weight, groups)
        scale = 1 / np.sqrt(g.var(**axes) + 1e-5)
        normal = (g - g.mean(**axes)) * scale
        dx = scale * (upstream - upstream.mean(**axes) - normal * (upstream * normal).mean(**axes))
        return [
            dx.reshape(shape),
            (dy * normal.reshape(shape)).sum((0, 1, 2)),
            dy.sum((0, 1, 2), dtype=float),
        ]

    nchw = {"torch": lambda: peers.torch_backward(partial(_torch, groups), _nchw(dy), _nchw(arrays[0]), *arrays[1:])}
    return Setup(
        drupe=peers.drupe_backward(lambda: y, into(dy), *leaves),
        view=view,
        reference=reference,
        tolerance=1e-4,
        peers={
            **peers.with_view(nchw, _view_nchw),
            "torch:nhwc": lambda: peers.torch_backward(partial(_torch_nhwc, groups), dy, *arrays),
            "jax": lambda: peers.jax_backward(partial(_jax, groups), dy, *arrays),
        },
    )
