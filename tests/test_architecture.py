"""Who may use whom: the rules that keep the layers apart."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
PYTHON = ROOT / "python" / "drupe"

# Directory -> the prefixes of the project's headers that its files may include.
INCLUDES = {
    "core": ("core/",),
    "ops": ("core/", "ops/", "cpu/isa.h"),
    "cpu": ("core/", "ops/", "cpu/"),
    "cuda": ("core/", "ops/", "cuda/"),
    "bindings": ("core/", "ops/", "bindings/", "cpu/isa.h"),
}
# What kernels compiled per ISA must leave to the layers above: std's containers and streams, and the checks.
FORBIDDEN_IN_KERNELS = re.compile(
    r"std::(vector|string|map|function|unique_ptr|shared_ptr|optional|ostringstream)\b|core/check\.h"
)
MACROS = {"DRUPE_INLINE"}
# CUDA's own keywords and indices, which the emulated platform must spell.
PLATFORM_MACROS = {"__global__", "__device__", "__host__", "__forceinline__", "__launch_bounds__", "__grid_constant__"}
PLATFORM_MACROS |= {"threadIdx", "blockIdx", "blockDim", "gridDim"}
NATIVE = (".h", ".cpp", ".cu", ".cuh")

# Python layer -> the layers of drupe that it must not import.
LAYERS = {
    "ops": ("nn", "optim", "models", "train", "data", "cli", "losses", "schedules", "bench"),
    "nn": ("models", "train", "data", "cli", "optim", "bench"),
    "optim": ("nn", "models", "train", "data", "cli", "bench"),
    "models": ("cli", "bench", "data"),
    "data": ("cli", "bench", "models"),
    "train": ("cli", "bench", "models"),
}
# Those that may touch the extension module: the ops, and what the ops themselves stand on.
MAY_USE_C = {"ops", "tensor.py", "sparse.py", "autograd.py", "runtime.py", "cuda.py", "random.py", "__init__.py"}


def sources(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in suffixes)


def quoted_includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE)


def layer_of(path: Path) -> str:
    return path.relative_to(PYTHON).parts[0]


def imports(path: Path) -> list[str]:
    """Every module that a file imports, as dotted names; `from a import b` gives a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("folder", sorted(INCLUDES))
def test_native_layers_include_only_what_lies_below(folder):
    files = sources(CSRC / folder, *NATIVE)
    assert files
    for path in files:
        for header in quoted_includes(path):
            assert header.startswith(INCLUDES[folder]), f"{path.relative_to(ROOT)} includes {header}"


def test_no_native_folder_is_left_out():
    assert {p.name for p in CSRC.iterdir() if p.is_dir()} == set(INCLUDES)


def test_only_the_bindings_know_python():
    for path in sources(CSRC, *NATIVE):
        if path.parent.name != "bindings":
            text = path.read_text()
            assert "pybind11" not in text, path
            assert "Python.h" not in text, path


def test_kernels_leave_containers_and_checks_to_the_ops():
    for path in sources(CSRC / "cpu", ".h", ".cpp"):
        if path.name.startswith("isa."):
            continue
        match = FORBIDDEN_IN_KERNELS.search(path.read_text())
        assert match is None, f"{path.name}: {match.group()}"


def test_vector_intrinsics_stay_in_the_simd_headers():
    for path in sources(CSRC, ".h", ".cpp"):
        if not path.name.startswith(("simd", "limits", "philox")):
            text = path.read_text()
            assert "_mm" not in re.sub(r"\w_mm", "", text), path
            assert not re.search(r"\bv\w+_[fsu](8|16|32|64)\(", text), path


def test_macros_are_few():
    for path in sources(CSRC, *NATIVE):
        allowed = PLATFORM_MACROS if path == CSRC / "cuda/emu/platform/device.cuh" else MACROS
        defined = set(re.findall(r"^\s*#define\s+(\w+)", path.read_text(), re.MULTILINE))
        assert defined <= allowed, f"{path.relative_to(ROOT)} defines {defined - MACROS}"


def test_kernels_reach_cuda_through_the_platform_alone():
    kernels = sources(CSRC / "cuda" / "tile", ".cuh") + sorted((CSRC / "cuda").glob("*.cu*"))
    assert kernels
    for path in kernels:
        text = path.read_text()
        raw = re.search(r"\basm\b|<<<|#\s*include\s*<cuda|__shared__|#\s*if", text)
        assert raw is None, f"{path.relative_to(ROOT)}: {raw.group()}"


@pytest.mark.parametrize(("here", "other"), [("hw", "emu"), ("emu", "hw")])
def test_the_platform_has_two_twins_that_do_not_know_each_other(here, other):
    twin, sibling = (CSRC / "cuda" / side / "platform" for side in (here, other))
    assert {p.name for p in twin.iterdir()} == {p.name for p in sibling.iterdir()}
    for path in sources(CSRC / "cuda" / here, *NATIVE):
        assert f"cuda/{other}" not in path.read_text(), path


def test_each_op_has_its_contract_its_kernel_and_its_binding():
    bindings = "".join(p.read_text() for p in sources(CSRC / "bindings", ".cpp"))
    for header in sources(CSRC / "ops", ".h"):
        name = header.stem
        text = header.read_text()
        if "namespace cpu" in text:  # others are made of ops that have a kernel
            assert (CSRC / "cpu" / f"{name}.cpp").exists(), f"{name} has no CPU kernel"
        if "namespace ops" in text:
            assert f'"ops/{name}.h"' in bindings, f"{name} is not bound"


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_python_layers_import_only_what_lies_below(layer):
    files = sources(PYTHON / layer, ".py")
    assert files
    for path in files:
        for name in imports(path):
            for other in LAYERS[layer]:
                assert not re.match(rf"drupe\.{other}(\.|$)", name), f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_ops_touch_the_extension():
    for path in sources(PYTHON, ".py"):
        if layer_of(path) in MAY_USE_C:
            continue
        for name in imports(path):
            assert not re.match(r"drupe\._C(\.|$)", name), f"{path.relative_to(ROOT)} imports {name}"


def test_optional_packages_are_imported_where_they_are_used():
    """Importing drupe needs numpy and ml_dtypes alone."""
    core = {"numpy", "ml_dtypes", "drupe", "typing_extensions"}
    allowed = core | set(sys.stdlib_module_names)
    for path in sources(PYTHON, ".py"):
        if layer_of(path) in ("cli", "bench"):  # a link to bench/, which a source distribution copies
            continue
        tree = ast.parse(path.read_text())
        for node in tree.body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in allowed, f"{path.relative_to(ROOT)} imports {name} at the top"


def test_files_stay_readable():
    for path in sources(CSRC, *NATIVE) + sources(PYTHON, ".py"):
        lines = len(path.read_text().splitlines())
        assert lines <= 600, f"{path.relative_to(ROOT)} has {lines} lines: is it one thing?"
