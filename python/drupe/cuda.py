"""A GPU's streams, events, page-locked memory, and graphs that capture a whole training step.

Work on a device is queued: kernels and copies on one stream run one after the other, those on two streams as they
like, unless one waits for the other. Ops go to the calling thread's current stream, which is the default one outside
every ``with stream:``.

A graph is captured by running a step once without it being executed, and replayed as a whole at the cost of one
launch::

    graph = cuda.Graph()
    with graph.capture():
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()          # made with capturable=True
    for batch, answers in data:
        x.copy_from(batch)        # in place: a graph reads and writes the same memory each time
        labels.copy_from(answers)
        graph.replay()

Where there is no device, all of this raises, and says what is missing (see :func:`drupe.cuda_status`).
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from drupe import _C, random
from drupe.runtime import cuda_status, empty_cache, memory_stats, synchronize
from drupe.tensor import Tensor, share

__all__ = [
    "Event",
    "Graph",
    "Stream",
    "current_stream",
    "empty_cache",
    "is_available",
    "is_capturing",
    "is_emulated",
    "memory_stats",
    "pin",
    "synchronize",
]


def is_available() -> bool:
    """Return whether a device can be used; :func:`drupe.cuda_status` says why not."""
    return cuda_status()["available"]


def is_emulated() -> bool:
    """Return whether the device is emulated on the CPU."""
    return cuda_status()["emulated"]


class _Entered(threading.local):
    """The streams that this thread's ``with`` blocks have replaced, by device; the current one is the last."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Stream]] = {}


_entered = _Entered()


class Stream:
    """A queue of work of one's own: as a context manager, where the ops of the ``with`` block go to.

    It is not ordered with the default stream, nor with any other: :meth:`wait` does that. Memory belongs to the stream
    that was current when a tensor was made; a tensor that another stream uses, and that is dropped before that is done,
    needs :meth:`drupe.Tensor.record_stream`.

    Args:
        device: ``"cuda"`` or ``"cuda:<index>"``.

    Raises:
        ValueError: no device has that name.
        RuntimeError: there is no such device here, and why.
    """

    __slots__ = ("raw",)

    def __init__(self, device: str = "cuda") -> None:
        self.raw = _C.Stream(device)

    @property
    def device(self) -> str:
        """The device: ``"cuda:<index>"``."""
        return self.raw.device

    @property
    def handle(self) -> int:
        """The address of the cudaStream_t; 0 for the default stream."""
        return self.raw.handle

    def __enter__(self) -> Stream:
        _entered.streams.setdefault(self.device, []).append(self)
        self.raw.make_current()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.streams[self.device].pop()
        current_stream(self.device).raw.make_current()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.handle, self.device) == (other.handle, other.device)

    def __hash__(self) -> int:
        return hash((self.handle, self.device))

    def synchronize(self) -> None:
        """Wait, on the host, until all that was queued here is done.

        Raises:
            RuntimeError: the stream is being captured.
            IndexError, ValueError: a replayed graph met an index or a length out of range.
        """
        self.raw.synchronize()

    def wait(self, other: Stream | Event) -> None:
        """Let what is queued here from now on run after what the other stream has queued so far, or after an event."""
        if isinstance(other, Event):
            other.raw.hold(self.raw)
        else:
            self.raw.wait(other.raw)

    def __repr__(self) -> str:
        return f"Stream(device={self.device!r}, handle={self.handle:#x})"


def current_stream(device: str = "cuda") -> Stream:
    """Return the stream that this thread's ops go to, by ``with stream:``; the default one outside of all.

    Raises:
        ValueError: no device has that name.
        RuntimeError: there is no such device here, and why.
    """
    raw = _C.Stream.default(device)
    entered = _entered.streams.get(raw.device)
    if entered:
        return entered[-1]
    stream = Stream.__new__(Stream)
    stream.raw = raw
    return stream


class Event:
    """A point in a stream's work.

    Args:
        enable_timing: whether :meth:`elapsed` can use it.

    Raises:
        RuntimeError: there is no device here, and why.
    """

    __slots__ = ("raw",)

    def __init__(self, *, enable_timing: bool = False) -> None:
        _C.Stream.default("cuda")  # raises where there is no device
        self.raw = _C.Event(enable_timing)

    def record(self, stream: Stream | None = None) -> None:
        """Be the point that a stream, the current one by default, has come to when all queued so far is done."""
        self.raw.record((stream or current_stream()).raw)

    def synchronize(self) -> None:
        """Wait, on the host, until it has happened; errors as :meth:`Stream.synchronize`."""
        self.raw.synchronize()

    def query(self) -> bool:
        """Return whether it has happened; one that was never recorded has."""
        return self.raw.query()

    def elapsed(self, end: Event) -> float:
        """Return the milliseconds of the device's clock from this event to a later one; both have happened.

        Raises:
            RuntimeError: one was not recorded, has not happened, or was made without ``enable_timing``.
        """
        return self.raw.elapsed_ms(end.raw)


def is_capturing(device: str = "cuda") -> bool:
    """Return whether the current stream's work is being captured: recorded in a graph, not run."""
    return _C.is_capturing(device)


class Graph:
    """A step's work on a device, captured once and replayed at the cost of one launch.

    What a captured step must keep to:

    - It reads and writes the same memory at each replay: give it new data with :meth:`drupe.Tensor.copy_from`. Tensors
      made in the capture have values only after a replay, which the next one overwrites. The graph holds its memory,
      and what was let go of during the capture, as long as it lives: replays allocate nothing. Tensors of before that
      are dropped after the capture are not the graph's: keep them.
    - The host cannot look at anything (``item()``, ``numpy()``, ``bool()``) nor wait, and whatever it decides is
      decided for good. Arrays of the host must be on the device before, or :func:`pin`-ned and copied with
      ``non_blocking=True``: the graph then reads that memory at each replay.
    - Indices, labels and lengths are checked by the graph: the error is raised by the next call that waits for the
      device after a replay (:meth:`Stream.synchronize`, ``numpy()``, …); those out of range counted as 0 (labels: as
      ignored). Sparse gradients are not possible, nor an embedding bag's offsets.
    - Optimizers are made with ``capturable=True``: they count their steps on the device, and a rate that is changed
      between replays (by a :class:`drupe.schedules.Scheduler`, say) counts from the next one on.
    - Dropout without a seed of its own draws new masks at each replay, by the process's generator: a program that
      replays a step draws what it would have drawn without a graph.

    An error in the ``with`` block ends the capture, and the graph can be captured anew.

    Raises:
        RuntimeError: there is no device here, and why.
    """

    def __init__(self) -> None:
        self._raw = _C.Graph()
        self._device = ""
        self._draws = 0

    @contextmanager
    def capture(self, stream: Stream | None = None) -> Iterator[Graph]:
        """Record what the ``with`` block queues, instead of running it.

        Args:
            stream: where, and the current one meanwhile; a new one by default. Other streams take part where they wait
                for its events; it must wait for them before the end.

        Raises:
            RuntimeError: something in it cannot be captured; or another capture is under way in this thread; or the
                graph was captured before.
        """
        stream = Stream() if stream is None else stream
        gc.collect()  # what nobody holds is not for the graph to keep
        with stream:
            self._raw.begin(stream.raw)
            try:
                with random.captured(stream.device, self._raw.random_state) as draws:
                    yield self
            except BaseException:
                self._raw.abort()
                raise
            self._raw.end()
        self._device, self._draws = stream.device, draws()

    def replay(self) -> None:
        """Queue all of it on the current stream, once more.

        Raises:
            RuntimeError: nothing was captured, or a capture is under way on the current stream.
        """
        if not self._device:
            raise RuntimeError("[cuda] the graph has not been captured")
        seed, offset = random.next_streams(self._draws)
        self._raw.replay(self._device, seed, offset)


def pin(x: Any, *, device: str = "cuda") -> Tensor:
    """Return a tensor of the host in page-locked memory, which a device can copy from and to without being waited for.

    Args:
        x: any array of the host; itself where it is such a tensor already, a copy otherwise, with no gradient.
        device: one that can be used; every device can copy.

    Raises:
        ValueError: ``x`` lies on a device.
        RuntimeError: there is no such device here, and why.
        MemoryError: the system has not that much.
    """
    raw = share(x, "pin")
    pinned = _C.pin(raw, device)
    return x if isinstance(x, Tensor) and pinned.owner == raw.owner else Tensor(pinned)
