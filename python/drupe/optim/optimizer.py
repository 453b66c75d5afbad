"""What all optimizers share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drupe import ops
from drupe.autograd import Gradient, SparseRows
from drupe.tensor import Tensor, as_tensor, tensor, zeros

Params = Iterable[Tensor] | Iterable[Mapping[str, Any]]

# How 16-bit parameters are kept: options of every optimizer. States that were saved before there were any lack them.
_PRECISION: dict[str, Any] = {"master_weights": False, "stochastic_rounding": False, "seed": 0}


def _has_master(p: Tensor, group: Mapping[str, Any]) -> bool:
    return bool(group["master_weights"]) and p.raw.dtype in ("float16", "bfloat16")


class Optimizer:
    """What all optimizers share: groups, states, and their saving.

    Every group has three options for float16 and bfloat16 parameters, which else lose small updates to rounding.
    ``master_weights`` keeps a float32 copy of each in its state, as ``"master"``, made at its first step: from then on
    the copy leads, and the parameter is its rounded value. ``stochastic_rounding`` rounds the parameters up or down by
    chance, so that the mean is right; ``seed`` is that of the draws, which depend on the seed, the number of the group
    and the step alone. Other parameters are as without them.

    Args:
        params: tensors that require gradients, or groups of them.
        defaults: every option of a group, with the value where the group does not say.

    Attributes:
        param_groups: dicts of ``"params"`` and the options; the options may be changed between steps.
        state: per parameter (by identity) a dict of its state.
    """

    name = "optimizer"

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
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
        full = {**_PRECISION, **self.defaults, **group, "params": params}
        self._check_options(full)
        self.param_groups.append(full)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, *, grad_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient.

        Args:
            grad_scale: a factor of all gradients, at no cost.
        """
        for number, group in enumerate(self.param_groups):
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

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state.setdefault(id(p), {"step": 0})
        dtype = "float64" if p.raw.dtype == "float64" else "float32"
        for name in self._state_names(group):
            if name not in state:
                state[name] = zeros(p.shape, dtype, device=p.device)
        if not _has_master(p, group):
            state.pop("master", None)
        elif "master" not in state:
            state["master"] = ops.cast(p.detach(), "float32")
        return state

    def _precision(self, number: int, params: Sequence[Tensor], step: int) -> dict[str, Any]:
        """Return what an op is told of 16-bit parameters. Groups, and their steps, draw from streams of their own."""
        group = self.param_groups[number]
        masters = [self.state[id(p)].get("master") for p in params] if group["master_weights"] else None
        rounding = {"stochastic_rounding": group["stochastic_rounding"], "seed": group["seed"]}
        return {"masters": masters, **rounding, "offset": (number << 32) + step}

    def _states(self, params: Sequence[Tensor], name: str) -> list[Tensor]:
        return [self.state[id(p)][name] for p in params]

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for name, value in group.items():
            if name not in ("params", "betas", "seed") and not isinstance(value, bool):
                self._check_number(name, value)
        seed = group["seed"]
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"[{self.name}] seed is {seed}: expected 0 to 2^64 - 1")
        if group["master_weights"] and group["stochastic_rounding"]:
            raise ValueError(f"[{self.name}] master_weights and stochastic_rounding exclude each other")

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
        step: int,
        grad_scale: float,
        precision: dict[str, Any],
    ) -> None:
        """Update these parameters; it is their step-th step. ``precision`` goes to the op."""
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
        state = {numbers[key]: dict(value) for key, value in self.state.items()}
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
        self.state = self._checked_states(state_dict["state"], params)
        for group, options in zip(self.param_groups, new_groups, strict=True):
            group.update(options)

    def _checked_states(
        self, saved: Mapping[Any, Mapping[str, Any]], params: list[tuple[Tensor, dict[str, Any]]]
    ) -> dict[int, dict[str, Any]]:
        states: dict[int, dict[str, Any]] = {}
        for key, entry in saved.items():
            number = int(key)
            if not 0 <= number < len(params):
                raise ValueError(f"[{self.name}] the state is for parameter {number}, here are {len(params)}")
            p, group = params[number]
            names = [*self._state_names(group), *(["master"] if _has_master(p, group) else [])]
            expected = {"step", *names}
            if set(entry) != expected:
                raise ValueError(
                    f"[{self.name}] the state of parameter {number} has {sorted(entry)}: expected {sorted(expected)}"
                )
            dtype = "float64" if p.raw.dtype == "float64" else "float32"
            state: dict[str, Any] = {"step": int(entry["step"])}
            for name in names:
                array = as_tensor(entry[name])
                if array.shape != p.shape or array.raw.dtype != dtype:
                    raise ValueError(
                        f"[{self.name}] {name} of parameter {number} is {array.raw.dtype} {array.shape}: "
                        f"expected {dtype} {p.shape}"
                    )
                state[name] = tensor(array).to(p.device)
            states[id(p)] = state
        return states
