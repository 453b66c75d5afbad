"""Pointwise activations."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Call


def _activation(x: A, name: str) -> A:
    call = Call(name, x)
    (raw,) = call.raw
    y = _C.activation(raw, name)
    saved = raw if name in ("gelu", "gelu_tanh", "silu") else y

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.activation_backward(dy, saved, name),)

    return call.output(y, backward)


def relu(x: A) -> A:
    """Rectified linear unit, ``max(x, 0)``; NaN stays NaN, the gradient at 0 is 0.

    Args:
        x: any shape, a float dtype.

    Returns:
        The same shape and dtype, in the memory order of a dense ``x``.

    Raises:
        TypeError: not a float dtype.
    """
    return _activation(x, "relu")


def gelu(x: A, *, approximate: bool = False) -> A:
    """Gaussian error linear unit, ``x Phi(x)``.

    Args:
        x: any shape, a float dtype.
        approximate: use ``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`` instead.

    Returns:
        The same shape and dtype, in the memory order of a dense ``x``.

    Raises:
        TypeError: not a float dtype.

    Reference:
        D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2.
    """
    return _activation(x, "gelu_tanh" if approximate else "gelu")


def silu(x: A) -> A:
    """Sigmoid linear unit, ``x sigmoid(x)``; arguments, returns and errors as :func:`relu`."""
    return _activation(x, "silu")


def sigmoid(x: A) -> A:
    """Logistic function, ``1 / (1 + e^-x)``; arguments, returns and errors as :func:`relu`."""
    return _activation(x, "sigmoid")


def tanh(x: A) -> A:
    """Hyperbolic tangent; arguments, returns and errors as :func:`relu`."""
    return _activation(x, "tanh")
