"""Pointwise arithmetic, comparisons and functions.

Operands broadcast as NumPy's do and have one dtype; a Python (or NumPy) scalar takes the dtype of the array beside it.
The result keeps the memory order of a dense operand of its shape, and is C-contiguous otherwise. An operand whose
layout runs against that order is copied.

On float32 the largest errors, in units of the last place (tests/cpu/test_math.py measures them): exp 1.25, expm1 2.1,
log 1, log1p 2.5, sin and cos 1, erf 2.7, rsqrt 1.5, pow 0.75, and 1.3 by the exponent 3; arithmetic, sqrt and
reciprocal round correctly. On float64 exp and log stay within 1.25, expm1 within 2.3, log1p within 2.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drupe import _C
from drupe.ops._call import A, Array, Call, Scalar
from drupe.ops._shape import sum_to_shape
from drupe.tensor import Tensor

_ARRAYS = (Tensor, np.ndarray)


def _number(x: Any) -> bool | int | float | None:
    """Return a scalar as a Python number, None for anything else."""
    if isinstance(x, _ARRAYS):
        return None
    if isinstance(x, Scalar):
        return x
    if isinstance(x, np.generic):
        return x.item() if x.dtype.kind in "biu" else float(x)
    return None


class _Operands:
    """One call on two operands, of which one may be a scalar: it takes the array's dtype, and is not recorded.

    Attributes:
        raw: both operands.
        arrays: the positions of those that are no scalars.
        call: the call with the arrays alone.
    """

    __slots__ = ("arrays", "call", "raw")

    def __init__(self, name: str, a: Array, b: Array) -> None:
        left, right = _number(a), _number(b)
        self.arrays: tuple[int, ...] = (0, 1)
        if (left is None) == (right is None):
            self.call: Call[Any] = Call(name, a, b)
            self.raw: tuple[_C.Tensor, ...] = self.call.raw
        elif right is not None:
            self.arrays, self.call = (0,), Call(name, a)
            (raw,) = self.call.raw
            self.raw = (raw, _C.scalar(name, right, raw.dtype, raw.device))
        elif left is not None:
            self.arrays, self.call = (1,), Call(name, b)
            (raw,) = self.call.raw
            self.raw = (_C.scalar(name, left, raw.dtype, raw.device), raw)

    def needs_grad(self, position: int) -> bool:
        """Return whether this operand wants a gradient."""
        return position in self.arrays and self.call.needs_grad(self.arrays.index(position))

    def of_arrays(self, gradients: Sequence[_C.Tensor | None]) -> list[_C.Tensor | None]:
        """Leave out what belongs to scalars."""
        return [gradients[i] for i in self.arrays]

    def output(self, y: _C.Tensor, backward: Callable[[_C.Tensor], Sequence[_C.Tensor | None]] | None = None) -> Any:
        """Wrap the result; ``backward`` gives one gradient or None per operand."""
        if backward is None or len(self.arrays) == 2:
            return self.call.output(y, backward)
        rule = backward
        return self.call.output(y, lambda dy: self.of_arrays(rule(dy)))


# From both operands, the result and whether each operand needs a gradient to the function that gives these. What that
# refers to stays until backward.
_Rule = Callable[[_C.Tensor, _C.Tensor, _C.Tensor, bool, bool], Callable[[_C.Tensor], Sequence[_C.Tensor | None]]]


def _binary(name: str, a: Array, b: Array, rule: _Rule | None = None) -> Any:
    if type(a) is Tensor and type(b) is Tensor and not (a.requires_grad or b.requires_grad):
        return Tensor(_C.binary(name, a.raw, b.raw))  # what follows gives the same, later
    operands = _Operands(name, a, b)
    left, right = operands.raw
    y = _C.binary(name, left, right)
    if rule is None or not operands.call.recorded:
        return operands.output(y)
    return operands.output(y, rule(left, right, y, operands.needs_grad(0), operands.needs_grad(1)))


def _add_rule(a: _C.Tensor, b: _C.Tensor, y: _C.Tensor, need_a: bool, need_b: bool) -> Any:
    shape_a, shape_b = a.shape, b.shape

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, _C.Tensor | None]:
        return sum_to_shape(dy, shape_a) if need_a else None, sum_to_shape(dy, shape_b) if need_b else None

    return backward


def add(a: Array, b: Array) -> Any:
    """Sum, ``a + b``.

    Args:
        a: an array of numbers, or a scalar.
        b: an array of the same dtype whose shape broadcasts with that of ``a``, or a scalar.

    Returns:
        The broadcast shape, the same dtype. Integers wrap around.

    Raises:
        TypeError: two dtypes; bool; a float scalar with an integer array.
        ValueError: shapes that do not broadcast, or a scalar that the dtype cannot hold.
    """
    return _binary("add", a, b, _add_rule)


def _sub_rule(a: _C.Tensor, b: _C.Tensor, y: _C.Tensor, need_a: bool, need_b: bool) -> Any:
    shape_a, shape_b = a.shape, b.shape

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, _C.Tensor | None]:
        da = sum_to_shape(dy, shape_a) if need_a else None
        return da, _C.unary("neg", sum_to_shape(dy, shape_b)) if need_b else None

    return backward


def sub(a: Array, b: Array) -> Any:
    """Difference, ``a - b``; arguments, returns and errors as :func:`add`."""
    return _binary("sub", a, b, _sub_rule)


def _mul_rule(a: _C.Tensor, b: _C.Tensor, y: _C.Tensor, need_a: bool, need_b: bool) -> Any:
    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, _C.Tensor | None]:
        da = sum_to_shape(_C.binary("mul", dy, b), a.shape) if need_a else None
        return da, sum_to_shape(_C.binary("mul", dy, a), b.shape) if need_b else None

    return backward


def mul(a: Array, b: Array) -> Any:
    """Product, ``a * b``; arguments, returns and errors as :func:`add`."""
    return _binary("mul", a, b, _mul_rule)


def _div_rule(a: _C.Tensor, b: _C.Tensor, y: _C.Tensor, need_a: bool, need_b: bool) -> Any:
    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, _C.Tensor | None]:
        quotient = _C.binary("div", dy, b)
        da = sum_to_shape(quotient, a.shape) if need_a else None
        return da, _C.unary("neg", sum_to_shape(_C.binary("mul", quotient, y), b.shape)) if need_b else None

    return backward


def div(a: Array, b: Array) -> Any:
    """Quotient, ``a / b``; on integers rounded towards minus infinity, as Python's ``//``.

    Arguments and returns as :func:`add`.

    Raises:
        TypeError: as :func:`add`.
        ValueError: as :func:`add`, and division of integers by zero.
    """
    return _binary("div", a, b, _div_rule)


def _pow_rule(a: _C.Tensor, b: _C.Tensor, y: _C.Tensor, need_a: bool, need_b: bool) -> Any:
    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, _C.Tensor | None]:
        zero, one = (_C.scalar("pow", value, a.dtype, a.device) for value in (0, 1))
        da = db = None
        if need_a:
            slope = _C.binary("mul", b, _C.binary("pow", a, _C.binary("sub", b, one)))
            slope = _C.where(_C.binary("eq", b, zero), zero, slope)
            da = sum_to_shape(_C.binary("mul", dy, slope), a.shape)
        if need_b:
            slope = _C.binary("mul", y, _C.unary("log", a))
            flat = _C.binary("logical_and", _C.binary("eq", a, zero), _C.binary("ge", b, zero))
            db = sum_to_shape(_C.binary("mul", dy, _C.where(flat, zero, slope)), b.shape)
        return da, db

    return backward


def pow(a: Array, b: Array) -> Any:
    """Power, ``a ** b``; arguments and returns as :func:`add`.

    The gradient by ``a`` is 0 where ``b`` is 0, and that by ``b`` is 0 where ``a`` is 0 and ``b`` is not negative.

    Raises:
        TypeError: as :func:`add`.
        ValueError: as :func:`add`, and a negative exponent of integers.
    """
    if _number(a) is None and _number(b) == 2:
        return square(a)
    return _binary("pow", a, b, _pow_rule)


def _extremum(name: str, a: Array, b: Array) -> Any:
    def rule(a: _C.Tensor, b: _C.Tensor, y: _C.Tensor, need_a: bool, need_b: bool) -> Any:
        def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, _C.Tensor | None]:
            half = _C.binary("mul", dy, _C.scalar(name, 0.5, dy.dtype, dy.device))
            shared = _C.where(_C.binary("eq", a, b), half, _C.scalar(name, 0, dy.dtype, dy.device))
            da = _C.where(_C.binary("gt" if name == "maximum" else "lt", a, b), dy, shared)
            db = sum_to_shape(_C.binary("sub", dy, da), b.shape) if need_b else None
            return sum_to_shape(da, a.shape) if need_a else None, db

        return backward

    return _binary(name, a, b, rule)


def maximum(a: Array, b: Array) -> Any:
    """Larger of two, NaN where either is NaN; any dtype, else as :func:`add`.

    Where both are equal each gets half of the gradient; where either is NaN it goes to ``b``.
    """
    return _extremum("maximum", a, b)


def minimum(a: Array, b: Array) -> Any:
    """Smaller of two, NaN where either is NaN; any dtype, else as :func:`maximum`."""
    return _extremum("minimum", a, b)


def eq(a: Array, b: Array) -> Any:
    """``a == b`` as bool; any dtype, both alike; false where either is NaN. Arguments and errors as :func:`add`."""
    return _binary("eq", a, b)


def ne(a: Array, b: Array) -> Any:
    """``a != b`` as bool, true where either is NaN; else as :func:`eq`."""
    return _binary("ne", a, b)


def lt(a: Array, b: Array) -> Any:
    """``a < b`` as bool; as :func:`eq`."""
    return _binary("lt", a, b)


def le(a: Array, b: Array) -> Any:
    """``a <= b`` as bool; as :func:`eq`."""
    return _binary("le", a, b)


def gt(a: Array, b: Array) -> Any:
    """``a > b`` as bool; as :func:`eq`."""
    return _binary("gt", a, b)


def ge(a: Array, b: Array) -> Any:
    """``a >= b`` as bool; as :func:`eq`."""
    return _binary("ge", a, b)


def logical_and(a: Array, b: Array) -> Any:
    """Whether both are nonzero; any dtype, both alike, NaN is nonzero."""
    return _binary("logical_and", a, b)


def logical_or(a: Array, b: Array) -> Any:
    """Whether one is nonzero; as :func:`logical_and`."""
    return _binary("logical_or", a, b)


def where(condition: Array, a: Array, b: Array) -> Any:
    """Choose element by element, ``a if condition else b``.

    Args:
        condition: bool.
        a: any dtype, or a scalar.
        b: the same dtype, or a scalar. All three broadcast.

    Raises:
        TypeError: a condition that is not bool, or two dtypes.
        ValueError: shapes that do not broadcast.
    """
    chosen = _Operands("where", a, b)
    ra, rb = chosen.raw
    call: Call[Any] = Call("where", condition, *chosen.call.inputs)
    mask = call.raw[0]
    need_a, need_b = chosen.needs_grad(0), chosen.needs_grad(1)

    def backward(dy: _C.Tensor) -> list[_C.Tensor | None]:
        zero = _C.scalar("where", 0, dy.dtype, dy.device)
        da = sum_to_shape(_C.where(mask, dy, zero), ra.shape) if need_a else None
        db = sum_to_shape(_C.where(mask, zero, dy), rb.shape) if need_b else None
        return [None, *chosen.of_arrays([da, db])]

    return call.output(_C.where(mask, ra, rb), backward)


def clamp(x: A, low: float | None = None, high: float | None = None) -> A:
    """Clip to an interval, ``min(max(x, low), high)``; NaN stays NaN, and the gradient is 0 outside.

    Args:
        x: any shape, a float dtype.
        low: the lower bound; None for none.
        high: the upper bound; None for none.

    Raises:
        TypeError: not a float dtype.
        ValueError: ``low > high``, or a bound that is NaN.
    """
    call = Call("clamp", x)
    (raw,) = call.raw
    bounds = (float("-inf") if low is None else low, float("inf") if high is None else high)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.clamp_backward(dy, raw, *bounds),)

    return call.output(_C.clamp(raw, *bounds), backward)


_FROM_OUTPUT = ("expm1", "sqrt", "rsqrt", "reciprocal")
_FLAT = ("sign", "floor", "ceil", "round")


def _unary(name: str, x: A) -> A:
    call = Call(name, x)
    (raw,) = call.raw
    y = _C.unary(name, raw)
    if not call.recorded:
        return call.output(y)
    saved = y if name in _FROM_OUTPUT or name == "exp" else raw

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        if name == "neg":
            return (_C.unary("neg", dy),)
        if name == "exp":
            return (_C.binary("mul", dy, saved),)
        if name == "log":
            return (_C.binary("div", dy, saved),)
        if name in _FLAT:
            return (_C.full(dy.shape, 0, dy.dtype, dy.device),)
        return (_C.unary_backward(name, dy, saved),)

    return call.output(y, backward)


def neg(x: A) -> A:
    """Negative, ``-x``.

    Args:
        x: any shape, a float or integer dtype. Integers wrap around.

    Returns:
        The same shape and dtype, in the memory order of a dense ``x``.

    Raises:
        TypeError: bool.
    """
    return _unary("neg", x)


def abs(x: A) -> A:
    """Absolute value; the gradient at 0 is 0. Arguments, returns and errors as :func:`neg`."""
    return _unary("abs", x)


def square(x: A) -> A:
    """``x * x``; arguments, returns and errors as :func:`neg`."""
    return _unary("square", x)


def sign(x: A) -> A:
    """-1, 0 or 1; zeros and NaN are themselves, and the gradient is 0. Arguments and errors as :func:`neg`."""
    return _unary("sign", x)


def exp(x: A) -> A:
    """Exponential, ``e^x``; in float32 arithmetic 0 below x = -87.33, where it would be subnormal.

    Args:
        x: any shape, a float dtype.

    Returns:
        The same shape and dtype, in the memory order of a dense ``x``.

    Raises:
        TypeError: not a float dtype.
    """
    return _unary("exp", x)


def expm1(x: A) -> A:
    """``e^x - 1`` without cancellation near 0; arguments, returns and errors as :func:`exp`."""
    return _unary("expm1", x)


def log(x: A) -> A:
    """Natural logarithm; -infinity at 0, NaN below. Arguments, returns and errors as :func:`exp`."""
    return _unary("log", x)


def log1p(x: A) -> A:
    """``log(1 + x)`` without cancellation near 0; arguments, returns and errors as :func:`exp`."""
    return _unary("log1p", x)


def sqrt(x: A) -> A:
    """Square root, NaN below 0; arguments, returns and errors as :func:`exp`."""
    return _unary("sqrt", x)


def rsqrt(x: A) -> A:
    """``1 / sqrt(x)``; arguments, returns and errors as :func:`exp`."""
    return _unary("rsqrt", x)


def reciprocal(x: A) -> A:
    """``1 / x``; arguments, returns and errors as :func:`exp`."""
    return _unary("reciprocal", x)


def sin(x: A) -> A:
    """Sine of an angle in radians; arguments, returns and errors as :func:`exp`."""
    return _unary("sin", x)


def cos(x: A) -> A:
    """Cosine of an angle in radians; arguments, returns and errors as :func:`exp`."""
    return _unary("cos", x)


def erf(x: A) -> A:
    """Error function, ``2 / sqrt(pi)`` times the integral of ``e^(-t^2)`` from 0 to x; else as :func:`exp`."""
    return _unary("erf", x)


def floor(x: A) -> A:
    """Largest integer not above x; the gradient is 0. Arguments, returns and errors as :func:`exp`."""
    return _unary("floor", x)


def ceil(x: A) -> A:
    """Smallest integer not below x; the gradient is 0. Arguments, returns and errors as :func:`exp`."""
    return _unary("ceil", x)


def round(x: A) -> A:
    """Nearest integer, ties to even; the gradient is 0. Arguments, returns and errors as :func:`exp`."""
    return _unary("round", x)


def isnan(x: A) -> A:
    """Whether x is NaN, as bool; arguments and errors as :func:`exp`."""
    return _unary("isnan", x)


def isfinite(x: A) -> A:
    """Whether x is neither infinite nor NaN, as bool; arguments and errors as :func:`exp`."""
    return _unary("isfinite", x)


def logical_not(x: A) -> A:
    """Whether x is zero, as bool; any dtype."""
    return _unary("logical_not", x)
