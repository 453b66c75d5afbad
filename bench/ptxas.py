"""Compile each CUDA kernel for a real GPU, without one, and record what ptxas says of it.

python bench/ptxas.py writes bench/results/ptxas.json: registers, static shared memory, stack and spills of each kernel,
for sm_80 (the portable path) and sm_90a. It fails on a warning, on a serialised wgmma, and on a spill or a stack frame
that is not expected.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("sm_80", "sm_90a")
FLAGS = ("-std=c++20", "-O2", "--expt-relaxed-constexpr", "-Xptxas", "-v")

# Kernels that may have a small stack frame and spill around a call, and why.
EXPECTED = {
    r"Unary\)1[23]\b": "sin and cos call a function that reduces large arguments by a table in local memory",
}
EXPECTED_BYTES = 64

FUNCTION = re.compile(r"Function properties for (\S+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
COMPLAINT = re.compile(r"\b(warning|error|serialized)\b|Potential Performance Loss", re.IGNORECASE)


def compile_verbosely(source: Path, arch: str) -> str:
    """Everything that nvcc and ptxas print for one source and one architecture."""
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/cuda/hw'}"]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-arch={arch}", *includes, "-cubin", str(source), "-o", f"{folder}/kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    return text if done.returncode == 0 else f"error: nvcc exited with {done.returncode}\n{text}"


def demangle(names: list[str]) -> list[str]:
    """C++ names, without what all of them share."""
    if not names or not shutil.which("c++filt"):
        return names
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [re.sub(r"drupe::(cuda::)?|\(anonymous namespace\)::|^void ", "", name) for name in text.splitlines()]


def parse(text: str, file: str, arch: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The kernels of one compilation, and the lines that complain."""
    kernels: list[dict[str, Any]] = []
    complaints = [f"{file} ({arch}): {line.strip()}" for line in text.splitlines() if COMPLAINT.search(line)]
    for line in text.splitlines():
        if match := FUNCTION.search(line):
            kernels.append({"file": file, "arch": arch, "kernel": match[1], "registers": 0, "shared_bytes": 0})
        elif kernels and (match := FRAME.search(line)):
            keys = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")
            kernels[-1] |= dict(zip(keys, map(int, match.groups()), strict=True))
        elif kernels and (match := USED.search(line)):
            shared = SHARED.search(line)
            kernels[-1] |= {"registers": int(match[1]), "shared_bytes": int(shared[1]) if shared else 0}
    for kernel, name in zip(kernels, demangle([kernel["kernel"] for kernel in kernels]), strict=True):
        kernel["kernel"] = name
    return kernels, complaints


def defects(kernel: dict[str, Any]) -> list[str]:
    """What is wrong with one kernel."""
    stack, stores, loads = (kernel.get(key, 0) for key in ("stack_bytes", "spill_store_bytes", "spill_load_bytes"))
    expected = any(re.search(name, kernel["kernel"]) for name in EXPECTED)
    if max(stack, stores, loads) <= (EXPECTED_BYTES if expected else 0):
        return []
    place = f"{kernel['file']} ({kernel['arch']}): {kernel['kernel']}"
    return [f"{place}: a stack frame of {stack} bytes, {stores} bytes of spill stores, {loads} of loads"]


def main() -> int:
    """Compile, write the record, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="default: csrc/cuda/*.cu; others are not recorded")
    parser.add_argument("--arch", action="append", help=f"default: {' '.join(ARCHS)}")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/ptxas.json")
    arguments = parser.parse_args()
    if not shutil.which("nvcc"):
        print("no nvcc on the path", file=sys.stderr)
        return 2
    sources = arguments.sources or sorted((ROOT / "csrc/cuda").glob("*.cu"))
    cases = [(source, arch) for source in sources for arch in arguments.arch or ARCHS]

    def run(case: tuple[Path, str]) -> tuple[list[dict[str, Any]], list[str]]:
        source, arch = case
        result = parse(compile_verbosely(source, arch), source.name, arch)
        print(f"{source.name} {arch}: {len(result[0])} kernels", flush=True)
        return result

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(run, cases))
    kernels = [kernel for found, _ in results for kernel in found]
    wrong = [line for _, complaints in results for line in complaints]
    wrong += [line for kernel in kernels for line in defects(kernel)]
    if not arguments.sources:
        release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        rows = ",\n  ".join(json.dumps(kernel) for kernel in kernels)
        version = re.search(r"V[\d.]+", release)
        head = json.dumps(version[0] if version else "unknown")
        arguments.output.write_text(f'{{"nvcc": {head}, "kernels": [\n  {rows}\n]}}\n')
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(kernels)} kernels, {len(wrong)} defects")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
