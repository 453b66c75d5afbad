#!/usr/bin/env bash
# Runs the native suites, or the tests given, under AddressSanitizer and UndefinedBehaviorSanitizer; with --emulate,
# the CUDA half of them on the emulated GPU.
#   tests/sanitize.sh [--emulate] [pytest argument…]
set -euo pipefail
build=(sanitize -DDRUPE_SANITIZE=address,undefined)
# AddressSanitizer keeps what is freed, so that a limited process does not get it back.
suites=(tests/ops tests/core --deselect
  tests/core/test_tensor.py::test_out_of_memory_under_a_limit_gives_the_cache_back_first)
if [ "${1:-}" = --emulate ]; then
  shift
  build=(sanitize-emulate -DDRUPE_SANITIZE=address,undefined -DDRUPE_CUDA=EMULATE -DDRUPE_ISAS=scalar)
  suites=(tests/ops tests/cuda -k cuda)
fi
[ $# -gt 0 ] || set -- "${suites[@]}"
# Leaks are off: the interpreter itself keeps memory until it exits. A null from the allocator is what ops expect.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
"$(dirname "$0")/with_build.sh" "${build[@]}" -- "$@"
