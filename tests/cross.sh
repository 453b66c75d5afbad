#!/usr/bin/env bash
# Compiles for 64-bit ARM with aarch64-linux-gnu-g++; where DRUPE_ARM_ROOT names a directory with an ARM system's Python
# (of this one's version) and its packages for the tests, runs the op suite, or the tests given, on it under qemu-aarch64.
#   tests/cross.sh [pytest argument…]
set -euo pipefail
build=(cross -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  -DPython_INCLUDE_DIR="$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
  -DPYTHON_MODULE_EXTENSION=.so -DPYTHON_MODULE_DEBUG_POSTFIX=)  # this Python's suffix would name this machine
if [ -n "${DRUPE_ARM_ROOT:-}" ]; then
  [ $# -gt 0 ] || set -- tests/ops
  export RUN="qemu-aarch64 -L $DRUPE_ARM_ROOT $DRUPE_ARM_ROOT/usr/bin/python3"
else
  echo "DRUPE_ARM_ROOT names no ARM system: it is compiled, and nothing is run"
  set --
fi
"$(dirname "$0")/with_build.sh" "${build[@]}" -- "$@"
