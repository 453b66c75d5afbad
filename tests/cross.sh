#!/usr/bin/env bash
# Compiles for 64-bit ARM with aarch64-linux-gnu-g++; where DRUPE_ARM_ROOT names a directory with an ARM system's Python
# (of this one's version) and the packages that tests need, runs the op suite, or the tests given, by qemu-aarch64.
#   tests/cross.sh [pytest argument…]
set -euo pipefail
cd "$(dirname "$0")/.."
options=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  -DPython_INCLUDE_DIR="$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
  -DPYTHON_MODULE_EXTENSION=.so -DPYTHON_MODULE_DEBUG_POSTFIX=)  # this Python's suffix would name this machine
if [ -n "${DRUPE_ARM_ROOT:-}" ]; then
  [ $# -gt 0 ] || set -- tests/ops
  mkdir -p build
  export RUN=$PWD/build/cross-python  # a file, which tests that start Python find by sys.executable
  cat >"$RUN" <<END
#!/bin/sh
export PYTHONHOME=$DRUPE_ARM_ROOT/usr
export OPENBLAS_CORETYPE=ARMV8  # NumPy's products: other kernels raise floating-point exceptions for nothing
exec qemu-aarch64 -0 $RUN -L $DRUPE_ARM_ROOT $DRUPE_ARM_ROOT/usr/bin/python3 "\$@"
END
  chmod +x "$RUN"
else
  echo "DRUPE_ARM_ROOT names no ARM system: it is compiled, and nothing is run"
  set --
fi
tests/with_build.sh cross "${options[@]}" -- "$@"
