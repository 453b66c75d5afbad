"""The arguments that describe sliding windows, in the form that the kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from drupe import _C

Pair = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]

_TO_NHWC, _FROM_NHWC = (0, 2, 3, 1), (0, 3, 1, 2)


def ints(op: str, name: str, value: Any) -> tuple[int, ...]:
    """Return one number or several as a tuple.

    Raises:
        TypeError: they are not whole numbers.
    """
    try:
        return (index(value),)
    except TypeError:
        pass
    try:
        return tuple(index(item) for item in value)
    except TypeError:
        raise TypeError(f"[{op}] {name} is {value!r}: expected whole numbers") from None


def paddings(op: str, value: Padding) -> tuple[int, ...] | str:
    """Return a padding flat: ((top, bottom), (left, right)) as (top, bottom, left, right); words as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(item, Sequence) for item in value):
        pairs = [ints(op, "padding", item) for item in value]
        if len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"[{op}] padding is {value!r}: expected ((top, bottom), (left, right))")
        return pairs[0] + pairs[1]
    return ints(op, "padding", value)


def to_nhwc(x: _C.Tensor, layout: str) -> _C.Tensor:
    """Return an image as (N, H, W, C), C-contiguous; copied only where it is not."""
    return _C.contiguous(x.permute(_TO_NHWC) if layout == "NCHW" else x)


def from_nhwc(x: _C.Tensor, layout: str) -> _C.Tensor:
    """Return an (N, H, W, C) image in the caller's layout, as a view."""
    return x.permute(_FROM_NHWC) if layout == "NCHW" else x
