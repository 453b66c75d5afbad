"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from drupe.nn.module import Module


class ModuleList(Module):
    """A list of modules, named ``0``, ``1``, …

    Args:
        modules: the modules.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add a module at the end.

        Raises:
            TypeError: it is no Module.
        """
        if not isinstance(module, Module):
            raise TypeError(f"[{type(self).__name__}] expected a Module, got {type(module).__name__}")
        setattr(self, str(len(self)), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """One module after another: ``y = modules[n-1](… modules[0](x))``.

    Args:
        modules: the modules, named ``0``, ``1``, …
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """Apply each module to what the one before it gave."""
        for module in self:
            x = module(x)
        return x


class Identity(Module):
    """``y = x``."""

    def forward(self, x: Any) -> Any:
        """Return ``x``."""
        return x


class Flatten(Module):
    """Merge the dimensions from ``start_dim`` on: (B, C, H, W) -> (B, C H W).

    Args:
        start_dim: the first of the dimensions to merge.
    """

    def __init__(self, start_dim: int = 1) -> None:
        self.start_dim = start_dim

    def forward(self, x: Any) -> Any:
        """Return ``x`` with the last dimensions merged."""
        size = 1
        for extent in x.shape[self.start_dim :]:
            size *= extent
        return x.reshape((*x.shape[: self.start_dim], size))
