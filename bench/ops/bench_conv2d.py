"""ResNet's 3x3 convolution of 64 channels at 56x56, with one image and eight; forward and backward.

What counts is the direct product's operations: minimal filtering, which has fewer, may exceed the machine's limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup


def cases(quick: bool) -> Iterator[Case]:
    """(B, C, S, S) with (C, C, 3, 3), padding 1."""
    C, S = (16, 12) if quick else (64, 56)
    for B in (1,) if quick else (1, 8):
        yield replace(_case("3x3 nhwc", B, C, S, 1, partial(forward, "NHWC")), target=0.7)
        yield _case("3x3 nchw", B, C, S, 1, partial(forward, "NCHW"))
    yield replace(_case("3x3 nhwc backward", 2 if quick else 8, C, S, 2, backward), target=1.0)


def _case(name: str, B: int, C: int, S: int, products: int, setup: Any) -> Case:
    image, kernel = B * C * S * S, C * C * 9
    return Case(
        op="conv2d",
        name=name,
        shapes=f"B{B} {C}->{C} {S}x{S}",
        dtype="float32",
        flops=2 * products * image * C * 9,
        bytes_read=4 * (products * image + kernel),
        bytes_written=4 * (image + (products - 1) * kernel),
        setup=partial(setup, B, C, S),
    )


def _windows(x: Any) -> Any:
    """(B, C, S, S) -> (B, S, S, C, 3, 3), with a border of zeros."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)


def _convolve(x: Any, w: Any) -> Any:
    """NCHW, as one matrix product over the windows."""
    return np.tensordot(_windows(x), w, axes=((3, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def _draw(B: int, C: int, S: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return rng.standard_normal((B, C, S, S), dtype=np.float32), rng.standard_normal((C, C, 3, 3), dtype=np.float32)


def _torch_conv(torch: Any, x: Any, w: Any) -> Any:
    return torch.nn.functional.conv2d(x, w, padding=1)


def _channels_last(prepare: Callable[[Any, list[Any]], Prepared], *arrays: Any) -> Prepared:
    """Build a torch peer whose 4-d tensors lie in memory as NHWC."""
    torch = peers.torch_module()
    tensors = [peers.torch_tensor(a).to(memory_format=torch.channels_last) for a in arrays]
    return prepare(torch, tensors)


def _jax_conv(jax: Any, x: Any, w: Any) -> Any:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def forward(layout: str, B: int, C: int, S: int, rng: np.random.Generator) -> Setup:
    """The convolution alone; drupe in either layout, the peers in the one that suits them."""
    x, w = _draw(B, C, S, rng)
    own = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "NHWC" else x
    nodes = [{"op": "Conv", "inputs": ["x", "w"], "outputs": ["y"], "pads": [1, 1, 1, 1]}]

    def nhwc(torch: Any, tensors: list[Any]) -> Prepared:
        def call() -> Any:
            with torch.inference_mode():
                return _torch_conv(torch, *tensors)

        return Prepared(call)

    def view(y: Any) -> Any:
        return np.asarray(y).transpose(0, 3, 1, 2) if layout == "NHWC" else np.asarray(y)

    return Setup(
        drupe=peers.drupe_call(partial(ops.conv2d, padding=1, layout=layout), own, w),
        reference=lambda: _convolve(x.astype(float), w.astype(float)),
        tolerance=1e-5,
        view=view,
        peers={
            "numpy": lambda: lambda: _convolve(x, w),
            "torch": lambda: peers.torch_call(_torch_conv, x, w),
            "torch:nhwc": lambda: _channels_last(nhwc, x, w),
            "jax": lambda: peers.jax_call(_jax_conv, x, w),
            **peers.onnx_peers(nodes, {"x": x}, {"w": w}),
        },
    )


def backward(B: int, C: int, S: int, rng: np.random.Generator) -> Setup:
    """The gradients of the images and of the kernel."""
    x, w = _draw(B, C, S, rng)
    dy = rng.standard_normal((B, C, S, S), dtype=np.float32)
    images = drupe.tensor(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), requires_grad=True)
    kernel = drupe.tensor(w, requires_grad=True)
    y = ops.conv2d(images, kernel, padding=1, layout="NHWC")
    gradient = np.ascontiguousarray(dy.transpose(0, 2, 3, 1))

    def reference() -> Any:
        turned = w.astype(float)[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        dw = np.tensordot(dy.astype(float), _windows(x.astype(float)), axes=((0, 2, 3), (0, 1, 2)))
        return [_convolve(dy.astype(float), turned), dw]

    def nhwc(torch: Any, tensors: list[Any]) -> Prepared:
        leaves = [t.requires_grad_() for t in tensors[:2]]
        output = _torch_conv(torch, *leaves)
        return Prepared(lambda: torch.autograd.grad(output, leaves, tensors[2], retain_graph=True))

    def view(gradients: Any) -> Any:
        dx, dw = gradients
        return [dx.numpy().transpose(0, 3, 1, 2), dw]

    return Setup(
        drupe=peers.drupe_backward(lambda: y, gradient, images, kernel),
        reference=reference,
        tolerance=1e-4,
        view=view,
        peers={
            "torch": lambda: peers.torch_backward(_torch_conv, dy, x, w),
            "torch:nhwc": lambda: _channels_last(nhwc, x, w, dy),
            "jax": lambda: peers.jax_backward(_jax_conv, dy, x, w),
        },
    )
