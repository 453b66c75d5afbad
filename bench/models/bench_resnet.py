"""ResNet-50 on eight images of 224x224: the forward pass of inference, and a step of training.

Batch norm's statistics and scales are random, so that nobody gets away with forgetting them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops, optim
from drupe.bench import peers
from drupe.bench.harness import Case, Prepared, Setup
from drupe.models.resnet import ResNet, ResNetConfig

_OPTIONS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
_TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2}
_EPS = 1e-5

Unit = Callable[..., Any]


def cases(quick: bool) -> Iterator[Case]:
    """(B, 3, S, S) images; float32, and bfloat16 weights."""
    B, S = (2, 32) if quick else (8, 224)
    small: dict[str, Any] = {"layers": (1, 1), "width": 8, "num_classes": 10} if quick else {}
    config = ResNetConfig.resnet50(**small)
    multiplications, weights = _count(config, S)
    flops = 2 * B * multiplications
    described: dict[str, Any] = {"op": "resnet", "shapes": f"B{B} {S}x{S} L{sum(config.layers)}"}
    for dtype in ("float32", "bfloat16"):
        width = 4 if dtype == "float32" else 2
        yield Case(
            name="forward",
            dtype=dtype,
            flops=flops,
            bytes_read=width * (weights + 3 * B * S * S),
            bytes_written=width * B * config.num_classes,
            setup=partial(forward, config, B, S, dtype),
            target=0.95,
            **described,
        )
    yield Case(
        name="training step",
        dtype="float32",
        flops=3 * flops,
        bytes_read=4 * (4 * weights + 3 * B * S * S),
        bytes_written=8 * weights,
        setup=partial(training, config, B, S),
        **described,
    )


def _walk(config: ResNetConfig, x: Any, unit: Unit, pool: Callable[[Any], Any]) -> Any:
    """Return the last feature map.

    ``unit(x, conv, norm, stride, residual, relu)`` is a convolution, batch norm, the sum with a residual and relu; the
    layers are named.
    """
    x = pool(unit(x, "conv1", "bn1", 2, None, True))
    for stage, blocks in enumerate(config.layers):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = unit(x, f"{name}.conv1", f"{name}.bn1", 1, None, True)
            y = unit(y, f"{name}.conv2", f"{name}.bn2", stride, None, True)
            if block == 0:
                x = unit(x, f"{name}.downsample.0", f"{name}.downsample.1", stride, None, False)
            x = unit(y, f"{name}.conv3", f"{name}.bn3", 1, x, True)
    return x


def _count(config: ResNetConfig, S: int) -> tuple[int, int]:
    """Return the multiplications for one image of S x S, and the weights."""
    shapes = {name: value.shape for name, value in ResNet(config).state_dict().items()}
    total = 0

    def unit(size: int, conv: str, norm: str, stride: int, residual: Any, relu: bool) -> int:
        nonlocal total
        size = (size + stride - 1) // stride
        total += size * size * int(np.prod(shapes[f"{conv}.weight"]))
        return size

    _walk(config, S, unit, lambda size: (size + 1) // 2)
    return total + int(np.prod(shapes["fc.weight"])), sum(int(np.prod(shape)) for shape in shapes.values())


def _model(config: ResNetConfig, rng: np.random.Generator) -> ResNet:
    model = ResNet(config)
    state = _state(model)
    for name, value in state.items():
        if name.endswith("running_mean") or (name.endswith("bias") and not name.startswith("fc")):
            value[...] = rng.normal(0, 0.1, value.shape)
        elif value.ndim == 1 and name.endswith(("running_var", "weight")):
            # Small in a branch's last layer: so that sums do not grow from block to block.
            value[...] = rng.uniform(0.5, 1.5, value.shape) * (0.2 if name.endswith("bn3.weight") else 1)
    model.load_state_dict(state)
    return model


def _state(model: ResNet) -> dict[str, Any]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def _torch_network(config: ResNetConfig, state: Mapping[str, Any], dtype: str, *, training: bool) -> Any:
    """Return the network of torch's functions, channels last, as a function of images; and its parameters."""
    torch = peers.torch_module()
    functions = torch.nn.functional
    values = {name: peers.torch_tensor(value) for name, value in state.items()}
    for name, value in values.items():
        if value.dtype != torch.int64:
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            values[name] = value.to(getattr(torch, dtype), memory_format=layout)
    parameters = [value for name, value in values.items() if name.endswith(("weight", "bias"))]
    for value in parameters:
        value.requires_grad_(training)

    def unit(x: Any, conv: str, norm: str, stride: int, residual: Any, relu: bool) -> Any:
        weight = values[f"{conv}.weight"]
        x = functions.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        statistics = values[f"{norm}.running_mean"], values[f"{norm}.running_var"]
        scale = values[f"{norm}.weight"], values[f"{norm}.bias"]
        x = functions.batch_norm(x, *statistics, *scale, training=training, eps=_EPS)
        x = x if residual is None else x + residual
        return functions.relu(x) if relu else x

    def network(x: Any) -> Any:
        x = _walk(config, x, unit, lambda y: functions.max_pool2d(y, 3, 2, 1))
        return functions.linear(x.mean((2, 3)), values["fc.weight"], values["fc.bias"])

    return network, parameters


def _torch_images(images: np.ndarray[Any, Any], dtype: str) -> Any:
    torch = peers.torch_module()
    return peers.torch_tensor(images).to(getattr(torch, dtype), memory_format=torch.channels_last)


def onnx_graph(config: ResNetConfig, state: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Return the ONNX nodes, from ``x`` (B, 3, S, S) to ``y`` (B, classes), and the constants.

    Args:
        config: the sizes.
        state: the parameters of a :class:`ResNet`.
    """
    nodes: list[Mapping[str, Any]] = []
    constants: dict[str, Any] = {name: value for name, value in state.items() if value.ndim > 0}

    def add(op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"t{len(nodes)}"
        nodes.append({"op": op, "inputs": inputs, "outputs": [name], **attributes})
        return name

    def unit(x: str, conv: str, norm: str, stride: int, residual: Any, relu: bool) -> str:
        kernel = state[f"{conv}.weight"].shape[2]
        window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        x = add("Conv", x, f"{conv}.weight", **window)
        of_norm = [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        x = add("BatchNormalization", x, *of_norm, epsilon=_EPS)
        x = x if residual is None else add("Add", x, residual)
        return add("Relu", x) if relu else x

    def pool(x: str) -> str:
        return add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    x = add("Flatten", add("GlobalAveragePool", _walk(config, "x", unit, pool)))
    add("Gemm", x, "fc.weight", "fc.bias", transB=1, output="y")
    return nodes, constants


def forward(config: ResNetConfig, B: int, S: int, dtype: str, rng: np.random.Generator) -> Setup:
    """The logits, (B, classes)."""
    model = _model(config, rng).eval()
    state = _state(model)
    images = rng.standard_normal((B, config.in_channels, S, S), dtype=np.float32)
    model.astype(dtype).to(drupe.get_default_device()).pack_weights()
    x = drupe.tensor(images).astype(dtype)

    def run() -> Any:
        with drupe.no_grad():
            return model(x).astype("float32")

    def torch(*, compiled: bool) -> Prepared:
        torch = peers.torch_module()
        network, _ = _torch_network(config, state, dtype, training=False)
        compute = torch.compile(network) if compiled else network
        inputs = _torch_images(images, dtype)

        def call() -> Any:
            with torch.inference_mode():
                return compute(inputs)

        return Prepared(call)

    def onnx() -> bytes:
        nodes, constants = onnx_graph(config, state)
        return peers.onnx_model(nodes, {"x": images}, constants)

    rivals: dict[str, Callable[[], Prepared]] = {
        "torch": lambda: torch(compiled=False),
        "torch:compile": lambda: torch(compiled=True),
        "openvino": lambda: peers.openvino_call(onnx(), {"x": images}, dtype),
    }
    if dtype == "float32":
        rivals["onnxruntime"] = lambda: peers.onnxruntime_call(onnx(), {"x": images})
    return Setup(drupe=run, peers=rivals, tolerance=_TOLERANCE[dtype])


def training(config: ResNetConfig, B: int, S: int, rng: np.random.Generator) -> Setup:
    """Forward, loss, backward and SGD with momentum; the loss comes out."""
    model = _model(config, rng)
    state = _state(model)
    images = rng.standard_normal((B, config.in_channels, S, S), dtype=np.float32)
    labels = rng.integers(0, config.num_classes, B)
    model.to(drupe.get_default_device())
    optimizer = optim.SGD(model.parameters(), **_OPTIONS)
    x = drupe.tensor(images)

    def torch(*, compiled: bool) -> Prepared:
        torch = peers.torch_module()
        network, parameters = _torch_network(config, state, "float32", training=True)
        compute = torch.compile(network) if compiled else network
        sgd = torch.optim.SGD(parameters, fused=True, **_OPTIONS)
        inputs, targets = _torch_images(images, "float32"), peers.torch_tensor(labels)

        return peers.torch_step(lambda: torch.nn.functional.cross_entropy(compute(inputs), targets), sgd)

    return Setup(
        drupe=peers.drupe_step(lambda: ops.cross_entropy(model(x), labels), optimizer),
        peers={"torch": lambda: torch(compiled=False), "torch:compile": lambda: torch(compiled=True)},
        tolerance=_TOLERANCE["float32"],
    )
