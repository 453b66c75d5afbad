from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest

import drupe
from drupe.bench import peers
from drupe.bench.harness import Prepared, as_arrays


def test_installed_and_versions():
    assert peers.installed("numpy")
    assert not peers.installed("no_such_package")
    assert peers.versions(["numpy", "no_such_package"]) == {"numpy": np.__version__}


def test_pinned_holds_processors_and_threads_and_lets_go_even_after_an_error():
    before = os.sched_getaffinity(0), drupe.num_threads()

    def fail_inside():
        with peers.pinned(1):
            assert len(os.sched_getaffinity(0)) == 1
            assert drupe.num_threads() == 1
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert (os.sched_getaffinity(0), drupe.num_threads()) == before


def test_with_view_replaces_the_view_and_builds_late():
    built = []

    def build():
        built.append(1)
        return Prepared(lambda: [1, 2, 3])

    (viewed,) = peers.with_view({"numpy": build}, lambda y: y[::2]).values()
    assert not built
    prepared = viewed()
    assert prepared.view(prepared.call()) == [1, 3]


def test_drupe_backward_gives_the_same_gradients_every_time():
    x = drupe.tensor(np.array([-1.0, 2.0]), requires_grad=True)
    y = drupe.ops.relu(x)
    call = peers.drupe_backward(lambda: y, np.array([3.0, 4.0]), x)
    for _ in range(2):
        (gradient,) = as_arrays(call())
        assert gradient.tolist() == [0, 4]


@pytest.mark.parametrize("name", ["float32", "float64", "int64", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_torch_tensors_have_the_arrays_dtype_shape_and_values(name, shape):
    torch = pytest.importorskip("torch")
    array = np.arange(6)[: int(np.prod(shape))].reshape(shape)
    array = array.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    tensor = peers.torch_tensor(array)
    assert tensor.dtype == getattr(torch, name)
    assert tuple(tensor.shape) == shape
    np.testing.assert_array_equal(as_arrays(tensor)[0].astype(float), array.astype(float))
    tensor += 1
    assert float(array.reshape(-1)[0]) == 0


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_forward_backward_and_both_together(package):
    pytest.importorskip(package)
    x, w, dy = np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([[10.0]])

    def product(library, x, w):
        return x @ w

    call, back, both = (getattr(peers, f"{package}_{kind}") for kind in ("call", "backward", "training"))
    assert as_arrays(call(product, x, w).call())[0].tolist() == [[11]]
    for prepared in (back(product, dy, x, w), both(product, dy, x, w)):
        dx, dw = as_arrays(prepared.call())
        assert dx.tolist() == [[30, 40]]
        assert dw.tolist() == [[10], [20]]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_onnx_graphs_run(name):
    pytest.importorskip("onnx")
    pytest.importorskip(name)
    x, w = np.array([[1, 2]], np.float32), np.array([[3], [4]], np.float32)
    build = peers.onnx_peers([{"op": "MatMul", "inputs": "xw", "outputs": "y"}], {"x": x}, {"w": w})[name]
    assert as_arrays(build().call())[0].tolist() == [[11]]
