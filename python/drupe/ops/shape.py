"""Views, joins and conversions. All are differentiable.

What can be a view shares the memory of ``x``, whatever kind of array that is; a writer sees the change in both.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

from drupe import _C
from drupe.ops._call import A, Array, Call
from drupe.ops._shape import sum_to_shape
from drupe.tensor import DtypeLike, dtype_name

Index = int | slice | None | EllipsisType


def reshape(x: A, shape: Sequence[int]) -> A:
    """The same elements in C order under another shape: a view where the strides allow it, a copy otherwise.

    Args:
        x: any shape and dtype.
        shape: the new extents; one may be -1, and follows from the others.

    Raises:
        ValueError: another number of elements, or more than one -1.
    """
    call = Call("reshape", x)
    (raw,) = call.raw

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.reshape(dy, raw.shape),)

    return call.output(_C.reshape(raw, tuple(shape)), backward)


def flatten(x: A, start: int = 0, stop: int = -1) -> A:
    """Merge the dimensions from ``start`` to ``stop`` (included) into one; errors as :func:`reshape`.

    Raises:
        IndexError: a dimension out of range, or ``stop`` before ``start``.
    """
    shape = Call("flatten", x).raw[0].shape
    ndim = len(shape)
    if ndim == 0:
        return reshape(x, (1,))
    if not (-ndim <= start < ndim and -ndim <= stop < ndim and start % ndim <= stop % ndim):
        raise IndexError(f"[flatten] dimensions {start} to {stop} of shape {shape}")
    start, stop = start % ndim, stop % ndim
    count = 1
    for extent in shape[start : stop + 1]:
        count *= extent
    return reshape(x, (*shape[:start], count, *shape[stop + 1 :]))


def permute(x: A, axes: Sequence[int]) -> A:
    """View with the dimensions in another order: dimension ``i`` is dimension ``axes[i]`` of ``x``.

    Raises:
        IndexError: an axis out of range.
        ValueError: not each axis once.
    """
    call = Call("permute", x)
    (raw,) = call.raw
    y = raw.permute(tuple(axes))
    back = [0] * len(raw.shape)
    for i, axis in enumerate(axes):
        back[axis] = i

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (dy.permute(tuple(back)),)

    return call.output(y, backward)


def transpose(x: A, axis0: int = -2, axis1: int = -1) -> A:
    """View with two dimensions exchanged, by default the last two.

    Raises:
        IndexError: an axis out of range.
    """
    call = Call("transpose", x)
    y = call.raw[0].transpose(axis0, axis1)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (dy.transpose(axis0, axis1),)

    return call.output(y, backward)


def squeeze(x: A, axis: int | Sequence[int] | None = None) -> A:
    """View without some dimensions of extent 1, by default all of them.

    Raises:
        IndexError: an axis out of range.
        ValueError: an axis whose extent is not 1, or that is named twice.
    """
    call = Call("squeeze", x)
    (raw,) = call.raw
    ndim = len(raw.shape)
    if axis is None:
        axes = [i for i, extent in enumerate(raw.shape) if extent == 1]
    else:
        axes = [axis] if isinstance(axis, int) else list(axis)
        if any(not -ndim <= a < ndim for a in axes):
            raise IndexError(f"[squeeze] axes {axes} of shape {raw.shape}")
        axes = [a % ndim for a in axes]
        if len(set(axes)) < len(axes):
            raise ValueError(f"[squeeze] axes {axes}: one is named twice")
    y = raw
    for a in sorted(axes, reverse=True):
        y = y.squeeze(a)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.reshape(dy, raw.shape),)

    return call.output(y, backward)


def unsqueeze(x: A, axis: int) -> A:
    """View with a dimension of extent 1 put in at ``axis``, counted in the result.

    Raises:
        IndexError: an axis out of range.
        ValueError: more than 8 dimensions.
    """
    call = Call("unsqueeze", x)
    y = call.raw[0].unsqueeze(axis)
    at = axis % len(y.shape)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (dy.squeeze(at),)

    return call.output(y, backward)


def broadcast_to(x: A, shape: Sequence[int]) -> A:
    """View under a larger shape, as NumPy broadcasts.

    Raises:
        ValueError: ``x`` does not broadcast to ``shape``.
    """
    call = Call("broadcast_to", x)
    (raw,) = call.raw

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (sum_to_shape(dy, raw.shape),)

    return call.output(raw.broadcast_to(tuple(shape)), backward)


def _as_now(item: Any) -> Any:
    """Return an index that no longer depends on arrays that may change."""
    if isinstance(item, slice):
        return slice(
            *(None if bound is None else operator.index(bound) for bound in (item.start, item.stop, item.step))
        )
    return operator.index(item) if hasattr(item, "__index__") else item


def getitem(x: A, index: Index | tuple[Index, ...]) -> A:
    """View of a part, by basic indexing.

    Args:
        x: any shape and dtype.
        index: integers, slices (negative steps too), None for a new dimension, and one Ellipsis.

    Raises:
        IndexError: an integer out of range, or too many of them.
        TypeError: an index of another kind: arrays and lists do not index.
    """
    call = Call("getitem", x)
    (raw,) = call.raw
    y = _C.getitem(raw, index)
    if not call.recorded:
        return call.output(y)
    items: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    key = tuple(_as_now(item) for item in items)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        dx = _C.zeros(raw.shape, raw.dtype, raw.device)
        _C.copy_into(_C.getitem(dx, key), dy)
        return (dx,)

    return call.output(y, backward)


def concat(parts: Sequence[Array], axis: int = 0) -> Any:
    """Join arrays along an existing axis.

    Args:
        parts: at least one; one dtype, and one shape but for that axis.
        axis: where to join.

    Raises:
        IndexError: an axis out of range.
        TypeError: several dtypes.
        ValueError: shapes that do not fit, or nothing to join.
    """
    if len(parts) == 0:
        raise ValueError("[concat] no tensors to join")
    call = Call("concat", *parts)
    y = _C.concat(list(call.raw), axis)
    shapes = [raw.shape for raw in call.raw]

    def backward(dy: _C.Tensor) -> list[_C.Tensor]:
        grads, begin = [], 0
        for shape in shapes:
            grads.append(dy.slice(axis, begin, begin + shape[axis], 1))
            begin += shape[axis]
        return grads

    return call.output(y, backward)


def stack(parts: Sequence[Array], axis: int = 0) -> Any:
    """Join arrays of one shape along a new axis; errors as :func:`concat`."""
    if len(parts) == 0:
        raise ValueError("[stack] no tensors to join")
    call = Call("stack", *parts)
    first = call.raw[0]
    for raw in call.raw:
        if raw.shape != first.shape:
            raise ValueError(f"[stack] shapes {first.shape} and {raw.shape} differ")
    y = _C.concat([raw.unsqueeze(axis) for raw in call.raw], axis)
    count = len(parts)

    def backward(dy: _C.Tensor) -> list[_C.Tensor]:
        return [dy.select(axis, i) for i in range(count)]

    return call.output(y, backward)


def split(x: A, sizes: int | Sequence[int], axis: int = 0) -> tuple[A, ...]:
    """Cut into views along an axis.

    Args:
        x: at least one dimension.
        sizes: the number of equal parts, or the extents of the parts, which add up to that of the axis.
        axis: where to cut.

    Raises:
        IndexError: an axis out of range.
        ValueError: extents that do not add up, or are negative.
    """
    call = Call("split", x)
    (raw,) = call.raw
    if not -len(raw.shape) <= axis < len(raw.shape):
        raise IndexError(f"[split] axis {axis} of shape {raw.shape}")
    extent = raw.shape[axis]
    if isinstance(sizes, int):
        if sizes < 1 or extent % sizes:
            raise ValueError(f"[split] axis {axis} of shape {raw.shape} has no {sizes} equal parts")
        sizes = [extent // sizes] * sizes
    if sum(sizes) != extent or any(size < 0 for size in sizes):
        raise ValueError(f"[split] sizes {list(sizes)} do not make axis {axis} of shape {raw.shape}")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    spans = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def backward(*dys: _C.Tensor | None) -> tuple[_C.Tensor]:
        present = [dy for dy in dys if dy is not None]
        if len(present) == len(dys):
            return (_C.concat(present, axis),)
        dx = _C.zeros(raw.shape, raw.dtype, raw.device)
        for dy, (begin, end) in zip(dys, spans, strict=True):
            if dy is not None:
                _C.copy_into(dx.slice(axis, begin, end, 1), dy)
        return (dx,)

    return call.outputs(tuple(raw.slice(axis, begin, end, 1) for begin, end in spans), backward)


def pad(x: A, widths: Sequence[tuple[int, int]], value: float = 0) -> A:
    """Surround with a constant.

    Args:
        x: any shape and dtype.
        widths: for each dimension the elements before and after.
        value: a number that the dtype can hold.

    Raises:
        TypeError: a float with an integer dtype.
        ValueError: a negative width, or another number of them than dimensions.
    """
    call = Call("pad", x)
    (raw,) = call.raw
    before, after = tuple(w[0] for w in widths), tuple(w[1] for w in widths)
    y = _C.pad(raw, before, after, value)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        for i, extent in enumerate(raw.shape):
            dy = dy.slice(i, before[i], before[i] + extent, 1)
        return (dy,)

    return call.output(y, backward)


def cast(x: A, dtype: DtypeLike) -> A:
    """Convert the elements; ``x`` itself where it has the dtype already.

    Float to integer truncates towards zero and saturates, NaN gives 0; anything nonzero is True.

    Raises:
        TypeError: a dtype that drupe has not.
    """
    call = Call("cast", x)
    (raw,) = call.raw

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.cast(dy, raw.dtype),)

    return call.output(_C.cast(raw, dtype_name(dtype)), backward)


def contiguous(x: A) -> A:
    """The elements in C order: ``x`` itself where it is so already, a copy otherwise."""
    call = Call("contiguous", x)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (dy,)

    return call.output(_C.contiguous(call.raw[0]), backward)
