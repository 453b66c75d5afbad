"""What a case is, and how it is checked and timed.

The cases of an op live in ``bench/ops/bench_<op>.py`` or beside those of similar ones, the cases of a network in
``bench/models/bench_<network>.py``. The module is found by its name and has one function::

    def cases(quick: bool) -> Iterator[Case]:
        n = 256 if quick else 1024
        yield Case(op="gemm", name="square", shapes=f"{n}x{n}x{n}", dtype="float32", flops=2 * n**3,
                   bytes_read=8 * n * n, bytes_written=4 * n * n, setup=partial(square, n))

    def square(n: int, rng: np.random.Generator) -> Setup:
        a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
        return Setup(
            drupe=lambda: ops.gemm(a, b),
            reference=lambda: a.astype(float) @ b.astype(float),
            peers={"numpy": lambda: lambda: a @ b,
                   "torch": lambda: peers.torch_call(lambda torch, a, b: a @ b, a, b)})

Nothing large is made before ``setup`` runs, and it is dropped after the case. A peer is a function that imports
its package, converts the inputs and gives the call to time (or a :class:`Prepared`, where the output needs a
transform before it compares). Its name is its package, with a variant after a colon where there are several:
``torch:nhwc``.

``flops`` counts the formula's arithmetic, a multiply-add as two, also where memory is the bound: the roofline
needs it. Bytes are those that must move: each operand once. The limit of a case is whatever takes longer at the
machine's measured rate, the flops or the bytes. A case may have a target: the multiple of the best peer's time that
drupe must not exceed.

Drupe and the peers are timed in rounds, one sample each per round, in rotating order; a sample is as many calls as
fill ``min_sample_s``. Ratios are medians over the rounds, so a drift of the machine's clock cancels.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import drupe
from drupe.bench import memory

Call = Callable[[], Any]
Clock = Callable[[], float]
Arrays = list[npt.NDArray[Any]]

DRUPE = "drupe"


def as_arrays(output: Any) -> Arrays:
    """Return an op's output as NumPy arrays, in order: tensors and arrays of any peer, alone or nested."""
    if output is None:
        return []
    if isinstance(output, Mapping):
        return [array for value in output.values() for array in as_arrays(value)]
    if isinstance(output, list | tuple):
        return [array for value in output for array in as_arrays(value)]
    if isinstance(output, drupe.SparseRows):
        return as_arrays([drupe.from_dlpack(output.indices), drupe.from_dlpack(output.values)])
    if hasattr(output, "detach"):
        output = output.detach()
        if str(getattr(output, "dtype", "")) in ("torch.bfloat16", "torch.float16"):
            output = output.float()
        return [np.asarray((output.cpu() if hasattr(output, "cpu") else output).numpy())]
    return [np.asarray(output)]


@dataclass(frozen=True)
class Prepared:
    """A peer's call, and how to bring its output into the reference's form."""

    call: Call
    view: Callable[[Any], Any] = as_arrays


@dataclass(frozen=True)
class Setup:
    """A case made ready to run.

    Attributes:
        drupe: the call to time.
        peers: builders of the peers' calls, by name.
        reference: what the output should be, in float64 where affordable; None compares with the first peer.
        tolerance: the largest error allowed, as a share of the reference's largest magnitude.
        view: brings drupe's output into the reference's form.
    """

    drupe: Call
    peers: Mapping[str, Callable[[], Call | Prepared]] = field(default_factory=dict)
    reference: Callable[[], Any] | None = None
    tolerance: float = 1e-4
    view: Callable[[Any], Any] = as_arrays


@dataclass(frozen=True)
class Case:
    """One thing to time; see the module's docstring."""

    op: str
    name: str
    shapes: str
    dtype: str
    flops: float
    bytes_read: float
    bytes_written: float
    setup: Callable[[np.random.Generator], Setup]
    device: str = "cpu"
    working_set: float | None = None  # where the bytes lie, if in more than themselves: a table that is gathered from
    target: float | None = None  # drupe's time is to be at most so many times the best peer's
    cpu_only: bool = False  # of an op that has no kernel for a GPU

    @property
    def label(self) -> str:
        """How the case is called in tables and matched by ``--filter``."""
        return f"{self.op} {self.name} {self.shapes} {self.dtype}"


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: samples per contender.
        min_sample_s: a sample lasts at least this long, in as many calls as that takes.
        warmup_s: each contender runs at least this long before.
        settle_s: the pause before a sample, in which the threads of the one before stop spinning.
        max_round_s: where one call of everybody takes longer than this, there are fewer rounds, three at least.
    """

    rounds: int = 11
    min_sample_s: float = 0.02
    warmup_s: float = 0.1
    settle_s: float = 0.002
    max_round_s: float = 1.0


QUICK = Effort(rounds=5, min_sample_s=0.004, warmup_s=0.01, max_round_s=0.2)


@dataclass
class Timing:
    """What one contender did in one case.

    Attributes:
        status: ``ok``, ``absent`` (not installed), ``error`` (it raised) or ``wrong`` (unlike the reference).
        message: why, where it is not ok.
        error: the error of its output, as a share of the reference's largest magnitude.
        calls: how many calls make a sample.
        samples_s: seconds per call, one per round.
        ratio: drupe's time over this one's, the median over the rounds: below 1 drupe is faster.
        peak_bytes: the resident memory that making it ready and calling it once added at most.
    """

    status: str = "ok"
    message: str = ""
    error: float | None = None
    calls: int = 0
    samples_s: list[float] = field(default_factory=list)
    ratio: float | None = None
    peak_bytes: int | None = None

    @property
    def median_s(self) -> float | None:
        """The median seconds per call."""
        return statistics.median(self.samples_s) if self.samples_s else None

    @property
    def spread(self) -> float | None:
        """The distance between the quartiles, as a share of the median."""
        if not self.samples_s:
            return None
        low, middle, high = np.percentile(self.samples_s, [25, 50, 75])
        return float((high - low) / middle) if middle > 0 else 0.0


@dataclass
class Result:
    """A case and what came of it. ``limit`` names the bound: ``fma_f32``, ``dot_bf16``, ``read`` or ``copy``."""

    case: Case
    timings: dict[str, Timing]
    limit: str | None = None
    limit_rate: float | None = None  # flops or bytes per second
    fraction: float | None = None  # of the limit, that drupe reaches

    @property
    def ok(self) -> bool:
        """Whether drupe ran and was right. Peers that did not are shown, and are no failure."""
        return self.timings[DRUPE].status == "ok"

    @property
    def best_peer(self) -> str | None:
        """The name of the fastest peer that was right; None without any."""
        ratios = {name: timing.ratio for name, timing in self.timings.items() if timing.ratio is not None}
        return max(ratios, key=lambda name: ratios[name]) if ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target, or without a peer to hold it against."""
        if self.case.target is None or self.best_peer is None:
            return None
        ratio = self.timings[self.best_peer].ratio
        return ratio is not None and ratio <= self.case.target


def relative_error(actual: Any, expected: Any) -> tuple[float, str]:
    """Return the largest error over all outputs, as a share of the largest expected magnitude, and what is wrong.

    The message is empty where shapes and non-finite values agree; otherwise the error is infinite.
    """
    left, right = as_arrays(actual), as_arrays(expected)
    if len(left) != len(right):
        return float("inf"), f"{len(left)} outputs, expected {len(right)}"
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return float("inf"), f"the shape is {a.shape}, expected {b.shape}"
        if a.size == 0:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(y)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(x[finite]).all():
            return float("inf"), "non-finite values differ"
        scale = float(np.abs(y[finite]).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(x[finite] - y[finite]).max(initial=0)) / scale)
    return worst, ""


def time_interleaved(
    contenders: Mapping[str, Call],
    effort: Effort,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    finish: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time calls in rounds, one sample each per round, whose order rotates from round to round.

    Before a sample of several calls comes one that is not timed: the caches hold another contender's data. A sample
    ends when ``finish`` returns, which waits for a device.
    """
    names = list(contenders)
    timings = {name: Timing(calls=_calibrate(contenders[name], effort, clock, finish)) for name in names}
    rounds = effort.rounds
    collecting = gc.isenabled()
    gc.disable()
    try:
        done = 0
        while done < rounds:
            start = clock()
            turn = done % len(names)
            for name in names[turn:] + names[:turn]:
                call, calls = contenders[name], timings[name].calls
                sleep(effort.settle_s)
                if calls > 1:
                    call()
                timings[name].samples_s.append(_sample(call, calls, clock, finish))
            done += 1
            if clock() - start > effort.max_round_s:
                rounds = min(rounds, max(3, done))
    finally:
        if collecting:
            gc.enable()
    return timings


def _sample(call: Call, calls: int, clock: Clock, finish: Callable[[], None]) -> float:
    finish()
    start = clock()
    for _ in range(calls):
        call()
    finish()
    return (clock() - start) / calls


def _calibrate(call: Call, effort: Effort, clock: Clock, finish: Callable[[], None]) -> int:
    """Warm up, and return how many calls fill a sample."""
    start = clock()
    fastest = float("inf")
    runs = 0
    while runs < 2 or (clock() - start < effort.warmup_s and runs < 10000):
        fastest = min(fastest, _sample(call, 1, clock, finish))
        runs += 1
    return max(1, int(np.ceil(effort.min_sample_s / max(fastest, 1e-9))))


def add_ratios(timings: Mapping[str, Timing]) -> None:
    """Set each peer's ratio: the median over the rounds of drupe's time over the peer's."""
    ours = timings[DRUPE].samples_s
    for name, timing in timings.items():
        if name != DRUPE and timing.samples_s and ours:
            timing.ratio = statistics.median(a / b for a, b in zip(ours, timing.samples_s, strict=True))


def run_case(
    case: Case,
    peers: Sequence[str],
    effort: Effort,
    *,
    installed: Callable[[str], bool],
    clock: Clock = time.perf_counter,
    finish: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Check every contender's output, then time those that are right.

    Args:
        case: what to run.
        peers: the packages to time beside drupe; those that the case does not know are left out.
        effort: how long.
        installed: whether a package is there.
        clock: seconds.
        finish: waits until a device has done what was queued on it.

    Returns:
        A timing for drupe and for each peer of the case that was asked for, in the case's order.
    """
    timings: dict[str, Timing] = {DRUPE: Timing()}
    drupe.empty_cache()
    with memory.watch() as peak:
        try:
            setup = case.setup(np.random.default_rng(0))
            outputs = {DRUPE: setup.view(setup.drupe())}
        except Exception as error:
            timings[DRUPE] = Timing(status="error", message=_describe(error))
            return timings
    timings[DRUPE].peak_bytes = peak.added_bytes
    calls = {DRUPE: setup.drupe}
    for name, build in setup.peers.items():
        package = name.partition(":")[0]
        if package not in peers:
            continue
        if not installed(package):
            timings[name] = Timing(status="absent", message=f"{package} is not installed")
            continue
        timings[name] = Timing()
        try:
            with memory.watch() as peak:
                made = build()
                prepared = made if isinstance(made, Prepared) else Prepared(made)
                outputs[name] = prepared.view(prepared.call())
        except Exception as error:
            timings[name] = Timing(status="error", message=_describe(error))
            continue
        timings[name].peak_bytes = peak.added_bytes
        calls[name] = prepared.call
    _check(setup, outputs, timings)
    right = {name: call for name, call in calls.items() if timings[name].status == "ok"}
    if DRUPE in right:
        for name, timing in time_interleaved(right, effort, clock, finish=finish).items():
            timings[name].calls, timings[name].samples_s = timing.calls, timing.samples_s
        add_ratios(timings)
    return timings


def _check(setup: Setup, outputs: Mapping[str, Any], timings: Mapping[str, Timing]) -> None:
    """Compare what everybody put out with the reference; without one, with the first peer that ran."""
    expected: Any = None
    if setup.reference is not None:
        expected = setup.reference()
    elif others := [name for name in outputs if name != DRUPE]:
        expected = outputs[others[0]]
    if expected is None:
        return
    for name, output in outputs.items():
        timing = timings[name]
        timing.error, message = relative_error(output, expected)
        if not timing.error <= setup.tolerance:
            timing.status = "wrong"
            timing.message = message or f"the error is {timing.error:.2g}, at most {setup.tolerance:.2g} is allowed"


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".strip()
