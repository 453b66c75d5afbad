"""Reductions over any set of axes.

Sums are taken in blocks of a fixed size that are then added pairwise: the error grows with the logarithm of the number
of terms, and the bits do not depend on the number of threads. float16 and bfloat16 accumulate in float32.

Reference:
    N. Higham, "The accuracy of floating point summation", SIAM J. Sci. Comput. 14(4), 1993, section 3.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from drupe import _C
from drupe.ops._call import A, Call

Axis = int | Sequence[int] | None


def _axes(name: str, axis: Axis) -> tuple[int, ...]:
    """Return the axes as a tuple, empty for all of them."""
    if axis is None:
        return ()
    if isinstance(axis, int):
        return (axis,)
    if len(axis) == 0:
        raise ValueError(f"[{name}] axis is empty: name at least one, or None for all")
    return tuple(axis)


def _spread(small: _C.Tensor, x: _C.Tensor, axes: tuple[int, ...]) -> _C.Tensor:
    """View what a reduction of ``x`` gave (its gradient, say) as broadcast over ``x``."""
    reduced = {axis % len(x.shape) for axis in axes} if axes else set(range(len(x.shape)))
    kept = tuple(1 if i in reduced else extent for i, extent in enumerate(x.shape))
    return _C.reshape(small, kept).broadcast_to(x.shape)


def sum(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Sum of elements; 0 over none.

    Args:
        x: any shape and dtype.
        axis: one axis or several, negative ones counted from the end; all by default.
        keepdims: keep the reduced axes, with extent 1.

    Returns:
        The dtype of ``x``; int64 for integers and bool, which wraps around.

    Raises:
        IndexError: an axis out of range.
        ValueError: an axis named twice, or an empty sequence of them.
    """
    call = Call("sum", x)
    (raw,) = call.raw
    axes = _axes("sum", axis)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_spread(dy, raw, axes),)

    return call.output(_C.reduce("sum", raw, axes, keepdims), backward)


def mean(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Arithmetic mean; NaN over no elements. Arguments and errors as :func:`sum`.

    Raises:
        TypeError: not a float dtype.
    """
    call = Call("mean", x)
    (raw,) = call.raw
    axes = _axes("mean", axis)
    y = _C.reduce("mean", raw, axes, keepdims)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        count = _C.scalar("mean", raw.numel / builtins.max(y.numel, 1), dy.dtype, dy.device)
        return (_spread(_C.binary("div", dy, count), raw, axes),)

    return call.output(y, backward)


def var(x: A, *, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> A:
    """Variance, ``sum((x - mean)^2) / (n - ddof)``, in two passes. Arguments and errors as :func:`sum`.

    Args:
        x: a float dtype.
        axis: as for :func:`sum`.
        ddof: 0 for the variance of the elements, 1 for the unbiased estimate of a population's. With n <= ddof the
            result is NaN or infinite.
        keepdims: as for :func:`sum`.

    Raises:
        TypeError: not a float dtype.
        ValueError: a negative ``ddof``.
    """
    call = Call("var", x)
    (raw,) = call.raw
    axes = _axes("var", axis)
    y = _C.var(raw, axes, ddof, keepdims)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        free = raw.numel / builtins.max(y.numel, 1) - ddof
        centred = _C.binary("sub", raw, _C.reduce("mean", raw, axes, True))
        scaled = _C.binary("mul", dy, _C.scalar("var", 2 / free if free > 0 else float("nan"), dy.dtype, dy.device))
        return (_C.binary("mul", centred, _spread(scaled, raw, axes)),)

    return call.output(y, backward)


def prod(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Product of elements; 1 over none. Arguments, returns and errors as :func:`sum`."""
    call = Call("prod", x)
    (raw,) = call.raw
    axes = _axes("prod", axis)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        # The product of the others: p / x where there is no zero; with one zero, p of the others at its place alone.
        zero, one = (_C.scalar("prod", value, raw.dtype, raw.device) for value in (0, 1))
        is_zero = _C.binary("eq", raw, zero)
        zeros = _C.cast(_C.reduce("sum", is_zero, axes, True), raw.dtype)
        nonzero = _C.where(is_zero, one, raw)
        others = _C.binary("div", _C.reduce("prod", nonzero, axes, True), nonzero)
        left = _C.binary("sub", zeros, _C.cast(is_zero, raw.dtype))  # zeros among the others
        slope = _C.where(_C.binary("eq", left, zero), others, zero)
        return (_C.binary("mul", slope, _spread(dy, raw, axes)),)

    return call.output(_C.reduce("prod", raw, axes, keepdims), backward)


def _extremum(name: str, x: A, axis: Axis, keepdims: bool) -> A:
    call = Call(name, x)
    (raw,) = call.raw
    axes = _axes(name, axis)
    y = _C.reduce(name, raw, axes, keepdims)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        chosen = _C.binary("eq", raw, _spread(y, raw, axes))
        count = _C.cast(_C.reduce("sum", chosen, axes, keepdims), dy.dtype)
        share = _spread(_C.binary("div", dy, count), raw, axes)
        return (_C.where(chosen, share, _C.scalar(name, 0, dy.dtype, dy.device)),)

    return call.output(y, backward)


def max(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Largest element, NaN where any is NaN; equal ones share the gradient evenly, and a NaN gets none.

    Arguments as :func:`sum`; the dtype is that of ``x``.

    Raises:
        IndexError: an axis out of range.
        ValueError: no elements to choose from; an axis named twice.
    """
    return _extremum("max", x, axis, keepdims)


def min(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Smallest element; else as :func:`max`."""
    return _extremum("min", x, axis, keepdims)


def any(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Whether any element is nonzero (NaN is), as bool; false over none. Arguments and errors as :func:`sum`."""
    call = Call("any", x)
    return call.output(_C.reduce("any", call.raw[0], _axes("any", axis), keepdims))


def all(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """Whether all elements are nonzero, as bool; true over none. Arguments and errors as :func:`sum`."""
    call = Call("all", x)
    return call.output(_C.reduce("all", call.raw[0], _axes("all", axis), keepdims))


def logsumexp(x: A, *, axis: Axis = None, keepdims: bool = False) -> A:
    """``log(sum(e^x))``, shifted by the maximum so that nothing overflows; -infinity over no elements.

    Arguments and errors as :func:`sum`.

    Raises:
        TypeError: not a float dtype.
    """
    call = Call("logsumexp", x)
    (raw,) = call.raw
    axes = _axes("logsumexp", axis)
    y = _C.reduce("logsumexp", raw, axes, keepdims)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        share = _C.unary("exp", _C.binary("sub", raw, _spread(y, raw, axes)))
        return (_C.binary("mul", share, _spread(dy, raw, axes)),)

    return call.output(y, backward)


def _arg_extremum(name: str, x: A, axis: int | None, keepdims: bool) -> A:
    call = Call(name, x)
    (raw,) = call.raw
    if axis is not None:
        return call.output(_C.arg_extremum(name, raw, axis, keepdims))
    y = _C.arg_extremum(name, _C.reshape(raw, (raw.numel,)), 0, False)
    return call.output(_C.reshape(y, (1,) * len(raw.shape)) if keepdims else y)


def argmax(x: A, *, axis: int | None = None, keepdims: bool = False) -> A:
    """Index of the largest element, the first of equals; of the first NaN where there is one.

    Args:
        x: any shape and dtype.
        axis: the axis to search; the flattened array by default.
        keepdims: keep the axis, with extent 1.

    Returns:
        int64.

    Raises:
        IndexError: an axis out of range.
        ValueError: no elements to choose from.
    """
    return _arg_extremum("argmax", x, axis, keepdims)


def argmin(x: A, *, axis: int | None = None, keepdims: bool = False) -> A:
    """Index of the smallest element; else as :func:`argmax`."""
    return _arg_extremum("argmin", x, axis, keepdims)


def topk(x: A, k: int, *, axis: int = -1, largest: bool = True, sorted: bool = True) -> tuple[A, A]:
    """The k largest elements along an axis, and where they are. Of equals the one with the lower index comes first.

    Args:
        x: at least one dimension, any dtype. NaN counts as the largest.
        k: 0 to the extent of the axis.
        axis: the axis to search.
        largest: False for the k smallest.
        sorted: best first; otherwise in the order of their indices.

    Returns:
        (values, int64 indices), of extent ``k`` along the axis.

    Raises:
        IndexError: an axis out of range.
        ValueError: ``k`` out of range, or no dimensions.
    """
    call = Call("topk", x)
    (raw,) = call.raw
    values, indices = _C.topk(raw, k, axis, largest, sorted)

    def backward(dvalues: _C.Tensor | None, _: Any) -> tuple[_C.Tensor | None]:
        if dvalues is None:
            return (None,)
        return (_C.topk_backward(dvalues, indices, axis, raw.shape[axis]),)

    best, places = call.outputs((values, indices), backward)
    return best, places
