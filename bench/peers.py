"""The libraries that drupe is compared with: which are there, how many threads they use, how they are called.

Each helper takes NumPy arrays, converts them once, and gives the call to time.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import drupe
from drupe.bench.harness import Prepared
from drupe.tensor import get_default_device

NAMES = ("numpy", "torch", "jax", "onnxruntime", "openvino")
ON_DEVICE = ("torch",)  # those that are also timed on a GPU


def installed(name: str) -> bool:
    """Return whether a package can be imported, and import it, so that no case is charged with that."""
    if importlib.util.find_spec(name) is None:
        return False
    importlib.import_module(name)
    return True


def versions(names: Sequence[str] = NAMES) -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Let drupe and all peers use so many threads, on as many processors, within the block.

    Threads inherit the processors of the thread that starts them, which is how libraries without a setting of their
    own are held to the number.
    """
    before = drupe.num_threads()
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(processors)[:threads])
    drupe.set_num_threads(threads)
    _set_blas_threads(threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)
        drupe.set_num_threads(before)
        _set_blas_threads(len(processors))


def _set_blas_threads(threads: int) -> None:
    """Set NumPy's OpenBLAS, which reads its environment only while it is loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for path in sorted(set(re.findall(r"/\S*openblas\S*\.so\S*", maps))):
        library = ctypes.CDLL(path)
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            symbol = f"{prefix}openblas_set_num_threads{suffix}"
            if hasattr(library, symbol):
                getattr(library, symbol)(threads)
                break


def here(array: np.ndarray[Any, Any]) -> Any:
    """Return what drupe's ops get: the array itself, or on a device a tensor there."""
    return array if get_default_device() == "cpu" else drupe.tensor(array)


def drupe_call(function: Callable[..., Any], *arrays: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """Time ``function(*arrays)``."""
    inputs = [here(a) for a in arrays]
    return lambda: function(*inputs)


def drupe_backward(
    output: Callable[[], drupe.Tensor], gradient: np.ndarray[Any, Any], *leaves: drupe.Tensor
) -> Callable[[], list[Any]]:
    """Time the backward pass of what ``output`` returns, the same tensor time and again or a fresh one."""
    dy = here(gradient)

    def call() -> list[Any]:
        for leaf in leaves:
            leaf.grad = None
        output().backward(dy, retain_graph=True)
        return [leaf.grad for leaf in leaves]

    return call


def with_view(
    builders: Mapping[str, Callable[[], Prepared]], view: Callable[[Any], Any]
) -> dict[str, Callable[[], Prepared]]:
    """Return the builders with another view of their outputs."""

    def viewed(build: Callable[[], Prepared]) -> Callable[[], Prepared]:
        return lambda: Prepared(build().call, view)

    return {name: viewed(build) for name, build in builders.items()}


def torch_tensor(array: np.ndarray[Any, Any], *, requires_grad: bool = False) -> Any:
    """Return the array as a torch tensor of the same dtype, bfloat16 included, on the device that drupe uses."""
    torch = importlib.import_module("torch")
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    tensor = tensor.to(get_default_device())
    return tensor.requires_grad_() if requires_grad else tensor


def finish() -> None:
    """Wait for the work that drupe and torch have queued on the device in use."""
    if (device := get_default_device()) != "cpu":
        drupe.synchronize(device)
        if "torch" in sys.modules and not drupe.cuda_status()["emulated"]:
            sys.modules["torch"].cuda.synchronize()


def torch_module() -> Any:
    """Return torch, held to drupe's number of threads."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(drupe.num_threads())
    return torch


def torch_call(function: Callable[..., Any], *arrays: np.ndarray[Any, Any], compiled: bool = False) -> Prepared:
    """Time ``function(torch, *tensors)`` in inference mode.

    Args:
        function: what to call.
        arrays: the inputs.
        compiled: through ``torch.compile``.
    """
    torch = torch_module()
    tensors = [torch_tensor(a) for a in arrays]

    def body(*args: Any) -> Any:
        return function(torch, *args)

    run = torch.compile(body) if compiled else body

    def call() -> Any:
        with torch.inference_mode():
            return run(*tensors)

    return Prepared(call)


def torch_backward(
    function: Callable[..., Any], gradient: np.ndarray[Any, Any], *arrays: np.ndarray[Any, Any]
) -> Prepared:
    """Time the backward pass alone of ``function(torch, *tensors)``: the gradients of all float inputs."""
    torch = torch_module()
    tensors = [torch_tensor(a, requires_grad=a.dtype.kind != "i") for a in arrays]
    leaves = [t for t in tensors if t.requires_grad]
    y = function(torch, *tensors)
    dy = torch_tensor(gradient)
    return Prepared(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True))


def torch_training(
    function: Callable[..., Any], gradient: np.ndarray[Any, Any], *arrays: np.ndarray[Any, Any]
) -> Prepared:
    """Time ``function(torch, *tensors)`` and its backward pass together."""
    torch = torch_module()
    tensors = [torch_tensor(a, requires_grad=a.dtype.kind != "i") for a in arrays]
    leaves = [t for t in tensors if t.requires_grad]
    dy = torch_tensor(gradient)
    return Prepared(lambda: torch.autograd.grad(function(torch, *tensors), leaves, dy))


def drupe_step(loss_of: Callable[[], drupe.Tensor], optimizer: drupe.optim.Optimizer) -> Callable[[], drupe.Tensor]:
    """Time a step of training, from the loss to the update; the loss comes out."""

    def call() -> drupe.Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss

    return call


def torch_step(loss_of: Callable[[], Any], *optimizers: Any) -> Prepared:
    """Time the same in torch."""

    def call() -> Any:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    return Prepared(call)


def jax_module() -> Any:
    """Return jax, on the CPU, with float64 where it is asked for."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def jax_call(function: Callable[..., Any], *arrays: np.ndarray[Any, Any]) -> Prepared:
    """Time ``jit(function)(jax, *arrays)``, with jax arrays, until its results are there."""
    jax = jax_module()
    inputs = [jax.numpy.asarray(a) for a in arrays]
    run = jax.jit(partial(function, jax))
    return Prepared(lambda: jax.block_until_ready(run(*inputs)))


def _of_floats(jax: Any, function: Callable[..., Any], arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Any, list[Any]]:
    """Return ``function`` as one of its float inputs alone, and those."""
    floats = [i for i, a in enumerate(arrays) if a.dtype.kind != "i"]
    inputs = [jax.numpy.asarray(a) for a in arrays]

    def of_floats(*values: Any) -> Any:
        mixed = list(inputs)
        for i, value in zip(floats, values, strict=True):
            mixed[i] = value
        return function(jax, *mixed)

    return of_floats, [inputs[i] for i in floats]


def jax_backward(
    function: Callable[..., Any], gradient: np.ndarray[Any, Any], *arrays: np.ndarray[Any, Any]
) -> Prepared:
    """Time the compiled backward pass of ``function(jax, *arrays)``: the gradients of all float inputs."""
    jax = jax_module()
    of_floats, inputs = _of_floats(jax, function, arrays)
    _, pullback = jax.vjp(of_floats, *inputs)
    # What the forward pass saved is an argument: a constant would be folded at compile time.
    run = jax.jit(lambda pullback, dy: pullback(dy))
    dy = jax.numpy.asarray(gradient)
    return Prepared(lambda: jax.block_until_ready(run(pullback, dy)))


def jax_training(
    function: Callable[..., Any], gradient: np.ndarray[Any, Any], *arrays: np.ndarray[Any, Any]
) -> Prepared:
    """Time the compiled forward and backward pass of ``function(jax, *arrays)`` together."""
    jax = jax_module()
    of_floats, inputs = _of_floats(jax, function, arrays)
    run = jax.jit(lambda dy, *values: jax.vjp(of_floats, *values)[1](dy))
    dy = jax.numpy.asarray(gradient)
    return Prepared(lambda: jax.block_until_ready(run(dy, *inputs)))


def onnx_model(
    nodes: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, np.ndarray[Any, Any]],
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    output: Any = None,
    opset: int = 20,
) -> bytes:
    """Return a serialised ONNX model that ends in ``y``.

    Args:
        nodes: each with ``op``, ``inputs``, ``outputs`` and attributes.
        inputs: by name; their shapes are fixed.
        weights: constants by name, which the runtimes may pack beforehand.
        output: the dtype of ``y``; that of the first input by default.
        opset: the version of the operators.
    """
    onnx = importlib.import_module("onnx")
    helper, numpy_helper = onnx.helper, importlib.import_module("onnx.numpy_helper")
    made = []
    for node in nodes:
        attributes = {k: v for k, v in node.items() if k not in ("op", "inputs", "outputs")}
        made.append(helper.make_node(node["op"], list(node["inputs"]), list(node["outputs"]), **attributes))
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(output or next(iter(inputs.values())).dtype))
    graph = helper.make_graph(
        made,
        "case",
        described,
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


def dynamic_int8(model: bytes) -> bytes:
    """Return an ONNX model whose constant weights are int8, and that quantises what it multiplies them with."""
    onnx, quantization = importlib.import_module("onnx"), importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "int8.onnx"
        quantization.quantize_dynamic(onnx.load_model_from_string(model), path, per_channel=True)
        return path.read_bytes()


def onnxruntime_call(model: bytes, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Prepared:
    """Time an ONNX model in onnxruntime."""
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = drupe.num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # its threads would poll while others are timed
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = dict(inputs)
    return Prepared(lambda: session.run(None, feeds))


def openvino_call(model: bytes, inputs: Mapping[str, np.ndarray[Any, Any]], dtype: str = "float32") -> Prepared:
    """Time an ONNX model in openvino, which computes in ``dtype``: ``"float32"`` or ``"bfloat16"``."""
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": drupe.num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return Prepared(call)


def onnx_peers(
    nodes: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, np.ndarray[Any, Any]],
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    output: Any = None,
) -> dict[str, Callable[[], Prepared]]:
    """Return the builders of both runtimes of an ONNX model (see :func:`onnx_model`), for ``Setup.peers``."""
    return {
        "onnxruntime": lambda: onnxruntime_call(onnx_model(nodes, inputs, weights, output=output), inputs),
        "openvino": lambda: openvino_call(onnx_model(nodes, inputs, weights, output=output), inputs),
    }
