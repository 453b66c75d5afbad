"""Results as JSON, and the comparison of two runs. The schema is in ``bench/README.md``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drupe
from drupe.bench import machine, peers
from drupe.bench.harness import DRUPE, Result, Timing

SCHEMA = 1


def to_json(results: Sequence[Result], limits: machine.Limits, command: Sequence[str]) -> dict[str, Any]:
    """Return a run as the JSON object that is written to files."""
    return {
        "schema": SCHEMA,
        "command": " ".join(command),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "threads": drupe.num_threads(),
        "isa": drupe.cpu_isa(),
        "versions": {"drupe": drupe.__version__, **peers.versions()},
        "limits": limits.to_json(),
        "cases": [_case_to_json(result) for result in results],
    }


def _case_to_json(result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "op": case.op,
        "name": case.name,
        "shapes": case.shapes,
        "dtype": case.dtype,
        "device": case.device,
        "flops": case.flops,
        "bytes_read": case.bytes_read,
        "bytes_written": case.bytes_written,
        "working_set": case.working_set,
        "target": {"ratio": case.target, "best_peer": result.best_peer, "met": result.met},
        "ok": result.ok,
        "limit": {"name": result.limit, "rate": result.limit_rate, "fraction": result.fraction},
        "timings": {name: _timing_to_json(timing) for name, timing in result.timings.items()},
    }


def _timing_to_json(timing: Timing) -> dict[str, Any]:
    return {
        "status": timing.status,
        "message": timing.message,
        "error": timing.error if timing.error is None or timing.error < float("inf") else None,
        "calls": timing.calls,
        "median_s": timing.median_s,
        "spread": timing.spread,
        "ratio": timing.ratio,
        "samples_s": timing.samples_s,
        "peak_bytes": timing.peak_bytes,
    }


def load(path: Path) -> dict[str, Any]:
    """Read a run.

    Raises:
        ValueError: the file is not such a run, or has another schema.
    """
    try:
        run = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(run, dict) or run.get("schema") != SCHEMA or not isinstance(run.get("cases"), list):
        raise ValueError(f"{path}: not a result of `drupe bench --json` with schema {SCHEMA}")
    return run


@dataclass(frozen=True)
class Change:
    """One case in two runs.

    Attributes:
        key: (op, name, shapes, dtype, device).
        before_s: the old median; None where it is missing or failed.
        after_s: the new one.
        verdict: ``slower`` or ``faster`` (beyond the noise), ``same``, ``new``, ``gone``, ``broken`` or ``fixed``.
    """

    key: tuple[str, ...]
    before_s: float | None
    after_s: float | None
    verdict: str

    @property
    def regressed(self) -> bool:
        """Whether the run should be rejected for it."""
        return self.verdict in ("slower", "broken")

    @property
    def change(self) -> float | None:
        """The relative change of the time: 0.1 is ten percent slower."""
        if self.before_s is None or self.after_s is None:
            return None
        return self.after_s / self.before_s - 1


def compare(old: Mapping[str, Any], new: Mapping[str, Any], threshold: float = 0.05) -> list[Change]:
    """Compare two runs, case by case, in the new one's order.

    A case is slower when its median grew by more than ``threshold`` and more than the spread of either run. Cases of
    the old run that belong to no op of the new run were not asked for and are left out.
    """
    before, after = _by_key(old), _by_key(new)
    changes = [_judge(key, before.get(key), case, threshold) for key, case in after.items()]
    ops = {key[0] for key in after}
    gone = [key for key in before if key not in after and key[0] in ops]
    return changes + [Change(key, _median(before[key]), None, "gone") for key in gone]


def _by_key(run: Mapping[str, Any]) -> dict[tuple[str, ...], Mapping[str, Any]]:
    return {tuple(case[part] for part in ("op", "name", "shapes", "dtype", "device")): case for case in run["cases"]}


def _median(case: Mapping[str, Any]) -> float | None:
    timing = case["timings"][DRUPE]
    return timing["median_s"] if timing["status"] == "ok" else None


def _judge(key: tuple[str, ...], old: Mapping[str, Any] | None, new: Mapping[str, Any], threshold: float) -> Change:
    after = _median(new)
    if old is None:
        return Change(key, None, after, "new" if after is not None else "broken")
    before = _median(old)
    if after is None:
        return Change(key, before, None, "broken")
    if before is None:
        return Change(key, None, after, "fixed")
    noise = max(threshold, old["timings"][DRUPE]["spread"], new["timings"][DRUPE]["spread"])
    if after > before * (1 + noise):
        return Change(key, before, after, "slower")
    if before > after * (1 + noise):
        return Change(key, before, after, "faster")
    return Change(key, before, after, "same")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what makes two runs hard to compare: another machine, number of threads, or instruction set."""
    found = []
    for what, left, right in (
        ("machine", old["machine"]["cpu"], new["machine"]["cpu"]),
        ("threads", old["threads"], new["threads"]),
        ("instruction set", old["isa"], new["isa"]),
    ):
        if left != right:
            found.append(f"{what}: {left} before, {right} now")
    return found
