"""What models with Hugging Face's checkpoints share: the names of activations, and the two files of a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe import io

# Their name -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}


def write(directory: str | Path, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a directory, which is made where it is missing."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    io.save(directory / "model.safetensors", state, {"format": "pt"})


def read_config(directory: str | Path) -> dict[str, Any]:
    """Return what ``config.json`` holds."""
    return dict(json.loads((Path(directory) / "config.json").read_text()))


def read_state(directory: str | Path) -> dict[str, Any]:
    """Return the tensors of ``model.safetensors``."""
    return io.load(Path(directory) / "model.safetensors")
