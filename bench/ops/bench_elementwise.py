"""Pointwise arithmetic, functions, comparisons and choices, on as many elements; ``add`` also broadcasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import IN_CACHE, SMALL, Shape, erf, exact, normal, numpy_dtype, sampled, sizes, text
from drupe.bench.harness import Case, Prepared, Setup

_TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}
_POLYNOMIAL = 20  # flops, about, of a function that is none of the processor's instructions


def _positive(rng: np.random.Generator, shape: Shape) -> Any:
    return rng.uniform(0.1, 4, shape).astype(np.float32)


def _coarse(rng: np.random.Generator, shape: Shape) -> Any:
    """Small integers, of which many are 0 or equal, and some NaN."""
    x = rng.integers(-2, 4, shape).astype(np.float32)
    return np.where(x == 3, np.float32("nan"), x)


def _coin(rng: np.random.Generator, shape: Shape) -> Any:
    return rng.random(shape) < 0.5


def _rsqrt(x: Any) -> Any:
    return 1 / np.sqrt(x)


class _Op(NamedTuple):
    """An op: its formula in NumPy, how its operands are drawn, and what it is called elsewhere.

    In torch it has drupe's name, in jax NumPy's, or drupe's in ``jax.lax``.
    """

    numpy: Callable[..., Any]
    draw: tuple[Callable[[np.random.Generator, Shape], Any], ...] = (normal,)
    scalars: tuple[float, ...] = ()
    flops: int = 1
    onnx: str = ""
    mask: bool = False  # what comes out


_TWO = (normal, normal)
_COMPARED: dict[str, Any] = {"draw": (_coarse, _coarse), "mask": True}
_TESTED: dict[str, Any] = {"draw": (_coarse,), "mask": True}
_OPS = {
    "abs": _Op(np.abs, onnx="Abs"),
    "neg": _Op(np.negative, onnx="Neg"),
    "square": _Op(np.square),
    "sign": _Op(np.sign, onnx="Sign"),
    "floor": _Op(np.floor, onnx="Floor"),
    "ceil": _Op(np.ceil, onnx="Ceil"),
    "round": _Op(np.rint, onnx="Round"),
    "sqrt": _Op(np.sqrt, (_positive,), onnx="Sqrt"),
    "rsqrt": _Op(_rsqrt, (_positive,), flops=2),
    "reciprocal": _Op(np.reciprocal, (_positive,), onnx="Reciprocal"),
    "exp": _Op(np.exp, flops=_POLYNOMIAL, onnx="Exp"),
    "expm1": _Op(np.expm1, flops=_POLYNOMIAL),
    "log": _Op(np.log, (_positive,), flops=_POLYNOMIAL, onnx="Log"),
    "log1p": _Op(np.log1p, (_positive,), flops=_POLYNOMIAL),
    "sin": _Op(np.sin, flops=_POLYNOMIAL, onnx="Sin"),
    "cos": _Op(np.cos, flops=_POLYNOMIAL, onnx="Cos"),
    "erf": _Op(erf, flops=_POLYNOMIAL, onnx="Erf"),
    "isnan": _Op(np.isnan, **_TESTED),
    "isfinite": _Op(np.isfinite, **_TESTED),
    "logical_not": _Op(np.logical_not, **_TESTED),
    "clamp": _Op(np.clip, scalars=(-1.0, 1.0), flops=2, onnx="Clip"),
    "add": _Op(np.add, _TWO, onnx="Add"),
    "sub": _Op(np.subtract, _TWO, onnx="Sub"),
    "mul": _Op(np.multiply, _TWO, onnx="Mul"),
    "div": _Op(np.divide, (normal, _positive), onnx="Div"),
    "pow": _Op(np.power, (_positive, normal), flops=2 * _POLYNOMIAL, onnx="Pow"),
    "maximum": _Op(np.maximum, _TWO, onnx="Max"),
    "minimum": _Op(np.minimum, _TWO, onnx="Min"),
    "eq": _Op(np.equal, **_COMPARED),
    "ne": _Op(np.not_equal, **_COMPARED),
    "lt": _Op(np.less, **_COMPARED),
    "le": _Op(np.less_equal, **_COMPARED),
    "gt": _Op(np.greater, **_COMPARED),
    "ge": _Op(np.greater_equal, **_COMPARED),
    "logical_and": _Op(np.logical_and, **_COMPARED),
    "logical_or": _Op(np.logical_or, **_COMPARED),
    "where": _Op(np.where, (_coin, *_TWO), onnx="Where"),
}
_CALL_OVERHEAD = ("add", "exp")  # of which a few elements are measured too


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns; what ``add`` adds has the same shape, or one row, or one column."""
    for name in _OPS:
        for shape in sizes(quick):
            yield _case(name, shape, "float32")
        if not _OPS[name].mask:
            yield _case(name, SMALL if quick else IN_CACHE, "bfloat16")
        if name in _CALL_OVERHEAD:
            yield _case(name, (16,), "float32")
    for rows, columns in sizes(quick):
        yield _case("add", (rows, columns), "float32", "row", (columns,))
        yield _case("add", (rows, columns), "float32", "column", (rows, 1))


def _case(op: str, shape: Shape, dtype: str, name: str = "", last: Shape | None = None) -> Case:
    """Return the case of one op, whose last operand may have another shape."""
    described = _OPS[op]
    shapes = [shape] * (len(described.draw) - 1) + [last or shape]
    size, width = int(np.prod(shape)), numpy_dtype(dtype).itemsize
    widths = [1 if draw is _coin else width for draw in described.draw]
    return Case(
        op=op,
        name=name or ("forward" if len(shapes) == 1 else "same"),
        shapes=text(shape),
        dtype=dtype,
        flops=described.flops * size,
        bytes_read=sum(w * int(np.prod(s)) for w, s in zip(widths, shapes, strict=True)),
        bytes_written=(1 if described.mask else width) * size,
        setup=partial(forward, op, shapes, dtype),
    )


def forward(name: str, shapes: list[Shape], dtype: str, rng: np.random.Generator) -> Setup:
    """The op on new arrays; of a large result some rows are compared."""
    op = _OPS[name]
    drawn = [draw(rng, shape) for draw, shape in zip(op.draw, shapes, strict=True)]
    arrays = [a if a.dtype == bool else a.astype(numpy_dtype(dtype)) for a in drawn]
    own = [drupe.tensor(a) for a in arrays]

    def reference() -> Any:
        return op.numpy(*map(exact, sampled([np.broadcast_to(a, shapes[0]) for a in arrays])), *op.scalars)

    def torch(torch: Any, *tensors: Any) -> Any:
        return getattr(torch, name)(*tensors, *op.scalars)

    def jax(jax: Any, *inputs: Any) -> Any:
        function = getattr(jax.numpy, op.numpy.__name__, None) or getattr(jax.lax, name)
        return function(*inputs, *op.scalars)

    rivals: dict[str, Callable[[], Prepared]] = {
        "torch": lambda: peers.torch_call(torch, *arrays),
        "jax": lambda: peers.jax_call(jax, *arrays),
    }
    if dtype == "float32":
        if op.numpy is not erf:  # NumPy has none: that is Python's, element by element
            rivals = {"numpy": lambda: Prepared(lambda: op.numpy(*arrays, *op.scalars))} | rivals
        if op.onnx:
            inputs = {f"x{i}": a for i, a in enumerate(arrays)}
            constants = {f"c{i}": np.array(value, np.float32) for i, value in enumerate(op.scalars)}
            nodes = [{"op": op.onnx, "inputs": [*inputs, *constants], "outputs": ["y"]}]
            rivals |= peers.onnx_peers(nodes, inputs, constants, output=np.float32)
    return Setup(
        drupe=lambda: getattr(ops, name)(*own, *op.scalars),
        reference=reference,
        tolerance=_TOLERANCE[dtype],
        view=sampled,
        peers=peers.with_view(rivals, sampled),
    )
