"""What makes expressions of tensors: operators and methods, each one call of an op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

import drupe

TensorT = TypeVar("TensorT", bound="Operators")
Axis = int | Sequence[int] | None


def _combines(x: Any) -> bool:
    """Whether arithmetic with x is ours: arrays and scalars. Anything else may have a reflected method."""
    return isinstance(x, _OURS) or hasattr(x, "__dlpack__")


class Operators:
    """The arithmetic of :class:`drupe.Tensor`."""

    __slots__ = ()

    # NumPy's operators leave an expression with a tensor to the reflected methods below.
    __array_ufunc__ = None

    # Comparisons are by element, identity decides about sets and dictionaries.
    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Any:
        return drupe.ops.add(self, other) if _combines(other) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return drupe.ops.add(other, self) if _combines(other) else NotImplemented

    def __sub__(self, other: Any) -> Any:
        return drupe.ops.sub(self, other) if _combines(other) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return drupe.ops.sub(other, self) if _combines(other) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        return drupe.ops.mul(self, other) if _combines(other) else NotImplemented

    def __rmul__(self, other: Any) -> Any:
        return drupe.ops.mul(other, self) if _combines(other) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        return drupe.ops.div(self, other) if _combines(other) else NotImplemented

    def __rtruediv__(self, other: Any) -> Any:
        return drupe.ops.div(other, self) if _combines(other) else NotImplemented

    def __pow__(self, other: Any) -> Any:
        return drupe.ops.pow(self, other) if _combines(other) else NotImplemented

    def __rpow__(self, other: Any) -> Any:
        return drupe.ops.pow(other, self) if _combines(other) else NotImplemented

    def __matmul__(self, other: Any) -> Any:
        return drupe.ops.matmul(self, other) if _combines(other) else NotImplemented

    def __rmatmul__(self, other: Any) -> Any:
        return drupe.ops.matmul(other, self) if _combines(other) else NotImplemented

    def __neg__(self: TensorT) -> TensorT:
        return drupe.ops.neg(self)

    def __pos__(self: TensorT) -> TensorT:
        return self

    def __abs__(self: TensorT) -> TensorT:
        return drupe.ops.abs(self)

    def __eq__(self, other: object) -> Any:
        return drupe.ops.eq(self, other) if _combines(other) else NotImplemented

    def __ne__(self, other: object) -> Any:
        return drupe.ops.ne(self, other) if _combines(other) else NotImplemented

    def __lt__(self, other: Any) -> Any:
        return drupe.ops.lt(self, other) if _combines(other) else NotImplemented

    def __le__(self, other: Any) -> Any:
        return drupe.ops.le(self, other) if _combines(other) else NotImplemented

    def __gt__(self, other: Any) -> Any:
        return drupe.ops.gt(self, other) if _combines(other) else NotImplemented

    def __ge__(self, other: Any) -> Any:
        return drupe.ops.ge(self, other) if _combines(other) else NotImplemented

    def __getitem__(self: TensorT, index: Any) -> TensorT:
        return drupe.ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "[setitem] a tensor's elements cannot be assigned, as ops may have recorded them: build it with "
            "ops.where, ops.concat or ops.pad, or write to the NumPy array that shares its memory"
        )

    def __iter__(self: TensorT) -> Iterator[TensorT]:
        return (self[i] for i in range(len(self)))  # type: ignore[arg-type]

    def __contains__(self, value: Any) -> bool:
        return bool(drupe.ops.any(drupe.ops.eq(self, value)))

    # ---- reductions

    def sum(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.sum`."""
        return drupe.ops.sum(self, axis=axis, keepdims=keepdims)

    def mean(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.mean`."""
        return drupe.ops.mean(self, axis=axis, keepdims=keepdims)

    def var(self: TensorT, axis: Axis = None, *, ddof: int = 0, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.var`."""
        return drupe.ops.var(self, axis=axis, ddof=ddof, keepdims=keepdims)

    def prod(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.prod`."""
        return drupe.ops.prod(self, axis=axis, keepdims=keepdims)

    def max(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.max`."""
        return drupe.ops.max(self, axis=axis, keepdims=keepdims)

    def min(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.min`."""
        return drupe.ops.min(self, axis=axis, keepdims=keepdims)

    def any(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.any`."""
        return drupe.ops.any(self, axis=axis, keepdims=keepdims)

    def all(self: TensorT, axis: Axis = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.all`."""
        return drupe.ops.all(self, axis=axis, keepdims=keepdims)

    def argmax(self: TensorT, axis: int | None = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.argmax`."""
        return drupe.ops.argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self: TensorT, axis: int | None = None, *, keepdims: bool = False) -> TensorT:
        """See :func:`drupe.ops.argmin`."""
        return drupe.ops.argmin(self, axis=axis, keepdims=keepdims)

    # ---- shapes and dtypes

    @property
    def T(self: TensorT) -> TensorT:  # noqa: N802
        """The dimensions in reverse order, as NumPy's."""
        return drupe.ops.permute(self, tuple(reversed(range(self.ndim))))  # type: ignore[attr-defined]

    def reshape(self: TensorT, *shape: Any) -> TensorT:
        """See :func:`drupe.ops.reshape`; extents one by one, or as a sequence."""
        return drupe.ops.reshape(self, _sequence(shape))

    def permute(self: TensorT, *axes: Any) -> TensorT:
        """See :func:`drupe.ops.permute`; axes one by one, or as a sequence."""
        return drupe.ops.permute(self, _sequence(axes))

    def transpose(self: TensorT, axis0: int = -2, axis1: int = -1) -> TensorT:
        """See :func:`drupe.ops.transpose`."""
        return drupe.ops.transpose(self, axis0, axis1)

    def flatten(self: TensorT, start: int = 0, stop: int = -1) -> TensorT:
        """See :func:`drupe.ops.flatten`."""
        return drupe.ops.flatten(self, start, stop)

    def squeeze(self: TensorT, axis: Axis = None) -> TensorT:
        """See :func:`drupe.ops.squeeze`."""
        return drupe.ops.squeeze(self, axis)

    def unsqueeze(self: TensorT, axis: int) -> TensorT:
        """See :func:`drupe.ops.unsqueeze`."""
        return drupe.ops.unsqueeze(self, axis)

    def broadcast_to(self: TensorT, *shape: Any) -> TensorT:
        """See :func:`drupe.ops.broadcast_to`; extents one by one, or as a sequence."""
        return drupe.ops.broadcast_to(self, _sequence(shape))

    def astype(self: TensorT, dtype: Any) -> TensorT:
        """See :func:`drupe.ops.cast`."""
        return drupe.ops.cast(self, dtype)

    def contiguous(self: TensorT) -> TensorT:
        """See :func:`drupe.ops.contiguous`."""
        return drupe.ops.contiguous(self)

    # ---- functions

    def exp(self: TensorT) -> TensorT:
        """See :func:`drupe.ops.exp`."""
        return drupe.ops.exp(self)

    def log(self: TensorT) -> TensorT:
        """See :func:`drupe.ops.log`."""
        return drupe.ops.log(self)

    def sqrt(self: TensorT) -> TensorT:
        """See :func:`drupe.ops.sqrt`."""
        return drupe.ops.sqrt(self)

    def abs(self: TensorT) -> TensorT:
        """See :func:`drupe.ops.abs`."""
        return drupe.ops.abs(self)

    def clamp(self: TensorT, low: float | None = None, high: float | None = None) -> TensorT:
        """See :func:`drupe.ops.clamp`."""
        return drupe.ops.clamp(self, low, high)


def _sequence(items: tuple[Any, ...]) -> Sequence[int]:
    """Return f((2, 3))'s argument, or f(2, 3)'s arguments."""
    if len(items) == 1 and not hasattr(items[0], "__index__"):
        return tuple(items[0])
    return items


_OURS = (Operators, bool, int, float, np.ndarray, np.generic)
