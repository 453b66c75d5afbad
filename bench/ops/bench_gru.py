"""Two bidirectional layers over 200 steps of a batch of 8: inference, and forward with backward."""

from __future__ import annotations

from collections.abc import Iterator

from drupe.bench.harness import Case
from drupe.bench.ops.bench_lstm import recurrent_cases


def cases(quick: bool) -> Iterator[Case]:
    """GRU."""
    return recurrent_cases("gru", quick)
