"""Checkpoints: parameters under their own names and, beside them, what the optimizer needs to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe import io, optim
from drupe.nn import Module

_PREFIX = "optimizer."


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, and all that training needs to go on, to one safetensors file: all of it or nothing.

    Args:
        path: the file; what is there is replaced.
        model: its parameters and buffers are saved under their own names.
        optimizer: its tensors are saved as ``optimizer.<parameter number>.<name>``.
        state: anything that JSON can express, given back by :func:`load_checkpoint`.

    Raises:
        TypeError: ``state`` holds something else.
    """
    tensors: dict[str, Any] = dict(model.state_dict())
    metadata = {"format": "pt", "drupe.state": json.dumps(dict(state or {}))}
    if optimizer is not None:
        saved = optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for number, entry in saved["state"].items():
            numbers[str(number)] = {name: value for name, value in entry.items() if isinstance(value, int | float)}
            for name, value in entry.items():
                if name not in numbers[str(number)]:
                    tensors[f"{_PREFIX}{number}.{name}"] = value
        metadata["drupe.optimizer"] = json.dumps({"state": numbers, "param_groups": saved["param_groups"]})
    io.save(path, tensors, metadata)


def load_checkpoint(path: str | Path, model: Module, optimizer: optim.Optimizer | None = None) -> dict[str, Any]:
    """Copy into a model and an optimizer what :func:`save_checkpoint` wrote.

    Args:
        path: the file.
        model: of the same parameters.
        optimizer: over the same parameters in the same groups; left out, its part of the file is passed over.

    Returns:
        The ``state`` that was saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was written for another model or optimizer; the model is left as it was.
    """
    tensors = io.load(path)
    metadata = io.load_metadata(path)
    parameters = {name: value for name, value in tensors.items() if not name.startswith(_PREFIX)}
    if optimizer is not None and "drupe.optimizer" not in metadata:
        raise ValueError(f"[load_checkpoint] {path} was saved without an optimizer")
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.load_state_dict(parameters)
    if optimizer is not None:
        try:
            optimizer.load_state_dict(_optimizer_state(json.loads(metadata["drupe.optimizer"]), tensors))
        except (KeyError, TypeError, ValueError) as error:
            model.load_state_dict(before)
            raise ValueError(f"[load_checkpoint] {path} does not fit the optimizer: {error}") from error
    state: dict[str, Any] = json.loads(metadata.get("drupe.state", "{}"))
    return state


def _optimizer_state(saved: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    state = {int(number): dict(entry) for number, entry in saved["state"].items()}
    for name, value in tensors.items():
        if name.startswith(_PREFIX):
            number, _, key = name.removeprefix(_PREFIX).partition(".")
            state[int(number)][key] = value
    return {"state": state, "param_groups": saved["param_groups"]}
