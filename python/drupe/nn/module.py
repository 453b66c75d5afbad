"""Module: the base of every layer and network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from drupe import ops
from drupe.autograd import is_grad_enabled
from drupe.nn.parameter import Buffer, Parameter
from drupe.tensor import DtypeLike, Tensor, as_tensor

T = TypeVar("T", Parameter, Buffer)
V = TypeVar("V")
Self = TypeVar("Self", bound="Module")


class Incompatible(NamedTuple):
    """What ``load_state_dict(…, strict=False)`` passed over."""

    missing: list[str]
    unexpected: list[str]


class _Copy(NamedTuple):
    """What a layer made from some of its tensors, and which these were: the raw tensor and its version of each."""

    value: Any
    sources: list[tuple[Any, int]]


class _Quantization(NamedTuple):
    """How a layer is to quantise its weight: arguments of :func:`drupe.ops.quantize_weight`."""

    dtype: str
    group: int | None


class Module:
    """A function with parameters.

    What is assigned to an attribute belongs to the module under that name: a :class:`Parameter` is trained and
    saved, a :class:`Buffer` saved, another Module contributes its own under ``name.``; those in lists, tuples and
    dicts count too, as ``name.0`` or ``name.key``. A plain ``Tensor`` is just an attribute. Subclasses define
    ``forward``; calling the module calls it.

    Attributes:
        training: whether ``train()`` or ``eval()`` was called last; ``Dropout`` and ``BatchNorm2d`` look at it.
    """

    training: bool = True
    forward: Callable[..., Any]
    _keeps_copy: bool = False
    _copy: _Copy | None = None
    _quantization: _Quantization | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``forward`` of the same arguments."""
        return self.forward(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        if isinstance(value, Tensor):
            if isinstance(before, Parameter) and not isinstance(value, Parameter):
                raise TypeError(
                    f"[{type(self).__name__}] {name} is a Parameter: assign another one, or write into it with "
                    f"{name}.copy_from(…)"
                )
            if isinstance(before, Buffer) and not isinstance(value, Buffer):
                value = Buffer(value)
        object.__setattr__(self, name, value)

    # ---- what it holds

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the modules held directly."""
        for name, value in _members(vars(self)):
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Yield the modules held directly."""
        for _, module in self.named_children():
            yield module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) of this module and all below it, each once, parents first."""
        seen: set[int] = set()
        for name, module in self._paths(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it, each once, parents first."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), each parameter once, under its first name."""
        return _unique(self._tensors(Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """Yield every parameter once: what an optimizer takes."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Yield (dotted name, buffer), each buffer once, under its first name."""
        return _unique(self._tensors(Buffer))

    def buffers(self) -> Iterator[Buffer]:
        """Yield every buffer once."""
        for _, buffer in self.named_buffers():
            yield buffer

    def _paths(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield every way to every module: one that is held twice comes twice."""
        yield prefix, self
        for name, module in self.named_children():
            yield from module._paths(f"{prefix}.{name}" if prefix else name)

    def _tensors(self, kind: type[T]) -> Iterator[tuple[str, T]]:
        for prefix, module in self._paths():
            for name, value in _members(vars(module)):
                if isinstance(value, kind):
                    yield f"{prefix}.{name}" if prefix else name, value

    # ---- saving and loading

    def state_dict(self) -> dict[str, Tensor]:
        """Return all parameters and buffers by dotted name, sharing their memory; a shared one under each name."""
        state: dict[str, Tensor] = {}
        for prefix, module in self._paths():
            for kind in (Parameter, Buffer):
                for name, value in _members(vars(module)):
                    if isinstance(value, kind):
                        state[f"{prefix}.{name}" if prefix else name] = value.detach()
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Incompatible:
        """Copy arrays into the parameters and buffers of the same names. Nothing is copied when anything is wrong.

        Args:
            state: name -> array (drupe.Tensor, NumPy, DLPack) of the same shape. Dtypes are converted, but not from
                float to integer.
            strict: names that are missing or unexpected are an error.

        Returns:
            The names that were missing and unexpected: two empty lists with ``strict``.

        Raises:
            ValueError: missing or unexpected names, or shapes that differ; all of them are listed.
            TypeError: an array's dtype cannot be converted, or it is no array.
        """
        targets = self.state_dict()
        owners = dict(self._tensors(Parameter)) | dict(self._tensors(Buffer))
        missing = [name for name in targets if name not in state]
        unexpected = [name for name in state if name not in targets]
        faults = []
        if strict:
            faults += [f"missing: {', '.join(missing)}"] if missing else []
            faults += [f"unexpected: {', '.join(map(str, unexpected))}"] if unexpected else []
        sources = {name: as_tensor(state[name]) for name in targets if name in state}
        for name, source in sources.items():
            target = targets[name]
            if source.shape != target.shape:
                faults.append(f"{name}: shape is {source.shape}, expected {target.shape}")
            if "float" in source.raw.dtype and "float" not in target.raw.dtype:
                raise TypeError(f"[load_state_dict] {name} is {source.raw.dtype}, expected {target.raw.dtype}")
            if target.raw.readonly:
                faults.append(f"{name}: shares read-only memory")
        if faults:
            raise ValueError(f"[load_state_dict] {type(self).__name__} does not fit:\n  " + "\n  ".join(faults))
        for name, source in sources.items():
            owners[name].copy_from(source)
        self._unpack_weights()
        return Incompatible(missing, unexpected)

    # ---- changing all of it

    def apply(self: Self, function: Callable[[Module], Any]) -> Self:
        """Call ``function`` with every module, children first, and return self; for initialisation, say."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Set ``training`` here and in all modules below, and return self."""
        for module in self.modules():
            module.training = mode
        if mode:
            self._unpack_weights()
        return self

    def eval(self: Self) -> Self:
        """Clear ``training`` here and in all modules below, and return self."""
        return self.train(False)

    def pack_weights(self: Self) -> Self:
        """Prepare the layers below for inference on the CPU, and return self: the same results, sooner.

        From its first pass on each layer that can keeps a copy of its weights in the order in which the kernels read
        them (:func:`drupe.ops.pack_weight`), outside of ``state_dict``. The copy is dropped by ``train()``,
        ``load_state_dict``, ``copy_from``, a move, a conversion, and a forward pass that records gradients of the
        weight; call this again afterwards, and after any change of a weight through memory that it shares.
        """
        for module in self.modules():
            module._keeps_copy, module._copy, module._quantization = True, None, None
        return self

    def quantize_weights(self: Self, dtype: str = "int8", *, group: int | None = None) -> Self:
        """Let the linear layers below multiply with weights of small integers, and return self: to decode on the CPU.

        As :meth:`pack_weights`, but ``Linear``, and what derives from it, keeps a copy that
        :func:`drupe.ops.quantize_weight` makes, whose docstring states the error; other layers keep what
        ``pack_weights`` would have them keep. The parameters, and with them ``state_dict``, stay as they are, and so
        does what else reads them: the word vectors of a tied head, say. Call it for parts of a network, and
        ``pack_weights`` for others, to quantise only those. Passes that record gradients are for other weights.

        Args:
            dtype: ``"int8"`` or ``"int4"``.
            group: how many neighbours along the input features share a scale: by default all of them for int8, 64 for
                int4.

        Raises:
            ValueError: another ``dtype``, or a group below 1.
        """
        ops.quantize_weight(np.zeros((1, 1), np.float32), dtype, group=group)  # complains now, not in the first pass
        self.pack_weights()
        for module in self.modules():
            module._quantization = _Quantization(dtype, group)
        return self

    def _unpack_weights(self) -> None:
        for module in self.modules():
            module._drop_copy()

    def _drop_copy(self) -> None:
        self._keeps_copy, self._copy, self._quantization = False, None, None

    def _packed(self, make: Callable[[], V], *tensors: Tensor | None) -> V | None:
        """Return ``make()``, kept from the first call on, while :meth:`pack_weights` or the other holds; else None.

        The copy is dropped once one of the tensors that it is made from has changed, or is to get a gradient.
        """
        if not self._keeps_copy:
            return None
        sources = [(None, 0) if t is None else (t.raw, t.version) for t in tensors]
        if is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            self._drop_copy()
        elif self._copy is None:
            self._copy = _Copy(make(), sources)
        elif sources != self._copy.sources:
            self._drop_copy()
        return None if self._copy is None else self._copy.value

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Freeze (False) or train (True) all parameters, and return self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    @property
    def device(self) -> str:
        """Where the parameters and buffers lie: ``"cpu"`` or ``"cuda:<index>"``; that of the first one."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), "cpu")

    def to(self: Self, device: str) -> Self:
        """Move the parameters and buffers to a device, in place, dropping gradients, and return self.

        Args:
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.

        Raises:
            ValueError: no device has that name.
            RuntimeError: there is no such device here, and why.
        """
        for tensor in [*self.parameters(), *self.buffers()]:
            tensor.raw, tensor.grad = tensor.detach().to(device).raw, None
        return self

    def astype(self: Self, dtype: DtypeLike) -> Self:
        """Convert the float parameters and buffers, in place, dropping gradients, and return self.

        Buffers, which are statistics, become float32 where the parameters become 16 bits wide: the ops want them so.

        Raises:
            TypeError: ``dtype`` is no float dtype.
        """
        for tensor in [*self.parameters(), *self.buffers()]:
            if "float" in tensor.raw.dtype:
                converted = as_tensor(tensor.detach(), dtype).raw
                if "float" not in converted.dtype:
                    raise TypeError(f"[astype] expected a float dtype, got {converted.dtype}")
                if isinstance(tensor, Buffer) and converted.dtype in ("float16", "bfloat16"):
                    converted = as_tensor(tensor.detach(), "float32").raw
                tensor.raw, tensor.grad = converted, None
        return self

    # ---- repr

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the repr, before the children."""
        return ""

    def __repr__(self) -> str:
        lines = [f"{name}: {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        head = [self.extra_repr()] if self.extra_repr() else []
        return "\n  ".join([f"{type(self).__name__}(", *head, *lines]) + "\n)"


def _members(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) with lists, tuples and dicts opened: name.0, name.key."""
    for name, value in values.items():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for inner, item in _members(value):
                yield f"{name}.{inner}", item
        else:
            yield str(name), value


def _unique(named: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
