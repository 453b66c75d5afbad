"""What all optimizers share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drupe.autograd import Gradient, SparseRows
from drupe.tensor import Tensor, as_tensor, tensor, zeros

Params = Iterable[Tensor] | Iterable[Mapping[str, Any]]


class Optimizer:
    """What all optimizers share: groups, states, and their saving.

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
        unknown = sorted(set(group) - {"params"} - set(self.defaults))
        if unknown:
            raise ValueError(f"[{self.name}] unknown options {unknown}: expected {sorted(self.defaults)}")
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
        full = {**self.defaults, **group, "params": params}
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
        for group in self.param_groups:
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
                self._update(group, params, wrapped, done + 1, grad_scale)
                for p in params:
                    self.state[id(p)]["step"] = done + 1

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state.setdefault(id(p), {"step": 0})
        dtype = "float64" if p.raw.dtype == "float64" else "float32"
        for name in self._state_names(group):
            if name not in state:
                state[name] = zeros(p.shape, dtype, device=p.device)
        return state

    def _states(self, params: Sequence[Tensor], name: str) -> list[Tensor]:
        return [self.state[id(p)][name] for p in params]

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for name, value in group.items():
            if name not in ("params", "betas") and not isinstance(value, bool):
                self._check_number(name, value)

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
    ) -> None:
        """Update these parameters; it is their step-th step."""
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
        for i, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=True)):
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
            expected = {"step", *self._state_names(group)}
            if set(entry) != expected:
                raise ValueError(
                    f"[{self.name}] the state of parameter {number} has {sorted(entry)}: expected {sorted(expected)}"
                )
            dtype = "float64" if p.raw.dtype == "float64" else "float32"
            state: dict[str, Any] = {"step": int(entry["step"])}
            for name in self._state_names(group):
                array = as_tensor(entry[name])
                if array.shape != p.shape or array.raw.dtype != dtype:
                    raise ValueError(
                        f"[{self.name}] {name} of parameter {number} is {array.raw.dtype} {array.shape}: "
                        f"expected {dtype} {p.shape}"
                    )
                state[name] = tensor(array).to(p.device)
            states[id(p)] = state
        return states
