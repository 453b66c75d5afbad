#!/usr/bin/env bash
# Runs the op suite's CUDA half, or the tests given, on the emulated GPU. DRUPE_EMU_SEED draws another order of its threads.
#   tests/emulate.sh [pytest argument…]
set -euo pipefail
[ $# -gt 0 ] || set -- tests/ops tests/cuda -k cuda
"$(dirname "$0")/with_build.sh" emulate -DDRUPE_CUDA=EMULATE -DDRUPE_ISAS=scalar -- "$@"
