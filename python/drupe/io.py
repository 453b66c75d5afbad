"""Checkpoints: named tensors in a safetensors file."""

from __future__ import annotations

import json
import math
import os
import secrets
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from drupe.tensor import Tensor, as_tensor, empty, get_default_device

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_METADATA = "__metadata__"

PathLike = str | os.PathLike[str]


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError('[io] checkpoints need the safetensors package: pip install "drupe[io]"') from error
    return safetensors


def save(path: PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a safetensors file: all of it, or, on an error, nothing.

    The file is written under another name beside ``path``, and then takes its place.

    Args:
        path: the file; what is there is replaced.
        tensors: name -> array (drupe.Tensor, NumPy, DLPack) of any strides. A module's ``state_dict()``, for example.
        metadata: name -> text, saved along.

    Raises:
        TypeError: a name or a metadata entry is no text, or an array is none or has a dtype that drupe has not.
        ValueError: a tensor is named ``__metadata__``.
        OSError: the file cannot be written.
        ImportError: safetensors is not installed.
    """
    safetensors = _safetensors()
    arrays: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"[save] a tensor's name is {name!r}: expected text")
        if name == _METADATA:
            raise ValueError(f'[save] a tensor is named "{_METADATA}", which the format keeps for itself')
        # safetensors writes the memory as it lies, so it must lie in C order.
        arrays[name] = np.ascontiguousarray(as_tensor(tensor).detach().numpy()).reshape(np.shape(tensor))
    texts = dict(metadata or {})
    for key, text in texts.items():
        if not (isinstance(key, str) and isinstance(text, str)):
            raise TypeError(f"[save] metadata is {key!r}: {text!r}: expected text")

    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"[save] {path} is a directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"[save] {path}: there is no directory {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb"):  # takes the permissions that new files have here; safetensors gives its own
            mode = os.stat(temporary).st_mode
        safetensors.numpy.save_file(arrays, temporary, metadata=texts or None)
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except safetensors.SafetensorError as error:
        raise OSError(f"[save] {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: PathLike) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, on the default device.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no safetensors file, damaged, or has a tensor that drupe cannot hold.
        ImportError: safetensors is not installed.
    """
    header, offset = _read_header(path)
    result = {}
    with open(path, "rb", buffering=0) as file:
        for name, entry in header.items():
            if name != _METADATA:
                try:
                    result[name] = _read_tensor(file, offset, entry)
                except ValueError as error:
                    raise ValueError(f"[load] {path}: tensor {name}: {error}") from None
    return result


def load_metadata(path: PathLike) -> dict[str, str]:
    """Return the texts that were saved along; errors as :func:`load`."""
    header, _ = _read_header(path)
    return dict(header.get(_METADATA) or {})


def _read_header(path: PathLike) -> tuple[dict[str, Any], int]:
    """Return the header, which safetensors has found to be valid, and where the data begins."""
    safetensors = _safetensors()
    if os.path.isdir(path):
        raise IsADirectoryError(f"[load] {path} is a directory")
    with open(path, "rb") as file:
        try:
            with safetensors.safe_open(os.fspath(path), framework="numpy"):
                pass
        except safetensors.SafetensorError as error:
            raise ValueError(f"[load] {path} is not a valid safetensors file: {error}") from error
        (length,) = struct.unpack("<Q", file.read(8))
        try:
            return json.loads(file.read(length), object_pairs_hook=_unique), 8 + length
        except ValueError as error:
            raise ValueError(f"[load] {path}: the header is damaged: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _read_tensor(file: FileIO, offset: int, entry: dict[str, Any]) -> Tensor:
    """Read straight into a new tensor's memory; from the host it goes on to the default device."""
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"drupe has no dtype {entry['dtype']}: expected one of {', '.join(_DTYPES)}")
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    tensor = empty(shape, dtype, device="cpu")
    if end - begin != tensor.nbytes or math.prod(shape) != tensor.size:
        raise ValueError(f"{end - begin} bytes hold no {dtype} of shape {shape}")
    memory = tensor.numpy().reshape(-1).view(np.uint8)
    file.seek(offset + begin)
    done = 0
    while done < memory.size:
        count = file.readinto(memory[done:].data)
        if not count:
            raise ValueError("the file ends too early")
        done += count
    if dtype == "bool":
        np.not_equal(memory, 0, out=memory.view(bool))  # any other byte is no bool
    return tensor.to(get_default_device())
