"""The build's check that no kernel object exports a symbol which another instruction set's code could run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "csrc" / "cpu" / "check_symbols.cmake"

GOOD = """
namespace drupe {
enum class Isa : unsigned char { scalar, avx2 };
template <class T, Isa I> [[gnu::noinline]] T twice(T x) { return x + x; }
template float twice<float, Isa::avx2>(float);
}
"""
BAD = """
template <class T> [[gnu::noinline]] T twice(T x) { return x + x; }
template float twice<float>(float);
"""


@pytest.mark.parametrize(("source", "passes"), [(GOOD, True), (BAD, False)], ids=["names-its-isa", "does-not"])
def test_weak_symbols_must_name_their_isa(tmp_path, source, passes):
    compiler, nm, cmake = shutil.which("g++"), shutil.which("nm"), shutil.which("cmake")
    if not (compiler and nm and cmake):
        pytest.skip("needs g++, nm and cmake on PATH")
    (tmp_path / "kernel.cpp").write_text(source)
    target = tmp_path / "kernel.o"
    subprocess.run([compiler, "-std=c++20", "-c", tmp_path / "kernel.cpp", "-o", target], check=True)
    result = subprocess.run(
        [cmake, f"-DNM={nm}", f"-DOBJECTS={target}", "-P", CHECK], capture_output=True, text=True, check=False
    )
    assert (result.returncode == 0) is passes, result.stderr
    if not passes:
        assert "twice" in result.stderr
