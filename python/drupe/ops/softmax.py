"""Softmax and its logarithm."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Call


def _softmax(x: A, axis: int, name: str) -> A:
    call = Call(name, x)
    log = name == "log_softmax"
    y = _C.softmax(call.raw[0], axis, log)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.softmax_backward(dy, y, axis, log),)

    return call.output(y, backward)


def softmax(x: A, axis: int = -1) -> A:
    """Softmax along one axis: ``exp(x - max(x)) / sum(exp(x - max(x)))``.

    A NaN or +infinity makes its row NaN, and so does a row of nothing but -infinity, as in NumPy and PyTorch.
    (:func:`attention` gives zeros for a fully masked row.)

    Args:
        x: any shape of at least one dimension, a float dtype. Copied first where it is not C-contiguous.
        axis: the axis that sums to one.

    Returns:
        The same shape and dtype, C-contiguous. Sums accumulate in float32 for float16 and bfloat16; on the CPU each
        float32 exponential has a relative error below 1.7e-7 + 2.5e-9 (max(x) - x).

    Raises:
        TypeError: not a float dtype.
        IndexError: ``axis`` is out of range.

    Reference:
        M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867, section 2.
    """
    return _softmax(x, axis, "softmax")


def log_softmax(x: A, axis: int = -1) -> A:
    """Logarithm of the softmax: ``x - max(x) - log(sum(exp(x - max(x))))``.

    Arguments, returns, errors and non-finite values as :func:`softmax`.
    """
    return _softmax(x, axis, "log_softmax")
