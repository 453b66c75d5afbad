"""Copies: into another order, out of a view, joined, padded, converted, and into a cache. Views cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.arrays import Shape, normal, numpy_dtype, sampled, sizes, text
from drupe.bench.harness import Case, Prepared, Setup, as_arrays

_BOTH = ("float32", "bfloat16")


@dataclass(frozen=True)
class _Copy:
    """A copy of some arrays of one shape.

    Attributes:
        op, name, shape: of the case.
        drupe, numpy: take the arrays.
        torch, jax: take the library, and the arrays.
        arrays: how many.
        dtypes: theirs.
        result: the dtype of what comes out, if another one.
        read, written: how many elements, as a share of all arrays'.
    """

    op: str
    name: str
    shape: Shape
    drupe: Callable[..., Any]
    numpy: Callable[..., Any]
    torch: Callable[..., Any]
    jax: Callable[..., Any]
    arrays: int = 1
    dtypes: tuple[str, ...] = ("float32",)
    result: str = ""
    read: float = 1.0
    written: float = 1.0

    def case(self, dtype: str) -> Case:
        """Return the case."""
        size = self.arrays * int(np.prod(self.shape))
        return Case(
            op=self.op,
            name=self.name,
            shapes=(f"{self.arrays} of " if self.arrays > 1 else "") + text(self.shape),
            dtype=dtype,
            flops=self.written * size,
            bytes_read=self.read * size * numpy_dtype(dtype).itemsize,
            bytes_written=self.written * size * numpy_dtype(self.result or dtype).itemsize,
            setup=partial(forward, self, dtype),
        )


def cases(quick: bool) -> Iterator[Case]:
    """Matrices of both sizes, images, heads of attention, and rows for a cache of keys."""
    for copy in (*(copy for shape in sizes(quick) for copy in _matrices(shape)), *_images(quick), _heads(quick)):
        for dtype in copy.dtypes:
            yield copy.case(dtype)
    B, H, capacity, D = (2, 2, 16, 8) if quick else (8, 12, 1024, 64)
    for rows in (1, capacity // 2):
        yield Case(
            op="append_rows",
            name="last row" if rows == 1 else "last half",
            shapes=f"{text((B, H, rows, D))} of {capacity}",
            dtype="float32",
            flops=B * H * rows * D,
            bytes_read=4 * B * H * rows * D,
            bytes_written=4 * B * H * rows * D,
            setup=partial(append, (B, H, capacity, D), rows),
        )


def _permuted(name: str, shape: Shape, axes: Shape) -> _Copy:
    return _Copy(
        "contiguous",
        name,
        shape,
        lambda x: ops.contiguous(ops.permute(x, axes)),
        lambda x: np.ascontiguousarray(x.transpose(axes)),
        lambda torch, x: x.permute(axes).contiguous(),
        lambda jax, x: x.transpose(axes),
        dtypes=_BOTH,
    )


def _part(name: str, shape: Shape, columns: slice) -> _Copy:
    return _Copy(
        "contiguous",
        name,
        shape,
        lambda x: ops.contiguous(ops.getitem(x, (slice(None), columns))),
        lambda x: np.ascontiguousarray(x[:, columns]),
        lambda torch, x: x[:, columns].contiguous(),
        lambda jax, x: x[:, columns],
        read=0.5,
        written=0.5,
    )


def _joined(op: str, axis: int, shape: Shape) -> _Copy:
    numpy, torch = ("concatenate", "cat") if op == "concat" else ("stack", "stack")
    return _Copy(
        op,
        f"axis {axis}",
        shape,
        lambda *parts: getattr(ops, op)(parts, axis),
        lambda *parts: getattr(np, numpy)(parts, axis),
        lambda library, *parts: getattr(library, torch)(parts, axis),
        lambda jax, *parts: getattr(jax.numpy, numpy)(parts, axis),
        arrays=4,
        dtypes=_BOTH,
    )


def _cast(source: str, target: str, shape: Shape) -> _Copy:
    return _Copy(
        "cast",
        f"to {target}",
        shape,
        lambda x: ops.cast(x, target),
        lambda x: x.astype(numpy_dtype(target)),
        lambda torch, x: x.to(getattr(torch, target)),
        lambda jax, x: x.astype(target),
        dtypes=(source,),
        result=target,
    )


def _matrices(shape: Shape) -> Iterator[_Copy]:
    rows, columns = shape
    yield _permuted("transpose", shape, (1, 0))
    yield _part("left half", shape, slice(columns // 2))
    yield _part("every other column", shape, slice(None, None, 2))
    yield _Copy(
        "contiguous",
        "broadcast row",
        shape,
        lambda x: ops.contiguous(ops.broadcast_to(ops.getitem(x, 0), shape)),
        lambda x: np.ascontiguousarray(np.broadcast_to(x[0], shape)),
        lambda torch, x: x[0].expand(shape).contiguous(),
        lambda jax, x: jax.numpy.broadcast_to(x[0], shape),
        read=1 / rows,
    )
    for op, axis in (("concat", 0), ("concat", 1), ("stack", 0), ("stack", 2)):
        yield _joined(op, axis, (rows // 4, columns))
    for source, target in (("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "int32")):
        yield _cast(source, target, shape)


def _images(quick: bool) -> Iterator[_Copy]:
    C, S = (8, 12) if quick else (64, 112)
    widths = ((0, 0), (0, 0), (1, 1), (1, 1))
    for B in (2,) if quick else (1, 32):
        yield _permuted("nchw to nhwc", (B, C, S, S), (0, 2, 3, 1))
        yield _permuted("nhwc to nchw", (B, S, S, C), (0, 3, 1, 2))
        yield _Copy(
            "pad",
            "images by 1",
            (B, C, S, S),
            lambda x: ops.pad(x, widths),
            lambda x: np.pad(x, widths),
            lambda torch, x: torch.nn.functional.pad(x, (1, 1, 1, 1)),
            lambda jax, x: jax.numpy.pad(x, widths),
            dtypes=_BOTH,
            written=(S + 2) ** 2 / S**2,
        )


def _heads(quick: bool) -> _Copy:
    B, H, S, D = (2, 2, 16, 8) if quick else (8, 12, 128, 64)
    return _Copy(
        "merge_heads",
        "forward",
        (B, H, S, D),
        lambda x: ops.merge_heads(x),
        lambda x: x.transpose(0, 2, 1, 3).reshape(B, S, H * D),
        lambda torch, x: x.transpose(1, 2).reshape(B, S, H * D),
        lambda jax, x: x.transpose(0, 2, 1, 3).reshape(B, S, H * D),
        dtypes=_BOTH,
    )


def forward(copy: _Copy, dtype: str, rng: np.random.Generator) -> Setup:
    """A copy of arrays; of a large result some rows are compared."""
    arrays = [normal(rng, copy.shape, dtype) for _ in range(copy.arrays)]
    own = [drupe.tensor(a) for a in arrays]
    rivals = {
        "numpy": lambda: Prepared(lambda: copy.numpy(*arrays)),
        "torch": lambda: peers.torch_call(copy.torch, *arrays),
        "jax": lambda: peers.jax_call(copy.jax, *arrays),
    }
    return Setup(
        drupe=lambda: copy.drupe(*own),
        reference=lambda: sampled(copy.numpy(*arrays)),
        tolerance=0,
        view=sampled,
        peers=peers.with_view(rivals, sampled),
    )


def append(shape: Shape, rows: int, rng: np.random.Generator) -> Setup:
    """Rows written at the end of a cache, of which every contender has its own; those are compared."""
    cache, x = np.zeros(shape, np.float32), normal(rng, (*shape[:2], rows, shape[3]))
    own, added, start = drupe.tensor(cache), drupe.tensor(x), shape[2] - rows

    def write(library: Any, cache: Any, x: Any) -> Any:
        cache[:, :, start:] = x
        return cache

    rivals = {
        "numpy": lambda: Prepared(lambda: write(np, cache, x)),
        "torch": lambda: peers.torch_call(write, cache, x),
    }

    def view(output: Any) -> Any:
        return [array[:, :, start:] for array in as_arrays(output)]

    return Setup(
        drupe=lambda: ops.append_rows(own, added, start),
        reference=lambda: x,
        tolerance=0,
        view=view,
        peers=peers.with_view(rivals, view),
    )
