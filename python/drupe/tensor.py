"""Tensor: drupe's own array, and the way in and out for everybody else's.

Memory is shared wherever that is possible: a NumPy array or a DLPack object of a supported dtype, natively ordered
and aligned, becomes a tensor without a copy, and a tensor becomes either without one. What NumPy alone can express
(foreign byte order, misaligned data, strides of part of an element, bools whose bytes are not 0 or 1) is copied on
the way in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
import numpy.typing as npt

from drupe import _C
from drupe.autograd import Gradient, Node, SparseRows, run_backward
from drupe.operators import Operators

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool")
}
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

DtypeLike = npt.DTypeLike


@runtime_checkable
class SupportsDLPack(Protocol):
    """Anything with the two methods of the DLPack protocol."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Give a capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Give (device type, device index)."""


def dtype_name(dtype: DtypeLike) -> str:
    """Return the name of a dtype that drupe supports.

    Raises:
        TypeError: drupe has no such dtype.
    """
    if dtype == "bfloat16":
        return "bfloat16"
    name = _NAMES.get(np.dtype(dtype).newbyteorder("="))
    if name is None:
        raise TypeError(f"[tensor] dtype {np.dtype(dtype)} is not supported: expected one of {', '.join(_DTYPES)}")
    return name


_default_device = "cpu"


def get_default_device() -> str:
    """Return where arrays of the host, and new tensors, go to."""
    return _default_device


def set_default_device(device: str) -> None:
    """Make a device the one that arrays of the host, and new tensors, go to: ops on NumPy arrays then run there.

    What an op writes in place stays where it lies.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.

    Raises:
        ValueError: no device has that name.
        RuntimeError: there is no such device here, and why.
    """
    global _default_device
    _default_device = _C.empty((0,), "uint8", device).device


@contextmanager
def default_device(device: str) -> Iterator[None]:
    """Be :func:`set_default_device` for the length of a ``with`` block."""
    before = _default_device
    set_default_device(device)
    try:
        yield
    finally:
        set_default_device(before)


def to_raw(x: Any, op: str = "tensor") -> _C.Tensor:
    """Return the raw tensor of any array: of a tensor its own, of anything on the host on the default device.

    Memory is shared where possible (see the module's docstring). Errors as :func:`share`.
    """
    raw = share(x, op)
    if _default_device == "cpu" or raw.device != "cpu" or isinstance(x, Tensor):
        return raw
    return _C.to_device(raw, _default_device)


_NOT_SHARED = "is misaligned, in foreign byte order or a scalar: it cannot be changed in place"


def share(x: Any, op: str = "tensor", *, copy: bool = True) -> _C.Tensor:
    """Return the raw tensor of any array, where it lies.

    Raises:
        TypeError: ``x`` is no array, or its dtype is not supported.
        ValueError: it has more than 8 dimensions, lies on another device, or its DLPack capsule was used before.
        BufferError: its memory cannot be shared, and ``copy`` is False.
    """
    if isinstance(x, Tensor):
        return x.raw
    if isinstance(x, np.ndarray):
        return _from_numpy(x, op, copy)
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(x)
    if hasattr(x, "__cuda_array_interface__"):
        return _from_cuda_array(x)
    if hasattr(x, "__array_interface__"):
        if isinstance(x, np.generic) and not copy:
            raise BufferError(_NOT_SHARED)
        return _from_numpy(np.asarray(x), op, copy)
    raise TypeError(
        f"[{op}] expected an array (drupe.Tensor, numpy.ndarray or an object with __dlpack__), got {type(x).__name__}"
    )


def share_in_place(x: Any, op: str, name: str, index: int | None = None) -> _C.Tensor:
    """Return the raw tensor of an array that an op writes to where it lies: its argument ``name``, or an element of it.

    Raises:
        ValueError: its memory cannot be shared; other errors as :func:`share`.
    """
    try:
        return share(x, op, copy=False)
    except BufferError as error:
        place = name if index is None else f"{name}[{index}]"
        raise ValueError(f"[{op}] {place} {error}") from None


def _from_numpy(x: npt.NDArray[Any], op: str, copy: bool) -> _C.Tensor:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"[{op}] a masked array would lose its mask: call filled() first")
    name = _NAMES.get(x.dtype)
    if name == "bool":
        x = _proper_bools(x)
    raw = None if name is None else _C.from_numpy(x, name)
    if raw is None:
        name = dtype_name(x.dtype)
        if not copy:
            raise BufferError(_NOT_SHARED)
        raw = _C.from_numpy(np.array(x, dtype=_DTYPES[name], order="C"), name)
        assert raw is not None
    return raw


def _from_dlpack(x: Any) -> _C.Tensor:
    raw = _C.from_dlpack(x)
    if raw.dtype == "bool" and raw.device == "cpu":  # a look at a device's would wait for it
        return _from_numpy(_C.to_numpy(raw, _DTYPES["bool"]), "tensor", copy=True)
    return raw


def _from_cuda_array(x: Any) -> _C.Tensor:
    """Share the memory of a __cuda_array_interface__, version 3 or older."""
    interface = x.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    name = dtype_name(dtype)
    if interface.get("mask") is not None:
        raise TypeError("[__cuda_array_interface__] a masked array would lose its mask")
    if not dtype.isnative:
        raise TypeError(f"[__cuda_array_interface__] dtype {dtype.str} is of the other byte order")
    strides = interface.get("strides")
    if strides is not None:
        if any(stride % dtype.itemsize for stride in strides):
            raise ValueError(f"[__cuda_array_interface__] strides are {strides}, not of whole {dtype} elements")
        strides = tuple(stride // dtype.itemsize for stride in strides)
    pointer, readonly = interface["data"]
    stream = interface.get("stream")
    return _C.from_cuda_array(x, pointer, tuple(interface["shape"]), strides, name, readonly, stream)


def _proper_bools(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``x``, or a copy where a byte is neither 0 nor 1: NumPy takes it as true, C++ takes it as anything."""
    once = (..., *(slice(1) if stride == 0 else slice(None) for stride in x.strides))
    improper = x.view(np.uint8)[once].max(initial=0) > 1
    return np.asarray(x.view(np.uint8) != 0) if improper else x


class Tensor(Operators):
    """A strided array that remembers how it was made.

    ``Tensor(x)`` shares the memory of ``x`` where it can; :func:`drupe.tensor` copies. Arithmetic follows NumPy's
    broadcasting; a Python scalar takes the tensor's dtype.

    Args:
        x: any array.
        requires_grad: whether :meth:`backward` collects a gradient for it. Float dtypes only.
    """

    __slots__ = ("__weakref__", "_grad", "node", "output_index", "raw", "requires_grad", "version")

    def __init__(self, x: Any, *, requires_grad: bool = False) -> None:
        self.raw: _C.Tensor = x if isinstance(x, _C.Tensor) else to_raw(x)
        if requires_grad and "float" not in self.raw.dtype:
            raise TypeError(f"[tensor] only float tensors can require a gradient, this one is {self.raw.dtype}")
        self.requires_grad = requires_grad
        self.node: Node | None = None
        self.output_index = 0
        self.version = 0  # how often an op wrote to it in place
        self._grad: Gradient | None = None

    # ---- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents."""
        return self.raw.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements (not bytes) from one index to the next, per dimension."""
        return self.raw.strides

    @property
    def ndim(self) -> int:
        """The number of dimensions, 8 at most."""
        return self.raw.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.raw.numel

    @property
    def nbytes(self) -> int:
        """The number of bytes that the elements take."""
        return self.raw.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype; ``ml_dtypes.bfloat16`` for bfloat16."""
        return _DTYPES[self.raw.dtype]

    @property
    def device(self) -> str:
        """Where the memory lies: ``"cpu"`` or ``"cuda:<index>"``."""
        return self.raw.device

    def to(self, device: str, *, non_blocking: bool = False) -> Tensor:
        """Return the tensor on a device: itself if it is there already, else a copy, outside the tape.

        Args:
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.
            non_blocking: queue the copy on the current stream, and do not wait for it. From the host that is possible
                for page-locked memory alone (:func:`drupe.cuda.pin`), which must not be written before the copy is
                done; other memory has been read on return, as without it. To the host the result lies in page-locked
                memory, and has its values once the stream, or an event recorded there, was waited for.

        Raises:
            ValueError: no device has that name.
            RuntimeError: there is no such device here, and why.
        """
        moved = _C.to_device(self.raw, device, non_blocking)
        return self if moved.device == self.raw.device else Tensor(moved, requires_grad=self.requires_grad)

    @property
    def is_pinned(self) -> bool:
        """Whether it lies in page-locked memory of the host (:func:`drupe.cuda.pin`)."""
        return _C.is_pinned(self.raw)

    def record_stream(self, stream: Any) -> None:
        """Say that a :class:`drupe.cuda.Stream` other than the one it was made on uses it.

        Its memory is then not used again, after the tensor is dropped, before what that stream has queued by then is
        done. Nothing to say of memory that is not drupe's own.
        """
        _C.record_use(self.raw, stream.raw)

    # ---- gradients

    @property
    def grad(self) -> Tensor | SparseRows | None:
        """The gradient that :meth:`backward` has collected here so far."""
        if isinstance(self._grad, _C.Tensor):
            return Tensor(self._grad)
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is None or isinstance(value, SparseRows):
            self._grad = value
            return
        raw = to_raw(value)
        if raw.shape != self.shape or raw.dtype != self.raw.dtype:
            raise ValueError(
                f"[grad] expected a {self.raw.dtype} gradient of shape {self.shape}, got {raw.dtype} {raw.shape}"
            )
        self._grad = raw

    @property
    def raw_grad(self) -> Gradient | None:
        """The gradient as the optimizers take it."""
        return self._grad

    def set_raw_grad(self, grad: Gradient | None) -> None:
        """Replace the gradient, unchecked."""
        self._grad = grad

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add this tensor's gradient with respect to every leaf that requires one to the leaf's ``grad``.

        Args:
            gradient: d(something) / d(self), of this shape; 1 for a tensor of one element.
            retain_graph: keep what the forward pass saved, so that backward can run through it again.

        Raises:
            RuntimeError: nothing was recorded; or it was freed by an earlier backward; or an input was changed in
                place since.
            ValueError: ``gradient`` has another shape or dtype, or is missing for more than one element.
        """
        if not self.requires_grad:
            raise RuntimeError("[backward] the tensor was made without recording: no input requires a gradient")
        if gradient is None:
            if self.size != 1:
                raise ValueError(f"[backward] a tensor of shape {self.shape} needs an explicit gradient")
            raw = _C.full(self.shape, 1.0, self.raw.dtype, self.raw.device)
        else:
            raw = to_raw(gradient, "backward")
            if raw.shape != self.shape or raw.dtype != self.raw.dtype:
                raise ValueError(
                    f"[backward] expected a {self.raw.dtype} gradient of shape {self.shape}, "
                    f"got {raw.dtype} {raw.shape}"
                )
        run_backward(self, raw, retain_graph=retain_graph)

    def detach(self) -> Tensor:
        """Return a tensor that shares the memory and has no history."""
        return Tensor(self.raw)

    # ---- ways in

    def copy_from(self, source: Any, *, non_blocking: bool = False) -> Tensor:
        """Write the elements of another array into this tensor's memory, in place, and return self.

        Backward through an op that saw the old elements is an error from then on.

        Args:
            source: an array of this shape; dtypes are converted as by a cast.
            non_blocking: as of :meth:`to`, where the source lies on the host and this tensor on a device.

        Raises:
            ValueError: another shape, or this tensor is read-only.
            RuntimeError: this tensor is the result of an op on the tape, whose gradient would be lost.
        """
        if self.node is not None:
            raise RuntimeError(f"[copy_from] the tensor came from {self.node.name} on the tape: write into a detach()")
        raw = share(source, "copy_from")
        if raw.shape != self.shape:
            raise ValueError(f"[copy_from] the source is {raw.shape}: expected {self.shape}")
        if self.raw.device == "cpu":
            non_blocking = False  # the copy below reads what has arrived
        _C.copy_into(self.raw, _C.to_device(raw, self.raw.device, non_blocking))
        self.version += 1
        return self

    # ---- ways out

    def numpy(self) -> npt.NDArray[Any]:
        """Return a NumPy array that shares the memory; of a tensor on a device, a copy.

        Raises:
            RuntimeError: the tensor requires a gradient, which NumPy would lose: call ``detach()`` first.
        """
        if self.requires_grad:
            raise RuntimeError("[numpy] the tensor requires a gradient: call detach() first")
        return _C.to_numpy(self.raw, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"[__array__] {array.dtype} to {np.dtype(dtype)} needs a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if self.requires_grad:
            raise BufferError("[__dlpack__] the tensor requires a gradient: call detach() first")
        return self.raw.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.raw.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.raw.device == "cpu" or self.raw.dtype == "bfloat16":
            raise AttributeError(
                f"[__cuda_array_interface__] it cannot describe a {self.raw.dtype} tensor on {self.raw.device}"
            )
        if self.requires_grad:
            raise RuntimeError("[__cuda_array_interface__] the tensor requires a gradient: call detach() first")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": tuple(stride * self.dtype.itemsize for stride in self.strides),
            "data": (self.raw.data_ptr if self.size else 0, self.raw.readonly),
            "stream": _C.current_stream(self.raw.device),
            "version": 3,
        }

    def item(self) -> Any:
        """Return the only element as a Python number.

        Raises:
            ValueError: there is not exactly one.
        """
        if self.size != 1:
            raise ValueError(f"[item] a tensor of shape {self.shape} has {self.size} elements, not one")
        return self.detach().numpy().item()

    def tolist(self) -> Any:
        """Return the elements as nested lists of Python numbers."""
        return self.detach().numpy().tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let ``copy`` and ``pickle`` take the elements and ``requires_grad``, but no gradient."""
        if self.node is not None:
            raise TypeError(f"[tensor] the result of {self.node.name} on the tape has a history: detach() it first")
        return _restore, (type(self), self.detach().numpy(), self.requires_grad)

    def __repr__(self) -> str:
        body = np.array2string(np.asarray(self.detach().numpy()), separator=", ", prefix="Tensor(", threshold=64)
        history = f", from={self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({body}, dtype={self.raw.dtype}{history})"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("[len] a tensor of no dimensions has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())


def _restore(kind: type[Tensor], array: npt.NDArray[Any], requires_grad: bool) -> Tensor:
    restored = kind.__new__(kind)
    Tensor.__init__(restored, array, requires_grad=requires_grad)
    return restored


def tensor(x: Any, dtype: DtypeLike | None = None, *, requires_grad: bool = False) -> Tensor:
    """Return a new tensor with a copy of ``x``.

    Args:
        x: an array, a number, or nested sequences of numbers; Python floats become float32, integers int64.
        dtype: the dtype of the copy; that of ``x`` by default.
        requires_grad: whether backward collects a gradient for it.
    """
    is_array = isinstance(x, Tensor | np.ndarray | np.generic | SupportsDLPack)
    if not is_array and not hasattr(x, "__array_interface__") and not hasattr(x, "__cuda_array_interface__"):
        x = np.asarray(x)
        if dtype is None and x.dtype == np.float64:
            x = x.astype(np.float32)
    raw = to_raw(x)
    if dtype is not None and dtype_name(dtype) != raw.dtype:
        return Tensor(_C.contiguous(_C.cast(raw, dtype_name(dtype))), requires_grad=requires_grad)
    return Tensor(_C.clone(raw), requires_grad=requires_grad)


def as_tensor(x: Any, dtype: DtypeLike | None = None) -> Tensor:
    """Return ``x`` as a tensor that shares its memory where possible; itself if it is one of that dtype."""
    if isinstance(x, Tensor) and (dtype is None or dtype_name(dtype) == x.raw.dtype):
        return x
    raw = to_raw(x)
    return Tensor(raw if dtype is None else _C.cast(raw, dtype_name(dtype)))


def from_dlpack(x: Any) -> Tensor:
    """Return a tensor that shares the memory of a DLPack object or capsule. A read-only source stays read-only.

    Raises:
        TypeError: neither object nor capsule, or a dtype that drupe has not.
        ValueError: a capsule that was consumed before, or another device.
        BufferError: a DLPack version other than 0.x and 1.x.
    """
    return Tensor(_from_dlpack(x))


def empty(shape: Sequence[int], dtype: DtypeLike = "float32", *, device: str | None = None) -> Tensor:
    """Return an uninitialised tensor, on the default device unless one is named.

    Raises:
        ValueError: a negative extent, or more bytes than 63 bits can count.
        MemoryError: more than the system has.
    """
    return Tensor(_C.empty(tuple(shape), dtype_name(dtype), device or _default_device))


def zeros(
    shape: Sequence[int], dtype: DtypeLike = "float32", *, requires_grad: bool = False, device: str | None = None
) -> Tensor:
    """Return a tensor of zeros; errors as :func:`empty`."""
    raw = _C.zeros(tuple(shape), dtype_name(dtype), device or _default_device)
    return Tensor(raw, requires_grad=requires_grad)


def full(
    shape: Sequence[int],
    value: float,
    dtype: DtypeLike = "float32",
    *,
    requires_grad: bool = False,
    device: str | None = None,
) -> Tensor:
    """Return a tensor of one value; errors as :func:`empty`."""
    raw = _C.full(tuple(shape), value, dtype_name(dtype), device or _default_device)
    return Tensor(raw, requires_grad=requires_grad)


def ones(
    shape: Sequence[int], dtype: DtypeLike = "float32", *, requires_grad: bool = False, device: str | None = None
) -> Tensor:
    """Return a tensor of ones; errors as :func:`empty`."""
    return full(shape, 1, dtype, requires_grad=requires_grad, device=device)
