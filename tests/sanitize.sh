#!/usr/bin/env bash
# Runs the native suites, or the tests given, under AddressSanitizer and UndefinedBehaviorSanitizer.
#   tests/sanitize.sh [pytest argument…]
set -euo pipefail
# Leaks are off: the interpreter itself keeps memory until it exits. A null from the allocator is what ops expect.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
# AddressSanitizer keeps what is freed, so that a limited process does not get it back.
[ $# -gt 0 ] || set -- tests/ops tests/core --deselect \
  tests/core/test_tensor.py::test_out_of_memory_under_a_limit_gives_the_cache_back_first
"$(dirname "$0")/with_build.sh" sanitize -DDRUPE_SANITIZE=address,undefined -- "$@"
