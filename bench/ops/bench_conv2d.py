"""3x3 convolutions at 56x56: ResNet's of 64 channels, one image and eight, and ResNeXt's of 32 groups of four.

What counts is the direct product's operations: minimal filtering, which has fewer, may exceed the machine's limit. Then
the packing of larger ones' weights.
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
from drupe.bench.arrays import TOLERANCE, exact, numpy_dtype
from drupe.bench.harness import Case, Prepared, Setup


def cases(quick: bool) -> Iterator[Case]:
    """(B, C, S, S) with (C, C / groups, 3, 3), padding 1."""
    C, S = (16, 12) if quick else (64, 56)
    for B in (1,) if quick else (1, 8):
        yield replace(_case("3x3 nhwc", B, C, S, 1, partial(forward, "NHWC")), target=0.7)
        yield _case("3x3 nchw", B, C, S, 1, partial(forward, "NCHW"))
    yield replace(_case("3x3 nhwc backward", 2 if quick else 8, C, S, 2, backward), target=1.0)
    B, C, groups = (2, 16, 4) if quick else (8, 128, 32)
    yield _case("3x3 nhwc groups", B, C, S, 1, partial(forward, "NHWC"), groups)
    yield _case("3x3 nhwc groups backward", B, C, S, 2, backward, groups)
    C = 16 if quick else 256
    for stride, dtype, grown in ((2, "float32", 1.0), (1, "bfloat16", 16 / 9)):  # the latter for minimal filtering
        size = 9 * C * C * numpy_dtype(dtype).itemsize
        yield Case(
            op="pack_filters",
            name=f"3x3/{stride}",
            shapes=f"{C}->{C}",
            dtype=dtype,
            flops=9 * C * C * grown,
            bytes_read=size,
            bytes_written=size * grown,
            setup=partial(pack, C, stride, dtype),
            cpu_only=True,
        )


def _case(name: str, B: int, C: int, S: int, products: int, setup: Any, groups: int = 1) -> Case:
    image, kernel = B * C * S * S, C * C // groups * 9
    return Case(
        op="conv2d",
        name=name,
        shapes=f"B{B} {C}->{C} {S}x{S}" + (f" / {groups}" if groups > 1 else ""),
        dtype="float32",
        flops=2 * products * image * C // groups * 9,
        bytes_read=4 * (products * image + kernel),
        bytes_written=4 * (image + (products - 1) * kernel),
        setup=partial(setup, B, C, S, groups),
    )


def _windows(x: Any) -> Any:
    """(B, C, S, S) -> (B, S, S, C, 3, 3), with a border of zeros."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)


def _convolve(x: Any, w: Any, groups: int = 1) -> Any:
    """NCHW, as one matrix product over the windows for each group."""
    pairs = zip(np.split(x, groups, 1), np.split(w, groups), strict=True)
    results = [np.tensordot(_windows(a), b, axes=((3, 4, 5), (1, 2, 3))) for a, b in pairs]
    return np.concatenate(results, -1).transpose(0, 3, 1, 2)


def _draw(B: int, C: int, S: int, groups: int, rng: np.random.Generator) -> tuple[Any, Any]:
    x, w = (B, C, S, S), (C, C // groups, 3, 3)
    return rng.standard_normal(x, dtype=np.float32), rng.standard_normal(w, dtype=np.float32)


def _torch_conv(groups: int, torch: Any, x: Any, w: Any) -> Any:
    return torch.nn.functional.conv2d(x, w, padding=1, groups=groups)


def _channels_last(prepare: Callable[[Any, list[Any]], Prepared], *arrays: Any) -> Prepared:
    """Build a torch peer whose 4-d tensors lie in memory as NHWC."""
    torch = peers.torch_module()
    tensors = [peers.torch_tensor(a).to(memory_format=torch.channels_last) for a in arrays]
    return prepare(torch, tensors)


def _jax_conv(groups: int, jax: Any, x: Any, w: Any) -> Any:
    order = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=order, feature_group_count=groups)


def forward(layout: str, B: int, C: int, S: int, groups: int, rng: np.random.Generator) -> Setup:
    """The convolution alone; drupe in either layout, the peers in the one that suits them."""
    x, w = _draw(B, C, S, groups, rng)
    own = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "NHWC" else x
    nodes = [{"op": "Conv", "inputs": ["x", "w"], "outputs": ["y"], "pads": [1, 1, 1, 1], "group": groups}]

    def nhwc(torch: Any, tensors: list[Any]) -> Prepared:
        def call() -> Any:
            with torch.inference_mode():
                return _torch_conv(groups, torch, *tensors)

        return Prepared(call)

    def view(y: Any) -> Any:
        return np.asarray(y).transpose(0, 3, 1, 2) if layout == "NHWC" else np.asarray(y)

    return Setup(
        drupe=peers.drupe_call(partial(ops.conv2d, padding=1, groups=groups, layout=layout), own, w),
        reference=lambda: _convolve(x.astype(float), w.astype(float), groups),
        tolerance=1e-5,
        view=view,
        peers={
            "numpy": lambda: lambda: _convolve(x, w, groups),
            "torch": lambda: peers.torch_call(partial(_torch_conv, groups), x, w),
            "torch:nhwc": lambda: _channels_last(nhwc, x, w),
            "jax": lambda: peers.jax_call(partial(_jax_conv, groups), x, w),
            **peers.onnx_peers(nodes, {"x": x}, {"w": w}),
        },
    )


def backward(B: int, C: int, S: int, groups: int, rng: np.random.Generator) -> Setup:
    """The gradients of the images and of the kernel."""
    x, w = _draw(B, C, S, groups, rng)
    dy = rng.standard_normal((B, C, S, S), dtype=np.float32)
    images = drupe.tensor(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), requires_grad=True)
    kernel = drupe.tensor(w, requires_grad=True)
    y = ops.conv2d(images, kernel, padding=1, groups=groups, layout="NHWC")
    gradient = np.ascontiguousarray(dy.transpose(0, 2, 3, 1))

    def reference() -> Any:
        own, gradients = np.split(x.astype(float), groups, 1), np.split(dy.astype(float), groups, 1)
        swapped = [part.transpose(1, 0, 2, 3) for part in np.split(w.astype(float)[:, :, ::-1, ::-1], groups)]
        dw = [np.tensordot(g, _windows(a), axes=((0, 2, 3), (0, 1, 2))) for a, g in zip(own, gradients, strict=True)]
        return [_convolve(dy.astype(float), np.concatenate(swapped), groups), np.concatenate(dw)]

    def nhwc(torch: Any, tensors: list[Any]) -> Prepared:
        leaves = [t.requires_grad_() for t in tensors[:2]]
        output = _torch_conv(groups, torch, *leaves)
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
            "torch": lambda: peers.torch_backward(partial(_torch_conv, groups), dy, x, w),
            "torch:nhwc": lambda: _channels_last(nhwc, x, w, dy),
            "jax": lambda: peers.jax_backward(partial(_jax_conv, groups), dy, x, w),
        },
    )


def pack(C: int, stride: int, dtype: str, rng: np.random.Generator) -> Setup:
    """A (C, C, 3, 3) in the order of the kernels; torch's in oneDNN's. Convolutions with it are compared."""
    x, w = (a.astype(numpy_dtype(dtype)) for a in _draw(1, C, 8, 1, rng))
    how: dict[str, Any] = {"padding": 1, "stride": stride}

    def torch(torch: Any, w: Any) -> Any:
        return torch.ops.mkldnn._reorder_convolution_weight(w, [1, 1], [stride] * 2, [1, 1], 1, x.shape)

    def with_image(w: Any) -> Any:
        return _convolve(exact(x), w)[:, :, ::stride, ::stride]

    return Setup(
        drupe=peers.drupe_call(partial(ops.pack_filters, **how), w),
        reference=lambda: with_image(exact(w)),
        tolerance=TOLERANCE[dtype],
        view=lambda packed: ops.conv2d(x, packed, **how),
        peers=peers.with_view(
            {"torch": lambda: peers.torch_call(torch, w)}, lambda packed: with_image(packed.to_dense().double().numpy())
        ),
    )
