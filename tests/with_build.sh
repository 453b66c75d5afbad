#!/usr/bin/env bash
# Builds the extension with some options into build/NAME and, given arguments for it, runs pytest on that build.
#   tests/with_build.sh NAME [cmake option…] -- [pytest argument…]
# Needs an environment with drupe[demo] and the groups test and dev. The library path of a sanitizer is to be in PRELOAD,
# and another Python that is to run the tests, in RUN.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/$1
site=$PWD/$build/site
shift
options=()
while [ "$1" != -- ]; do
  options+=("$1")
  shift
done
shift

cmake -G Ninja -S . -B "$build" "${options[@]}" -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$(command -v python)" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
cmake --build "$build"
rm -rf "$site"
cmake --install "$build" --prefix "$site" >/dev/null
(cd python && find drupe -name '*.py' -print0 | xargs -0 cp --parents -t "$site")
cp -r bench "$site/drupe/"

[ $# -gt 0 ] || exit 0
export PYTHONPATH=$site
LD_PRELOAD="${PRELOAD:-}" "${RUN:-python}" -m pytest -p no:cacheprovider "$@"
