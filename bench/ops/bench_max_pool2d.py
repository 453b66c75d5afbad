"""ResNet's first pooling: windows of 3x3, stride 2."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup


def cases(quick: bool) -> Iterator[Case]:
    """(B, C, S, S) in NHWC, forward and backward."""
    B, C, S = (2, 8, 16) if quick else (8, 64, 112)
    size, pooled = B * C * S * S, B * C * (S // 2) ** 2
    described: dict[str, Any] = {"op": "max_pool2d", "shapes": f"B{B} {C} {S}x{S}", "dtype": "float32"}
    yield Case(
        name="3x3/2 nhwc",
        flops=9 * pooled,
        bytes_read=4 * size,
        bytes_written=4 * pooled,
        setup=partial(forward, B, C, S),
        target=0.7,
        **described,
    )
    yield Case(
        name="3x3/2 nhwc backward",
        flops=pooled,
        bytes_read=4 * pooled,
        bytes_written=4 * size,
        setup=partial(backward, B, C, S),
        target=0.7,
        **described,
    )


def _windows(x: Any) -> Any:
    """(B, C, S, S) -> (B, C, S / 2, S / 2, 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    return windows.reshape(*windows.shape[:4], 9)


def _torch(torch: Any, x: Any) -> Any:
    return torch.nn.functional.max_pool2d(x, 3, 2, 1)


def _jax(jax: Any, x: Any) -> Any:
    lax = jax.lax
    return lax.reduce_window(x, -np.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))


def forward(B: int, C: int, S: int, rng: np.random.Generator) -> Setup:
    """The pooling alone."""
    x = rng.standard_normal((B, C, S, S), dtype=np.float32)
    own = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    nodes: list[dict[str, Any]] = [
        {
            "op": "MaxPool",
            "inputs": ["x"],
            "outputs": ["y"],
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "pads": [1, 1, 1, 1],
        }
    ]

    def nhwc() -> Prepared:
        torch = peers.torch_module()
        images = peers.torch_tensor(x).to(memory_format=torch.channels_last)

        def call() -> Any:
            with torch.inference_mode():
                return _torch(torch, images)

        return Prepared(call)

    return Setup(
        drupe=peers.drupe_call(lambda x: ops.max_pool2d(x, 3, stride=2, padding=1, layout="NHWC"), own),
        reference=lambda: _windows(x).max(-1),
        tolerance=0,
        view=lambda y: np.asarray(y).transpose(0, 3, 1, 2),
        peers={
            "torch": lambda: peers.torch_call(_torch, x),
            "torch:nhwc": nhwc,
            "jax": lambda: peers.jax_call(_jax, x),
            **peers.onnx_peers(nodes, {"x": x}),
        },
    )


def backward(B: int, C: int, S: int, rng: np.random.Generator) -> Setup:
    """Each window's gradient goes to its maximum."""
    x = rng.standard_normal((B, C, S, S), dtype=np.float32)
    dy = rng.standard_normal((B, C, S // 2, S // 2), dtype=np.float32)
    images = drupe.tensor(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), requires_grad=True)
    y = ops.max_pool2d(images, 3, stride=2, padding=1, layout="NHWC")
    gradient = np.ascontiguousarray(dy.transpose(0, 2, 3, 1))

    def reference() -> Any:
        dx = np.zeros((B, C, S + 2, S + 2))
        b, c, p, q = np.indices(dy.shape)
        row, column = np.divmod(_windows(x).argmax(-1), 3)
        np.add.at(dx, (b, c, 2 * p + row, 2 * q + column), dy)
        return dx[:, :, 1:-1, 1:-1]

    def nhwc() -> Prepared:
        torch = peers.torch_module()
        leaf, upstream = (peers.torch_tensor(a).to(memory_format=torch.channels_last) for a in (x, dy))
        output = _torch(torch, leaf.requires_grad_())
        return Prepared(lambda: torch.autograd.grad(output, [leaf], upstream, retain_graph=True))

    return Setup(
        drupe=peers.drupe_backward(lambda: y, gradient, images),
        reference=reference,
        tolerance=1e-5,
        view=lambda grads: grads[0].numpy().transpose(0, 3, 1, 2),
        peers={
            "torch": lambda: peers.torch_backward(_torch, dy, x),
            "torch:nhwc": nhwc,
            "jax": lambda: peers.jax_backward(_jax, dy, x),
        },
    )
