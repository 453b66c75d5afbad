"""What all optimizers share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drupe import cuda, ops
from drupe.autograd import Gradient, SparseRows
from drupe.tensor import Tensor, as_tensor, full, tensor, zeros

Params = Iterable[Tensor] | Iterable[Mapping[str, Any]]

# How 16-bit parameters, and states, are kept: options of every optimizer. What was saved before there were any lacks
# them.
_PRECISION: dict[str, Any] = {
    "master_weights": False,
    "stochastic_rounding": False,
    "seed": 0,
    "state_dtype": "float32",
}
_STATE_DTYPES = ("float32", "bfloat16", "uint8")
_NARROW_SIZE = 4096  # elements of the smallest parameter whose states are worth narrowing
_STATE_BLOCK = 256  # elements that share a scale


# Where an optimizer's streams begin: far from those that drupe.random counts from 0, whose seed may be the same.
_ROUNDING = 1 << 63


def _has_master(p: Tensor, group: Mapping[str, Any]) -> bool:
    return bool(group["master_weights"]) and p.raw.dtype in ("float16", "bfloat16")


class _Group(dict[str, Any]):
    """A group whose learning rate a device reads: what is set here goes there."""

    def __init__(self, options: Mapping[str, Any], optimizer: str, device: str) -> None:
        super().__init__(options)
        self.optimizer = optimizer
        self.rate = full((), options["lr"], "float64", device=device)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr" and value != self["lr"]:
            if cuda.is_capturing(self.rate.device):
                raise RuntimeError(
                    f"[{self.optimizer}] lr is set while a graph is captured, and each replay would set it again: "
                    "set it between replays"
                )
            self.rate.copy_from(full((), value, "float64", device=self.rate.device))
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value


class Optimizer:
    """What all optimizers share: groups, states, and their saving.

    Every group has three options for float16 and bfloat16 parameters, which else lose small updates to rounding.
    ``master_weights`` keeps a float32 copy of each in its state, as ``"master"``, made at its first step: from then on
    the copy leads, and the parameter is its rounded value. ``stochastic_rounding`` rounds the parameters up or down by
    chance, so that the mean is right; ``seed`` is that of the draws, which depend on the seed, the number of the group
    and the step alone: give two optimizers two seeds. Other parameters are as without them.

    ``state_dtype`` is what the states are kept in: ``"float32"``; ``"bfloat16"``; or ``"uint8"``, 8 bits in blocks of
    256 elements with a float32 ``"scale"`` each, a quarter of the memory. :mod:`drupe.ops.optimizer` says how they are
    rounded, by draws of the same ``seed``. Parameters below 4096 elements or of float64 keep wide states all the same,
    and so must those of sparse gradients and on a GPU. It counts for states that are made from then on.

    With ``capturable``, steps can be captured in a :class:`drupe.cuda.Graph`, and replayed: the numbers of steps, and
    the learning rates, lie on the parameters' device. A rate that is set in a group (by a schedule, say) counts from
    the next step or replay on that is queued on the same stream; the other options are captured as they are. All
    states are made at once, and :meth:`load_state_dict` writes into them.

    Args:
        params: tensors that require gradients, or groups of them.
        defaults: every option of a group, with the value where the group does not say.
        capturable: let steps be captured. The parameters must lie on a device.

    Attributes:
        param_groups: dicts of ``"params"`` and the options; the options may be changed between steps.
        state: per parameter (by identity) a dict of its state.
    """

    name = "optimizer"

    def __init__(self, params: Params, defaults: dict[str, Any], *, capturable: bool = False) -> None:
        self.defaults = defaults
        self.capturable = capturable
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Any]] = {}
        if isinstance(params, Tensor | Mapping):
            raise TypeError(f"[{self.name}] params is one {type(params).__name__}: expected several, in a list")
        given: list[Any] = list(params)
        if not given:
            raise ValueError(f"[{self.name}] there are no parameters")
        if not isinstance(given[0], Mapping):
            given = [{"params": given}]
        for group in given:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, with options of its own.

        Raises:
            ValueError: an unknown or invalid option, or a parameter that is there already.
            TypeError: something that is no tensor with a gradient.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'[{self.name}] a group is a dict with "params", got {type(group).__name__}')
        unknown = sorted(set(group) - {"params"} - set(_PRECISION) - set(self.defaults))
        if unknown:
            raise ValueError(
                f"[{self.name}] unknown options {unknown}: expected {sorted({**_PRECISION, **self.defaults})}"
            )
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"[{self.name}] params[{i}] is {type(p).__name__}: expected a drupe.Tensor")
            if not p.requires_grad or p.node is not None:
                raise ValueError(f"[{self.name}] params[{i}] is no leaf that requires a gradient")
            if id(p) in seen:
                raise ValueError(f"[{self.name}] params[{i}] of shape {p.shape} is given twice")
            seen.add(id(p))
        options = {**_PRECISION, **self.defaults, **group, "params": params}
        self._check_options(options)
        if self.capturable:
            options = self._capturable_group(options)
        self.param_groups.append(options)

    def _capturable_group(self, options: dict[str, Any]) -> dict[str, Any]:
        params: list[Tensor] = options["params"]
        for i, p in enumerate(params):
            if p.device == "cpu" or p.device != params[0].device:
                raise ValueError(
                    f"[{self.name}] params[{i}] lies on {p.device}, params[0] on {params[0].device}: "
                    "capturable=True needs the parameters of a group on one device, which is not the CPU"
                )
        if not params:
            return options
        for p in params:
            self._state_of(p, options)
        return _Group(options, self.name, params[0].device)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, *, grad_scale: float | Tensor = 1.0) -> None:
        """Update every parameter that has a gradient.

        Args:
            grad_scale: a factor of all gradients, at no cost; on a device also as a float64 tensor of no dimensions.
        """
        for number, group in enumerate(self.param_groups):
            if self.capturable:
                self._captured_step(number, group, grad_scale)
                continue
            device = group["params"][0].device if group["params"] else "cpu"
            if device != "cpu" and cuda.is_capturing(device):
                raise RuntimeError(f"[{self.name}] a step that is captured needs an optimizer with capturable=True")
            batches: dict[int, tuple[list[Tensor], list[Gradient]]] = {}
            for p in group["params"]:
                grad = p.raw_grad
                if grad is None:
                    continue
                state = self._state_of(p, group)
                params, grads = batches.setdefault(state["step"], ([], []))
                params.append(p)
                grads.append(grad)
            # Parameters that missed steps are corrected for fewer: one sweep for each count.
            for done, (params, grads) in batches.items():
                wrapped = [g if isinstance(g, SparseRows) else Tensor(g) for g in grads]
                precision = self._precision(number, params, done + 1)
                self._update(group, params, wrapped, done + 1, grad_scale, precision)
                for p in params:
                    self.state[id(p)]["step"] = done + 1

    def _captured_step(self, number: int, group: dict[str, Any], grad_scale: float | Tensor) -> None:
        params = [p for p in group["params"] if p.raw_grad is not None]
        if not params:
            return
        for p in params:
            self._check_known(p, group)
        grads = [g if isinstance(g, SparseRows) else Tensor(g) for g in (p.raw_grad for p in params)]
        assert isinstance(group, _Group)
        on_device = {**group, "lr": group.rate}
        precision = self._precision(number, params, 0)
        self._update(on_device, params, grads, self._states(params, "step"), grad_scale, precision)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if self.capturable and id(p) not in self.state:
            self.state[id(p)] = {"step": zeros((), "int64", device=p.device)}
        state = self.state.setdefault(id(p), {"step": 0})
        names = self._state_names(group)
        if any(name not in state for name in names):
            for name, (dtype, shape) in self._layout(p, group).items():
                if name not in state and name != "master":
                    state[name] = zeros(shape, dtype, device=p.device)
        if not _has_master(p, group):
            state.pop("master", None)
        elif "master" not in state:
            state["master"] = ops.cast(p.detach(), "float32")
        return state

    def _layout(self, p: Tensor, group: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the dtype and the shape of each tensor in a parameter's state."""
        size = math.prod(p.shape)
        dtype = "float64" if p.raw.dtype == "float64" else "float32"
        if dtype == "float32" and size >= _NARROW_SIZE:
            dtype = group["state_dtype"]
        names = self._state_names(group)
        layout = {name: (dtype, tuple(p.shape)) for name in names}
        if names and dtype == "uint8":
            layout["scale"] = ("float32", (len(names), -(-size // _STATE_BLOCK)))
        if _has_master(p, group):
            layout["master"] = ("float32", tuple(p.shape))
        return layout

    def _check_known(self, p: Tensor, group: Mapping[str, Any]) -> None:
        """Raise where these options want other states than those that captured graphs may know."""
        wanted, known = {"step", *self._layout(p, group)}, set(self.state[id(p)])
        if wanted != known:
            raise ValueError(
                f"[{self.name}] the options want the states {sorted(wanted)}, made were {sorted(known)}: with "
                "capturable=True they stay as they are"
            )

    def _precision(self, number: int, params: Sequence[Tensor], step: int) -> dict[str, Any]:
        """Return what an op is told of roundings. Groups, and their steps, draw from streams of their own."""
        group = self.param_groups[number]
        masters = [self.state[id(p)].get("master") for p in params] if group["master_weights"] else None
        scales = [self.state[id(p)].get("scale") for p in params] if group["state_dtype"] == "uint8" else None
        rounding = {"stochastic_rounding": group["stochastic_rounding"], "seed": group["seed"]}
        return {"masters": masters, "scales": scales, **rounding, "offset": _ROUNDING + (number << 32) + step}

    def _states(self, params: Sequence[Tensor], name: str) -> list[Tensor]:
        return [self.state[id(p)][name] for p in params]

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for name, value in group.items():
            if name not in ("params", "betas", "seed", "state_dtype") and not isinstance(value, bool):
                self._check_number(name, value)
        if group["state_dtype"] not in _STATE_DTYPES:
            raise ValueError(
                f"[{self.name}] state_dtype is {group['state_dtype']!r}: expected one of {', '.join(_STATE_DTYPES)}"
            )
        seed = group["seed"]
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"[{self.name}] seed is {seed}: expected 0 to 2^64 - 1")
        if group["master_weights"] and group["stochastic_rounding"]:
            raise ValueError(f"[{self.name}] master_weights and stochastic_rounding exclude each other")
        if self.capturable and group["stochastic_rounding"]:
            raise ValueError(
                f"[{self.name}] capturable and stochastic_rounding exclude each other: replays would repeat"
            )

    def _check_number(self, name: str, value: Any, below: float = math.inf) -> None:
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value < below:
            bound = "a finite number of at least 0" if math.isinf(below) else f"a number in [0, {below})"
            raise ValueError(f"[{self.name}] {name} is {value}: expected {bound}")

    def _state_names(self, group: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of the tensors that a parameter's state consists of."""
        raise NotImplementedError

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor | SparseRows],
        step: int | list[Tensor],
        grad_scale: float | Tensor,
        precision: dict[str, Any],
    ) -> None:
        """Update these parameters; it is their step-th step, or those of counts on the device, which it counts up.

        ``precision`` goes to the op.
        """
        raise NotImplementedError

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """Return the options of the groups and the states, parameters numbered in their order.

        The tensors in it are the optimizer's own: copy them to keep them through further steps.
        """
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                numbers[id(p)] = len(numbers)
            options = {name: value for name, value in group.items() if name != "params"}
            groups.append({**options, "params": [numbers[id(p)] for p in group["params"]]})
        state = {numbers[key]: {**value, "step": int(value["step"])} for key, value in self.state.items()}
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave for parameters of the same shapes in the same groups.

        Arrays are copied. Nothing is changed unless all of it fits.

        Raises:
            ValueError: other groups, options, parameters, shapes or dtypes.
        """
        if set(state_dict) != {"state", "param_groups"}:
            raise ValueError(f"[{self.name}] the state has {sorted(state_dict)}: expected param_groups and state")
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"[{self.name}] the state has {len(saved_groups)} groups, here are {len(self.param_groups)}"
            )
        params: list[tuple[Tensor, dict[str, Any]]] = []
        new_groups = []
        for i, (given, group) in enumerate(zip(saved_groups, self.param_groups, strict=True)):
            saved = {**_PRECISION, **given}
            if set(saved) != set(group):
                raise ValueError(f"[{self.name}] group {i} of the state has {sorted(saved)}: expected {sorted(group)}")
            if len(saved["params"]) != len(group["params"]):
                raise ValueError(
                    f"[{self.name}] group {i} of the state has {len(saved['params'])} parameters, "
                    f"here are {len(group['params'])}"
                )
            options = {**saved, "params": group["params"]}
            if "betas" in options:
                options["betas"] = tuple(options["betas"])
            self._check_options(options)
            new_groups.append(options)
            params += [(p, options) for p in group["params"]]
        states = self._checked_states(state_dict["state"], params)
        if self.capturable:
            for p, options in params:
                self._check_known(p, options)
            self._write_states(states)
        else:
            self.state = states
        for group, options in zip(self.param_groups, new_groups, strict=True):
            group.update(options)

    def _write_states(self, states: dict[int, dict[str, Any]]) -> None:
        """Write into the states that captured graphs know; those of other parameters start over."""
        for p in (p for group in self.param_groups for p in group["params"]):
            new = states.get(id(p))
            for name, held in self.state[id(p)].items():
                if name == "step":
                    value = full((), new["step"] if new else 0, "int64", device=held.device)
                elif new:
                    value = new[name]
                else:
                    value = ops.cast(p.detach(), "float32") if name == "master" else zeros(held.shape, held.dtype)
                held.copy_from(value)

    def _checked_states(
        self, saved: Mapping[Any, Mapping[str, Any]], params: list[tuple[Tensor, dict[str, Any]]]
    ) -> dict[int, dict[str, Any]]:
        states: dict[int, dict[str, Any]] = {}
        for key, entry in saved.items():
            number = int(key)
            if not 0 <= number < len(params):
                raise ValueError(f"[{self.name}] the state is for parameter {number}, here are {len(params)}")
            p, group = params[number]
            layout = self._layout(p, group)
            if set(entry) != {"step", *layout}:
                expected = sorted({"step", *layout})
                raise ValueError(
                    f"[{self.name}] the state of parameter {number} has {sorted(entry)}: expected {expected}"
                )
            state: dict[str, Any] = {"step": int(entry["step"])}
            for name, (dtype, shape) in sorted(layout.items()):
                array = as_tensor(entry[name])
                if array.shape != shape or array.raw.dtype != dtype:
                    raise ValueError(
                        f"[{self.name}] {name} of parameter {number} is {array.raw.dtype} {array.shape}: "
                        f"expected {dtype} {shape}"
                    )
                state[name] = tensor(array).to(p.device)
            states[id(p)] = state
        return states
