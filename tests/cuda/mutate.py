"""Does the suite notice a broken kernel? Seeds the faults of mutants.py one by one and sees which test finds each.

    python tests/cuda/mutate.py                  # all of them, on the build of tests/emulate.sh
    python tests/cuda/mutate.py gemm.cu 12       # those of a file, and the twelfth
    python tests/cuda/mutate.py --runner 'COMMAND'  # a command that builds the tree and passes its arguments to pytest

For each, the source is changed, what depends on it rebuilt, and the tests named for it run until one fails; then the
source is as it was. Outcomes go to mutations.md. Exits with 1 where a fault is not found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda"
TABLE = Path(__file__).with_name("mutations.md")
LONGEST_MESSAGE = 160

HEAD = """\
# Does the suite notice a broken kernel?

Faults that were seeded into the CUDA kernels one at a time, and the first test that failed on the emulated GPU. Written
by `tests/cuda/mutate.py` from `tests/cuda/mutants.py`; run it again when a kernel or its tests change.

| # | file in `csrc/cuda` | the fault | found by | what gave it away |
|--:|---|---|---|---|
"""


class Outcome(NamedTuple):
    """What came of a run: the first test that failed, and what it said; no test where all passed."""

    test: str
    message: str


class NoAnswerError(Exception):
    """The run says nothing about the fault: the build failed, no test ran, or it took too long."""


def source(mutant: Mutant) -> Path:
    return KERNELS / mutant.file


def check_applies(mutant: Mutant) -> None:
    count = source(mutant).read_text().count(mutant.old)
    if count != 1:
        raise SystemExit(f"{mutant.file}: {count} places, not one, hold\n{mutant.old}")


@contextlib.contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """The tree with the fault in it, within the context alone."""
    path = source(mutant)
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(mutant.old.encode(), mutant.new.encode()))
        yield
    finally:
        path.write_bytes(before)  # newer than the object, so that the next build makes it anew


def run_tests(runner: Sequence[str], tests: Sequence[str], limit_s: float) -> Outcome:
    """Build, and run the tests until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", Path(folder) / "log"
        command = [*runner, *tests, "-x", "-k", "cuda", f"--junit-xml={report}"]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait(timeout=limit_s)
            except subprocess.TimeoutExpired:
                raise NoAnswerError(f"still running after {limit_s:.0f} s") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if status in (0, 1) and report.exists():
            return first_failure(report)
        number = -status if status < 0 else status - 128
        if number in set(signal.Signals):
            return Outcome("the process", f"ended by {signal.Signals(number).name}")
        raise NoAnswerError(f"exit status {status}\n" + "\n".join(log.read_text().splitlines()[-30:]))


def first_failure(report: Path) -> Outcome:
    for case in ET.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            failed = case.find(kind)
            if failed is not None:
                file = case.get("classname", "").rpartition(".")[2]
                return Outcome(f"{file}::{case.get('name')}", tell_tale(failed.get("message", "")))
    return Outcome("", "")


def tell_tale(message: str) -> str:
    """The line of a failure's message that tells most."""
    lines = [line.strip() for line in message.replace(f"{ROOT}/", "").splitlines()]
    counts = [line for line in lines if line.startswith("Mismatched elements")]
    first = next((line for line in lines if line and line != "AssertionError:"), "")
    text = (counts[0] if counts else first).removeprefix("RuntimeError: [cuda emulator] ")
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def write_table(outcomes: dict[Mutant, Outcome]) -> None:
    """Put the outcomes into the table; faults that were not run keep what it says of them."""
    known = {}
    if TABLE.exists():
        rows = [cells(line) for line in TABLE.read_text().splitlines() if re.match(r"\| +\d", line)]
        known = {(row[1], row[2]): row[3:] for row in rows}
    text = HEAD
    for number, mutant in enumerate(MUTANTS, 1):
        named = [f"`{mutant.file}`", mutant.fault.replace("|", "\\|")]
        found = known.get((named[0], named[1]), ["not run", ""])
        if mutant in outcomes:
            test, message = (part.replace("|", "\\|").replace("`", "'") for part in outcomes[mutant])
            found = [f"`{test}`", f"`{message}`" if message else ""] if test else ["**nothing**", ""]
        text += f"| {' | '.join([str(number), *named, *found])} |\n"
    TABLE.write_text(text)


def chosen(words: Sequence[str]) -> list[tuple[int, Mutant]]:
    numbered = list(enumerate(MUTANTS, 1))
    for word in words:
        if not any(word in (str(number), mutant.file) for number, mutant in numbered):
            raise SystemExit(f"{word} is neither the number of a fault nor a file that has one")
    return [(n, mutant) for n, mutant in numbered if not words or str(n) in words or mutant.file in words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", metavar="NUMBER|FILE", help="faults to seed; all where none is named")
    parser.add_argument("--runner", default=str(ROOT / "tests" / "emulate.sh"), help="builds, then runs pytest")
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="seconds for a build and its tests")
    parser.add_argument("--skip-baseline", action="store_true", help="do not see first that the sound tree passes")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))

    for mutant in MUTANTS:
        check_applies(mutant)
    picked, runner = chosen(options.which), shlex.split(options.runner)
    if not options.skip_baseline:
        failed, message = run_tests(runner, sorted({t for _, m in picked for t in m.tests}), options.limit)
        if failed:
            raise SystemExit(f"without any fault, {failed} fails: {message}")
    missed = 0
    for number, mutant in picked:
        begin = time.monotonic()
        try:
            with mutated(mutant):
                outcome = run_tests(runner, mutant.tests, options.limit)
        except NoAnswerError as reason:
            print(f"{number} {mutant.file}: {mutant.fault}: NO ANSWER: {reason}", flush=True)
            missed += 1
            continue
        missed += not outcome.test
        seconds = time.monotonic() - begin
        said = f"{outcome.test}: {outcome.message}" if outcome.test else "SURVIVES"
        print(f"{number} {mutant.file}: {mutant.fault}: {said} ({seconds:.0f} s)", flush=True)
        write_table({mutant: outcome})
    print(f"{len(picked) - missed} of {len(picked)} faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
