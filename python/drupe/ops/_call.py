"""What every op does around its kernel: raw tensors in, the caller's kind of array out, a record on the tape."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from drupe import _C
from drupe.autograd import BackwardFn, Node, is_grad_enabled
from drupe.tensor import _DTYPES, Tensor, to_raw

# An array of whatever kind; an op gives back the kind that it was given.
A = TypeVar("A")
Array = Any

Scalar = (bool, int, float)


def _to_numpy(raw: _C.Tensor) -> Any:
    return _C.to_numpy(raw, _DTYPES[raw.dtype])


def _exporter(array: Any) -> Callable[[_C.Tensor], Any]:
    """Return the function that makes arrays of this one's kind."""
    if isinstance(array, (np.ndarray, np.generic)):
        return _to_numpy
    root = type(array).__module__.partition(".")[0]
    from_dlpack: Callable[[_C.Tensor], Any]
    if root in ("torch", "cupy"):
        from_dlpack = sys.modules[root].from_dlpack
    elif root in ("jax", "jaxlib"):
        from_dlpack = sys.modules["jax"].dlpack.from_dlpack
    elif hasattr(array, "__array_namespace__"):
        from_dlpack = array.__array_namespace__().from_dlpack
    else:
        return Tensor

    def export(raw: _C.Tensor) -> Any:
        if raw.device != "cpu" and array.__dlpack_device__()[0] != raw.__dlpack_device__()[0]:
            raw = _C.to_device(raw, "cpu")  # where the array lies
        return from_dlpack(raw)

    return export


class Call(Generic[A]):
    """One call of an op.

    Args:
        name: the op, for errors.
        first, others: its array arguments, None where one is left out. A gradient may flow to each. The results are
            of the first one's kind, or tensors where any of them is one. Arrays of the host that are no tensors are
            copied to the device of a tensor beside them.

    Attributes:
        raw: the inputs as raw tensors.
        recorded: whether any input wants a gradient.
    """

    __slots__ = ("_export", "inputs", "name", "raw", "recorded")

    def __init__(self, name: str, first: A, *others: Array) -> None:
        self.name = name
        self.inputs: tuple[Any, ...] = (first, *others)
        raws: list[Any] = []
        wanted = tensors = False
        guest = None  # the first array of another kind
        for x in self.inputs:
            if x is None:
                raws.append(None)
            elif isinstance(x, Tensor):
                raws.append(x.raw)
                tensors = True
                if x.requires_grad:
                    wanted = True
            else:
                raws.append(to_raw(x, name))
                if guest is None:
                    guest = x
        self.raw: tuple[Any, ...] = tuple(raws)
        self._export: Callable[[_C.Tensor], Any] = Tensor
        self.recorded = wanted and is_grad_enabled()
        if guest is not None:
            if tensors:
                self._join()
            else:
                self._export = _exporter(guest)
        elif not tensors:
            to_raw(None, name)  # raises, as for anything else that is no array

    def _join(self) -> None:
        """Take the arrays of the host that are no tensors to the device of a tensor beside them."""
        held = (x.raw.device for x in self.inputs if isinstance(x, Tensor))
        if (device := next((device for device in held if device != "cpu"), None)) is not None:
            self.raw = tuple(
                y if y is None or isinstance(x, Tensor) or y.device != "cpu" else _C.to_device(y, device)
                for x, y in zip(self.inputs, self.raw, strict=True)
            )

    def needs_grad(self, *positions: int) -> bool:
        """Return whether an input at one of these positions wants a gradient."""
        if not self.recorded:
            return False
        chosen = [self.inputs[i] for i in positions]
        return any(isinstance(x, Tensor) and x.requires_grad for x in chosen)

    def output(self, y: _C.Tensor, backward: BackwardFn | None = None, *, takes_products: bool = False) -> A:
        """Wrap the only output, and record how to go back: backward(dy) gives one gradient or None per input."""
        recorded = self.recorded
        return self.outputs((y,), backward, takes_products=takes_products)[0] if recorded else self._export(y)

    def outputs(
        self, ys: tuple[_C.Tensor, ...], backward: BackwardFn | None = None, *, takes_products: bool = False
    ) -> tuple[A, ...]:
        """Wrap several outputs; backward takes one gradient, or None, for each of them."""
        results: tuple[Any, ...] = tuple([self._export(y) for y in ys])
        if backward is not None and self.recorded:
            leaves = [x if isinstance(x, Tensor) else None for x in self.inputs]
            node = Node(self.name, leaves, len(ys), backward, takes_products=takes_products)
            for i, result in enumerate(results):
                if "float" in result.raw.dtype:
                    result.node, result.output_index, result.requires_grad = node, i, True
        return results
