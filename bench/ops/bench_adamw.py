"""One AdamW step over all of ResNet-50's tensors, with states in float32 and in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator

from drupe.bench.harness import Case
from drupe.bench.ops.bench_optimizer import step_case


def cases(quick: bool) -> Iterator[Case]:
    """The parameters, 25.6 million in 161 tensors; four arrays are read and three written."""
    for kind, target in (("float32", 1.0), ("bfloat16", 0.6), ("uint8", 0.6)):
        yield step_case("adamw", quick, kind, target)
