#!/usr/bin/env bash
# Fails when python/drupe/_C.pyi is not what the installed module declares; with --write, brings it up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
pybind11-stubgen drupe._C --output-dir "$stubs" --exit-code >/dev/null
# The version comes from pyproject.toml alone, the CUDA backend from the build.
sed -i -E "s/^(__version__|cuda_built): str = .*/\1: str/" "$stubs/drupe/_C.pyi"
ruff format --quiet --isolated --line-length 120 "$stubs/drupe/_C.pyi"
if [ "${1:-}" = --write ]; then
  cp "$stubs/drupe/_C.pyi" python/drupe/_C.pyi
else
  diff -u python/drupe/_C.pyi "$stubs/drupe/_C.pyi" || { echo "run tests/check_stubs.sh --write"; exit 1; }
fi
