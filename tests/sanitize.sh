#!/usr/bin/env bash
# Builds with AddressSanitizer and UndefinedBehaviorSanitizer and runs the native suites (or the tests given).
#   tests/sanitize.sh [pytest arguments]
# Needs an environment with the test extra, cmake, ninja and pybind11.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/sanitize
site=$PWD/$build/site

cmake -G Ninja -S . -B "$build" -DDRUPE_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$(command -v python)" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
cmake --build "$build"
rm -rf "$site"
cmake --install "$build" --prefix "$site" >/dev/null
(cd python && find drupe -name '*.py' -print0 | xargs -0 cp --parents -t "$site")

# Leaks are off: the interpreter itself keeps memory until it exits. A null from the allocator is what ops expect.
export PYTHONPATH=$site ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \
  python -m pytest -p no:cacheprovider "${@:-tests/ops}"
