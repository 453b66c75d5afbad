"""Reductions over the rows (a bias' gradient), over the columns (few, too), and over everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import IN_CACHE, SMALL, TOLERANCE, Shape, exact, normal, numpy_dtype, sizes, text
from drupe.bench.harness import Case, Setup

_SHORT_ROWS = (6144, 128)


def _signs(rng: np.random.Generator, shape: Shape) -> Any:
    """1 and -1, whose products neither vanish nor overflow."""
    return np.copysign(np.float32(1), normal(rng, shape))


def _all_but_last(value: float, rng: np.random.Generator, shape: Shape) -> Any:
    """One value up to the last element, which is another: nobody may stop before."""
    x = np.full(shape, value, np.float32)
    x.flat[-1] = 1 - value
    return x


def _logsumexp(x: Any, axis: int | None) -> Any:
    top = x.max(axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis)) + top.max(axis)


@dataclass(frozen=True)
class _Op:
    """An op: its formula in NumPy, what is reduced, and what it is called in torch, if not as here."""

    numpy: Callable[..., Any]
    flops: int = 1
    draw: Callable[[np.random.Generator, Shape], Any] = normal
    torch: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of torch's
    result: str = ""  # its dtype, if not that of the input


_OPS = {
    "sum": _Op(np.sum),
    "mean": _Op(np.mean),
    "max": _Op(np.max, torch="amax"),
    "min": _Op(np.min, torch="amin"),
    "prod": _Op(np.prod, draw=_signs),
    "var": _Op(np.var, flops=4, options={"correction": 0}),
    "logsumexp": _Op(_logsumexp, flops=20),
    "argmax": _Op(np.argmax, result="int64"),
    "argmin": _Op(np.argmin, result="int64"),
    "any": _Op(np.any, draw=partial(_all_but_last, 0.0), result="bool"),
    "all": _Op(np.all, draw=partial(_all_but_last, 1.0), result="bool"),
}
_BFLOAT16 = ("sum", "mean", "max", "min", "var", "logsumexp")


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns, and which of them is reduced."""
    for op in _OPS:
        for shape in sizes(quick):
            for axis in (0, 1, None):
                yield _case(op, shape, axis, "float32")
        yield _case(op, (32, 96) if quick else _SHORT_ROWS, 1, "float32")
        if op in _BFLOAT16:
            for axis in (0, 1):
                yield _case(op, SMALL if quick else IN_CACHE, axis, "bfloat16")
    yield _case("sum", (16,), None, "float32")


def _case(op: str, shape: Shape, axis: int | None, dtype: str) -> Case:
    size = int(np.prod(shape))
    results = 1 if axis is None else size // shape[axis]
    return Case(
        op=op,
        name="all" if axis is None else f"axis {axis}",
        shapes=text(shape),
        dtype=dtype,
        flops=_OPS[op].flops * size,
        bytes_read=numpy_dtype(dtype).itemsize * size,
        bytes_written=numpy_dtype(_OPS[op].result or dtype).itemsize * results,
        setup=partial(forward, op, shape, axis, dtype),
    )


def forward(name: str, shape: Shape, axis: int | None, dtype: str, rng: np.random.Generator) -> Setup:
    """The op along one axis, or over everything."""
    op = _OPS[name]
    x = op.draw(rng, shape).astype(numpy_dtype(dtype), copy=False)
    own = drupe.tensor(x)

    def torch(torch: Any, x: Any) -> Any:
        axes = (axis,) if axis is not None else (tuple(range(x.ndim)),) if name == "logsumexp" else ()
        return getattr(torch, op.torch or name)(x, *axes, **op.options)

    def jax(jax: Any, x: Any) -> Any:
        return (jax.nn.logsumexp if name == "logsumexp" else getattr(jax.numpy, name))(x, axis=axis)

    rivals: dict[str, Any] = {
        "torch": lambda: peers.torch_call(torch, x),
        "jax": lambda: peers.jax_call(jax, x),
    }
    if dtype == "float32":
        rivals = {"numpy": lambda: lambda: op.numpy(x, axis=axis)} | rivals
    return Setup(
        drupe=lambda: getattr(ops, name)(own, axis=axis),
        reference=lambda: op.numpy(exact(x), axis=axis),
        tolerance=TOLERANCE[dtype],
        peers=rivals,
    )
