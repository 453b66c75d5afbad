"""Pointwise activations."""

from __future__ import annotations

from drupe import _C
from drupe.autograd import Product
from drupe.ops._call import A, Call

# Whose derivative is computed from the input; the others' from the output.
FROM_INPUT = ("gelu", "gelu_tanh", "silu")


def differentiate(
    dy: _C.Tensor | Product, saved: _C.Tensor, name: str, *, sum_columns: bool = False
) -> tuple[_C.Tensor, _C.Tensor | None]:
    """Return the gradient of an activation's input ("" for none), and its sum over all dimensions but the last.

    The sum is None where it is not wanted, or would take a pass of its own.
    """
    if isinstance(dy, Product):
        if name or sum_columns:
            return dy.through(name, saved, sum_columns=sum_columns)
        return dy.compute(), None
    return _C.activation_backward(dy, saved, name) if name else dy, None


def _activation(x: A, name: str) -> A:
    call = Call(name, x)
    (raw,) = call.raw
    y = _C.activation(raw, name)
    saved = raw if name in FROM_INPUT else y

    def backward(dy: _C.Tensor | Product) -> tuple[_C.Tensor]:
        return (differentiate(dy, saved, name)[0],)

    return call.output(y, backward, takes_products=True)


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
