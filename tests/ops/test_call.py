"""What every op does around its kernel: the kinds of array it takes and gives back."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops


class OnlyDLPack:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OldDLPack(OnlyDLPack):
    """A producer from before DLPack 1.0: it knows no max_version."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__(stream=stream)


class WithNamespace(OnlyDLPack):
    """An array of a library that follows the array API standard."""

    def __array_namespace__(self):
        return WithNamespace

    @staticmethod
    def from_dlpack(x):
        return WithNamespace(np.from_dlpack(x))


class OnlyInterface:
    """An array that speaks NumPy's array interface and nothing else."""

    def __init__(self, array):
        self.array = array

    @property
    def __array_interface__(self):
        return self.array.__array_interface__


@pytest.fixture
def x(rng):
    return rng.standard_normal((3, 4)).astype(np.float32)


def test_numpy_gives_numpy(x):
    y = ops.relu(x)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, np.maximum(x, 0))


@pytest.mark.parametrize("kind", [OnlyDLPack, OldDLPack, OnlyInterface])
def test_what_has_no_way_back_gives_a_tensor(x, kind):
    y = ops.relu(kind(x))
    assert isinstance(y, drupe.Tensor)
    np.testing.assert_array_equal(y.numpy(), np.maximum(x, 0))


def test_an_array_namespace_takes_the_result_back(x):
    y = ops.relu(WithNamespace(x))
    assert isinstance(y, WithNamespace)
    np.testing.assert_array_equal(y.array, np.maximum(x, 0))


def test_a_tensor_among_arrays_gives_a_tensor(x):
    y = ops.gemm(x, drupe.tensor(x), transpose_b=True)
    assert isinstance(y, drupe.Tensor)


def test_numpy_arrays_beside_a_tensor_take_no_gradient(x):
    weight = drupe.tensor(x, requires_grad=True)
    y = ops.gemm(x, weight, transpose_b=True)
    y.backward(np.ones((3, 3), np.float32))
    np.testing.assert_allclose(weight.grad.numpy(), np.ones((3, 3)) @ x, rtol=1e-5)


def test_torch_gives_torch_without_a_copy(x):
    torch = pytest.importorskip("torch")
    source = torch.from_numpy(x)
    assert drupe.as_tensor(source).raw.data_ptr == source.data_ptr()
    y = ops.gemm(source, source, transpose_b=True)
    assert isinstance(y, torch.Tensor)
    torch.testing.assert_close(y, source @ source.T)
    half = source.to(torch.bfloat16)
    assert ops.relu(half).dtype == torch.bfloat16


def test_torch_tensors_that_require_gradients_are_refused(x):
    torch = pytest.importorskip("torch")
    source = torch.from_numpy(x).requires_grad_()
    with pytest.raises((BufferError, RuntimeError), match=r"(?i)grad"):
        ops.relu(source)


def test_jax_gives_jax(x):
    jax = pytest.importorskip("jax")
    y = ops.relu(jax.numpy.asarray(x))
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(np.asarray(y), np.maximum(x, 0))


@pytest.mark.parametrize("bad", [[1.0], (1.0,), "text", None, 1.0, object()], ids=repr)
def test_what_is_no_array_is_named(bad):
    with pytest.raises(TypeError, match=r"\[relu\] expected an array .* got "):
        ops.relu(bad)


def test_results_do_not_alias_inputs(x):
    before = x.copy()
    y = ops.relu(x)
    y[...] = 7
    np.testing.assert_array_equal(x, before)
    with drupe.no_grad():
        z = ops.gemm(x, x, transpose_b=True)
    z[...] = 7
    np.testing.assert_array_equal(x, before)
