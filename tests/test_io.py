from __future__ import annotations

import json
import os
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drupe
from interpreter import python
from reference import dtype

DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def file_of(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0,), (2, 0, 3), (1, 2, 1, 2, 1, 2, 1, 2)], ids=str)
def test_round_trip(device, path, rng, name, shape):
    array = np.asarray(rng.standard_normal(shape) * 3).astype(dtype(name))
    drupe.save(path, {"a": array, "b.c": drupe.tensor(array)})
    loaded = drupe.load(path)
    assert sorted(loaded) == ["a", "b.c"]
    for tensor in loaded.values():
        assert isinstance(tensor, drupe.Tensor)
        assert tensor.dtype == array.dtype
        assert tensor.shape == shape
        assert tensor.numpy().tobytes() == array.tobytes()
        tensor.numpy()[...] = 0  # it is ours to write


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[::2, 1::3],
        lambda x: x[::-1, ::-1],
        lambda x: np.broadcast_to(x[0], (5, 6)),
        lambda x: x.astype(">f8"),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float64).reshape(x.shape),
        lambda x: np.rec.fromarrays([x, x.astype(np.int8)], names="a,b").a,
    ],
    ids=["transposed", "sliced", "reversed", "broadcast", "big-endian", "misaligned", "structured"],
)
def test_layouts_are_straightened(path, rng, view):
    array = view(rng.standard_normal((4, 6)))
    drupe.save(path, {"numpy": array, "drupe": drupe.as_tensor(array), "parameter": drupe.nn.Parameter(array)})
    for tensor in drupe.load(path).values():
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_files_are_safetensors(path, rng):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"x": rng.standard_normal((3, 2)), "y": np.arange(4, dtype=np.int32)}
    drupe.save(path, arrays)
    theirs = safetensors_numpy.load_file(path)
    other = path.with_name("other")
    safetensors_numpy.save_file(arrays, other)
    ours = drupe.load(other)
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name].numpy(), array)


def test_metadata(path):
    drupe.save(path, {"a": np.ones(2)}, metadata={"step": "3", "ключ": "値"})
    assert drupe.load_metadata(path) == {"step": "3", "ключ": "値"}
    assert list(drupe.load(path)) == ["a"]
    drupe.save(path, {"a": np.ones(2)})
    assert drupe.load_metadata(path) == {}


def test_empty_mapping_and_odd_names(path):
    drupe.save(path, {})
    assert drupe.load(path) == {}
    names = ["", " ", "a/b", "ü.weight", '"', "\n"]
    drupe.save(path, {name: np.full(i, i) for i, name in enumerate(names)})
    loaded = drupe.load(path)
    assert {name: loaded[name].tolist() for name in names} == {name: [i] * i for i, name in enumerate(names)}


def test_a_module_round_trips(path):
    source, target = (drupe.nn.Sequential(drupe.nn.Linear(3, 4), drupe.nn.Linear(4, 2)) for _ in range(2))
    drupe.save(str(path), source.state_dict())
    target.load_state_dict(drupe.load(path))
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(source(x).detach().numpy(), target(x).detach().numpy())


def test_save_replaces_and_leaves_nothing_beside(path):
    drupe.save(path, {"a": np.ones(3)})
    os.chmod(path, 0o644)
    link = path.with_name("link")
    link.symlink_to(path)
    drupe.save(link, {"a": np.zeros(2)})
    assert link.is_symlink()
    assert drupe.load(path)["a"].tolist() == [0, 0]
    assert sorted(p.name for p in path.parent.iterdir()) == ["link", "model.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"a": "text"}, None, TypeError, "expected an array"),
        ({3: np.ones(2)}, None, TypeError, "name is 3: expected text"),
        ({"__metadata__": np.ones(2)}, None, ValueError, "keeps for itself"),
        ({"a": np.ones(2, np.complex64)}, None, TypeError, "complex64 is not supported"),
        ({"a": np.ones(2)}, {"a": 1}, TypeError, "metadata is 'a': 1: expected text"),
        ({"\ud800": np.ones(2)}, None, ValueError, "surrogates not allowed"),
    ],
)
def test_a_failed_save_keeps_the_old_file(path, tensors, metadata, error, message):
    drupe.save(path, {"old": np.ones(3)})
    with pytest.raises(error, match=message):
        drupe.save(path, {"good": np.ones(4), **tensors}, metadata)
    assert list(drupe.load(path)) == ["old"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_keeps_the_old_file(path):
    drupe.save(path, {"old": np.ones(3)})
    script = """
import resource, sys, numpy as np, drupe
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    drupe.save(sys.argv[1], {"a": np.ones(10000)})
except OSError as error:
    print("OSError", error)
"""
    assert python(script, str(path)).startswith("OSError")
    assert list(drupe.load(path)) == ["old"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_paths_that_do_not_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        drupe.load(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError, match="directory"):
        drupe.load(tmp_path)
    with pytest.raises(IsADirectoryError, match="directory"):
        drupe.save(tmp_path, {"a": np.ones(2)})
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        drupe.save(tmp_path / "no" / "file", {"a": np.ones(2)})


TWO = b"\0" * 8
HOSTILE = {
    "no bytes": b"",
    "not even a length": b"abc",
    "length beyond the file": file_of(b"{}", length=50),
    "length of 2^63": file_of(b"{}", length=2**63),
    "length of 2^64 - 1": file_of(b"{}", length=2**64 - 1),
    "not JSON": file_of(b"hello"),
    "a list": file_of(b"[]"),
    "deep": file_of(b'{"a":' * 100_000),
    "bad UTF-8": file_of(b'{"\xff\xfe":1}'),
    "lone surrogate": file_of({"\ud800": entry()}, TWO),
    "truncated": file_of({"a": entry()}, b"\0" * 7),
    "longer": file_of({"a": entry()}, b"\0" * 9),
    "overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12),
    "same bytes": file_of({"a": entry(), "b": entry()}, TWO),
    "out of the file": file_of({"a": entry(), "b": entry(offsets=(8, 16))}, TWO),
    "backwards": file_of({"a": entry(offsets=(8, 0))}, TWO),
    "hole": file_of({"a": entry(offsets=(4, 12))}, b"\0" * 12),
    "negative offset": file_of({"a": entry(offsets=(-8, 0))}, TWO),
    "huge offset": file_of({"a": entry(offsets=(2**64, 2**64 + 8))}, TWO),
    "negative extent": file_of({"a": entry(shape=(-2,))}, TWO),
    "float extent": file_of({"a": entry(shape=(2.0,))}, TWO),
    "overflow": file_of({"a": entry(shape=(2**40, 2**40))}, TWO),
    "overflow to 0": file_of({"a": entry(shape=(2**62, 4), offsets=(0, 0))}),
    "too large for its bytes": file_of({"a": entry(shape=(3,))}, TWO),
    "nine dimensions": file_of({"a": entry(shape=(1,) * 8 + (2,))}, TWO),
    "no such dtype": file_of({"a": entry("X9")}, TWO),
    "uint16": file_of({"a": entry("U16", (4,))}, TWO),
    "complex": file_of({"a": entry("C64", (1,))}, TWO),
    "float8": file_of({"a": entry("F8_E4M3", (8,))}, TWO),
    "missing fields": file_of({"a": {"dtype": "F32"}}),
    "metadata is no text": file_of({"__metadata__": {"a": 3}, "a": entry()}, TWO),
    "the same name twice": file_of(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        TWO,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(path, name):
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"\[load\].*model\.safetensors"):
        drupe.load(path)


def test_errors_name_the_tensor(path):
    path.write_bytes(HOSTILE["uint16"])
    with pytest.raises(ValueError, match="tensor a: drupe has no dtype U16: expected one of F64"):
        drupe.load(path)
    path.write_bytes(HOSTILE["nine dimensions"])
    with pytest.raises(ValueError, match=r"tensor a: .*dimensions"):
        drupe.load(path)


def test_misaligned_data_and_bytes_that_are_no_bool(path):
    header = {"m": entry("BOOL", (3,), (0, 3)), "a": entry(offsets=(3, 11))}
    path.write_bytes(file_of(header, b"\0\1\2" + np.array([1.5, -2], np.float32).tobytes()))
    loaded = drupe.load(path)
    assert loaded["m"].numpy().view(np.uint8).tolist() == [0, 1, 1]
    assert loaded["a"].tolist() == [1.5, -2]


def test_a_file_that_shrinks_meanwhile(path, monkeypatch):
    drupe.save(path, {"a": np.ones(1000)})
    original = drupe.io._read_header

    def shrink(name):
        result = original(name)
        os.truncate(name, os.path.getsize(name) - 8)
        return result

    monkeypatch.setattr(drupe.io, "_read_header", shrink)
    with pytest.raises(ValueError, match="tensor a: the file ends too early"):
        drupe.load(path)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_never_crash(tmp_path_factory, data):
    good = file_of(
        {"__metadata__": {"k": "v"}, "w": entry(shape=(2, 3), offsets=(0, 24)), "b": entry("I64", (1,), (24, 32))},
        bytes(range(32)),
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        action = data.draw(st.sampled_from(["set", "delete", "insert", "cut"]))
        if action == "set":
            damaged[at] = data.draw(st.integers(0, 255))
        elif action == "delete" and len(damaged) > 1:
            del damaged[at]
        elif action == "insert":
            damaged.insert(at, data.draw(st.sampled_from(b'0123456789-{}[]",:eF\x00\xff')))
        elif at:
            del damaged[at:]
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(damaged)
    try:
        loaded = drupe.load(file)
    except ValueError as error:
        assert str(error).startswith("[load]")  # noqa: PT017
    else:
        assert sum(t.nbytes for t in loaded.values()) == len(damaged) - 8 - struct.unpack("<Q", damaged[:8])[0]


def test_without_the_package(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "drupe\[io\]"'):
        drupe.save(path, {"a": np.ones(2)})
    with pytest.raises(ImportError, match=r'pip install "drupe\[io\]"'):
        drupe.load(path)


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    drupe.save(tmp_path / "x.safetensors", {"x": np.ones(3)})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
