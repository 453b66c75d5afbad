"""What a layer holds: parameters, which are trained, and buffers, which are saved with them."""

from __future__ import annotations

from typing import Any

from drupe.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a :class:`Module` lists in ``parameters()`` and saves.

    Args:
        x: any array of a float dtype; its memory is shared where possible.
        requires_grad: False freezes it: it is still saved, but not trained.
    """

    __slots__ = ()

    def __init__(self, x: Any, *, requires_grad: bool = True) -> None:
        super().__init__(x.raw if isinstance(x, Tensor) else x, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return f"Parameter({self.raw.dtype} {self.shape}{'' if self.requires_grad else ', frozen'})"


class Buffer(Tensor):
    """A tensor that a :class:`Module` saves but does not train, such as a running mean."""

    __slots__ = ()

    def __init__(self, x: Any) -> None:
        super().__init__(x.raw if isinstance(x, Tensor) else x)

    def __repr__(self) -> str:
        return f"Buffer({self.raw.dtype} {self.shape})"
