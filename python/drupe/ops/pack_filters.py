"""A convolution's weight that is packed once for many images."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import Array
from drupe.ops._window import Padding, Pair, ints, paddings
from drupe.tensor import Tensor, to_raw


class PackedFilters:
    """What :func:`pack_filters` returns: the weight, and a copy of it in the order in which the kernels read it.

    Attributes:
        weight: (K, C / groups, R, S), contiguous, without a gradient; its memory is shared where it was so before.
    """

    __slots__ = ("packed", "raw", "weight")

    def __init__(self, weight: Array, packed: _C.PackedFilters) -> None:
        self.packed = packed
        self.raw = packed.weight
        self.weight = Tensor(self.raw) if isinstance(weight, Tensor) else weight


def pack_filters(
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> PackedFilters:
    """Copy a convolution's weight into the layout that this processor reads, so that :func:`conv2d` need not each time.

    Worth it for constant weights: the copy takes as many bytes as the weight (float16, and bfloat16 where the processor
    has no dot instruction: twice as many; transformed for minimal filtering by it: 16/9 times). There is none where the
    convolution would not read it: of several groups, by minimal filtering in other dtypes, on a GPU. A change of the
    weight does not reach it. After :func:`drupe.set_cpu_isa` chose other kernels the weight itself is read.

    Args:
        weight: (K, C / groups, R, S), float; any strides.
        stride, padding, dilation, groups, algorithm: as the convolution will have them.

    Returns:
        What ``conv2d`` takes for its weight.

    Raises:
        ValueError: a weight that is not of 4 dimensions, or options that :func:`conv2d` would refuse.
        TypeError: a dtype that is not float, options that are not whole numbers.

    Reference:
        K. Goto, R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 34(3), 2008, section 4.
    """
    op = "pack_filters"
    window = ints(op, "stride", stride), paddings(op, padding), ints(op, "dilation", dilation), groups
    return PackedFilters(weight, _C.pack_filters(to_raw(weight, op), *window, algorithm))
