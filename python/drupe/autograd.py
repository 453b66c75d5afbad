"""The tape: what each op did, and how to walk it backwards.

An op records a :class:`Node` for its outputs when gradients are enabled and an input requires one. The node holds
the inputs and a function from the outputs' gradients to the inputs'. Those functions work on raw tensors and record
nothing: gradients of gradients are not supported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from drupe import _C

if TYPE_CHECKING:
    from drupe.tensor import Tensor


class SparseRows:
    """A gradient that is zero but for some rows: what ``embedding`` and ``embedding_bag`` give with ``sparse=True``.

    Attributes:
        indices: (U,) int64, ascending and unique.
        values: (U, D), the gradient of each of those rows.
        shape: (V, D), the shape of the whole.
    """

    __slots__ = ("indices", "shape", "values")

    def __init__(self, indices: _C.Tensor, values: _C.Tensor, shape: tuple[int, ...]) -> None:
        self.indices = indices
        self.values = values
        self.shape = shape

    def to_dense(self) -> Tensor:
        """Return the whole gradient, zeros included: (V, D)."""
        from drupe.tensor import Tensor  # the tape lies below the tensor

        dense = _C.zeros(self.shape, self.values.dtype, self.values.device)
        _C.add_rows(dense, self.indices, self.values)
        return Tensor(dense)


class Product:
    """A gradient that is due: a matrix product, whose epilogue can do what comes next.

    Args:
        shape: of the gradient.
        gemm: the product, given the arguments of ``_C.gemm`` that are left open.
    """

    __slots__ = ("_gemm", "shape")

    def __init__(self, shape: tuple[int, ...], gemm: Callable[..., tuple[_C.Tensor, _C.Tensor | None]]) -> None:
        self.shape = shape
        self._gemm = gemm

    def compute(self, residual: _C.Tensor | None = None) -> _C.Tensor:
        """Return the product, plus the residual."""
        return self._gemm(residual=residual)[0]

    def through(self, activation: str, saved: _C.Tensor, *, sum_columns: bool) -> tuple[_C.Tensor, _C.Tensor | None]:
        """Return the gradient of the activation's input, and if wanted its sum over all dimensions but the last."""
        y, sums = self._gemm(activation=activation, saved=saved, sum_columns=sum_columns)
        return y, sums if sum_columns else None


Gradient = _C.Tensor | SparseRows
# From one gradient (or None) per output to one (or None) per input; a node's that takes products may be given one.
BackwardFn = Callable[..., Sequence["Gradient | Product | None"]]

_order = count()


class Node:
    """One op on the tape."""

    __slots__ = ("backward", "inputs", "name", "order", "outputs", "takes_products", "versions")

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor | None],
        outputs: int,
        backward: BackwardFn,
        *,
        takes_products: bool = False,
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = outputs
        self.versions = tuple(-1 if t is None else t.version for t in inputs)
        self.backward: BackwardFn | None = backward
        self.takes_products = takes_products  # by itself, instead of what they compute
        self.order = next(_order)  # a node is younger than the nodes of its inputs


class _Mode(threading.local):
    enabled = True


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Return whether ops record onto the tape in this thread."""
    return _mode.enabled


@contextmanager
def _recording(enabled: bool) -> Iterator[None]:
    before, _mode.enabled = _mode.enabled, enabled
    try:
        yield
    finally:
        _mode.enabled = before


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside the ``with`` block, or inside the decorated function."""
    with _recording(False):
        yield


@contextmanager
def enable_grad() -> Iterator[None]:
    """Record again inside the ``with`` block, within an outer :func:`no_grad`."""
    with _recording(True):
        yield


def _computed(gradient: Gradient | Product) -> Gradient:
    return gradient.compute() if isinstance(gradient, Product) else gradient


def _sum(a: Gradient | Product, b: Gradient | Product) -> Gradient:
    if isinstance(a, Product):
        a, b = b, a
    a = _computed(a)
    if isinstance(b, Product):
        if isinstance(a, _C.Tensor):
            return b.compute(a)
        b = _computed(b)
    if isinstance(a, _C.Tensor) and isinstance(b, _C.Tensor):
        return _C.binary("add", a, b)
    if isinstance(a, SparseRows) and isinstance(b, SparseRows):
        indices, values = _C.merge_rows([a.indices, b.indices], [a.values, b.values])
        return SparseRows(indices, values, a.shape)
    dense, sparse = (a, b) if isinstance(a, _C.Tensor) else (b, a)
    assert isinstance(dense, _C.Tensor)
    assert isinstance(sparse, SparseRows)
    total = _C.clone(dense)
    _C.add_rows(total, sparse.indices, sparse.values)
    return total


def run_backward(output: Tensor, gradient: _C.Tensor, *, retain_graph: bool) -> None:
    """Add d(output) / d(leaf), weighted by ``gradient``, to ``leaf.grad`` of every leaf that requires it.

    Each leaf's gradient is dense memory of its own: what optimizers and clipping write in place is nobody else's.
    """
    pending: dict[Node, list[Gradient | Product | None]] = {}
    youngest_first: list[tuple[int, Node]] = []
    taken = {gradient.owner}  # memory that a leaf's gradient must not share
    late: list[tuple[Tensor, SparseRows]] = []  # what leaves' dense gradients are due, once nobody else reads them

    def feed(tensor: Tensor, grad: Gradient | Product) -> None:
        node = tensor.node
        if node is None:
            _accumulate(tensor, _computed(grad), taken, late)
            return
        if node not in pending:
            pending[node] = [None] * node.outputs
            heappush(youngest_first, (-node.order, node))
        before = pending[node][tensor.output_index]
        pending[node][tensor.output_index] = grad if before is None else _sum(before, grad)

    feed(output, gradient)
    while youngest_first:
        _, node = heappop(youngest_first)
        grads = pending.pop(node)
        if node.backward is None:
            raise RuntimeError(
                f"[{node.name}] backward through a graph that an earlier backward freed: "
                "pass retain_graph=True to the earlier one, or run the forward pass again"
            )
        for tensor, version in zip(node.inputs, node.versions, strict=True):
            if tensor is not None and tensor.version != version:
                raise RuntimeError(
                    f"[{node.name}] an input of shape {tensor.shape} was changed in place after the forward pass"
                )
        results = node.backward(*(g if g is None or node.takes_products else _computed(g) for g in grads))
        for tensor, grad in zip(node.inputs, results, strict=True):
            if tensor is None or grad is None or not tensor.requires_grad:
                continue
            if grad.shape != tensor.shape:
                raise RuntimeError(f"[{node.name}] backward gave {grad.shape} for an input of shape {tensor.shape}")
            feed(tensor, grad)
        if not retain_graph:
            node.backward, node.inputs, node.versions = None, (), ()
    for leaf, rows in late:
        assert isinstance(leaf.raw_grad, _C.Tensor)
        _C.add_rows(leaf.raw_grad, rows.indices, rows.values)


def _accumulate(leaf: Tensor, grad: Gradient, taken: set[int], late: list[tuple[Tensor, SparseRows]]) -> None:
    held = leaf.raw_grad
    if isinstance(held, SparseRows) and isinstance(grad, _C.Tensor):
        late.append((leaf, held))
        held = None
    elif isinstance(grad, SparseRows) and isinstance(held, _C.Tensor) and held.owner in taken:
        late.append((leaf, grad))
        return
    if held is not None:
        grad = _sum(held, grad)
    elif isinstance(grad, _C.Tensor) and (grad.owner in taken or not grad.is_contiguous()):
        grad = _C.clone(grad)
    if isinstance(grad, _C.Tensor):
        taken.add(grad.owner)
    leaf.set_raw_grad(grad)
