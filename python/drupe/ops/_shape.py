"""Backward rules that several ops share."""

from __future__ import annotations

from drupe import _C


def sum_to_shape(gradient: _C.Tensor, shape: tuple[int, ...]) -> _C.Tensor:
    """Undo broadcasting: sum over the dimensions that were added or stretched."""
    if gradient.shape == shape:
        return gradient
    added = len(gradient.shape) - len(shape)
    axes = [i for i, extent in enumerate(gradient.shape) if i < added or (shape[i - added] == 1 and extent != 1)]
    summed = _C.reduce("sum", gradient, tuple(axes), True)
    return _C.reshape(summed, shape)
