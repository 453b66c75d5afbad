#!/usr/bin/env bash
# Runs the op suite's CUDA half, or the tests given, on the emulated GPU. Each number in DRUPE_EMU_SEED draws another
# order of its threads, and is another run: DRUPE_EMU_SEED="2 3 5" tests/emulate.sh
#   tests/emulate.sh [pytest argument…]
set -euo pipefail
[ $# -gt 0 ] || set -- tests/ops tests/cuda -k cuda
for seed in ${DRUPE_EMU_SEED:-1}; do
  echo "DRUPE_EMU_SEED=$seed"
  DRUPE_EMU_SEED=$seed "$(dirname "$0")/with_build.sh" emulate -DDRUPE_CUDA=EMULATE -DDRUPE_ISAS=scalar -- "$@"
done
