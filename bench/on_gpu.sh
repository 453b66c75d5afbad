#!/usr/bin/env bash
# Builds drupe for the GPU of this machine with the python3 that is there, tests it on the GPU, checks small cases with
# compute-sanitizer, and benchmarks it beside torch. Nothing is downloaded.
#   bench/on_gpu.sh OUT
# Needs nvcc, torch with CUDA, pybind11, scikit-build-core, cmake and ninja. Leaves OUT/{build,tests,sanitizer,bench}.txt and
# OUT/bench.json. Each step runs whatever became of the one before; the exit code says whether all went well.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
failed=0

step() {
  local name=$1 limit=$2
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || { echo "$name: failed ($?)"; failed=1; }
  tail -n 4 "$out/$name.txt"
}

build() {
  local arch
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$arch" = 90 ] && arch=90a
  python3 -m pip install --no-build-isolation --no-deps --no-index . -C cmake.define.DRUPE_CUDA=ON \
    -C cmake.define.DRUPE_CUDA_ARCHS="$arch" -C cmake.define.DRUPE_ISAS="scalar;avx512" \
    -C cmake.define.DRUPE_CUDA_SELFTEST=ON
}

nvidia-smi >"$out/gpu.txt" 2>&1
export -f build
step build 420 bash -c build
step tests 600 python3 -m pytest -q -p no:cacheprovider tests/ops tests/cuda -k cuda
step sanitizer 300 compute-sanitizer --error-exitcode 1 python3 -m pytest -q -x -p no:cacheprovider \
  tests/ops/test_gemm.py tests/ops/test_softmax.py tests/ops/test_attention.py -k "cuda and float32"
step bench 600 python3 -m drupe.cli bench --device cuda --peers torch --json "$out/bench.json"
exit $failed
