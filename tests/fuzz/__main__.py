"""Read random hostile shards with bounds on time and memory, and check the codes of their rows.

    python -m tests.fuzz --shards 10000 --first 0

A shard that breaks a bound is kept, and its number makes it again. A limit of the process takes the
place of measuring its memory: what needs more has the code `out_of_memory`, which none may have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory

from tests.fuzz.shards import shard

ROOT = Path(__file__).parents[2]
MEMORY = 512 << 20  # bytes
CPU_SECONDS = 10.0  # of one shard
HANG_SECONDS = 120.0
CODES = {"ok", "damaged_shard", "unsupported", "too_large", "empty"}


@dataclass(slots=True)
class Outcome:
    """Sums over the shards that were read.

    Attributes:
        codes: samples by code.
        slowest: seconds of CPU of the slowest, and its number.
        faults: what broke a bound, by the number of the shard.
    """

    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    faults: dict[int, str] = field(default_factory=dict)


def fuzz(numbers: Iterable[int], kept: Path) -> Outcome:
    """Read the shards of these numbers; those with a fault are kept in a folder."""
    outcome, left = Outcome(), iter(numbers)
    while True:
        with _reader() as reader:
            for number in left:
                if not _check(reader, number, outcome, kept):
                    break  # it has died: another continues
            else:
                return outcome


def _check(reader: subprocess.Popen[str], number: int, outcome: Outcome, kept: Path) -> bool:
    """Read one shard; return whether the reader is still alive."""
    name, data = shard(number)
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        answer = _ask(reader, path)
    if answer is None:
        outcome.faults[number] = f"{name}: the reader died or hung"
    else:
        seconds, codes = answer
        outcome.codes.update(codes)
        outcome.slowest = max(outcome.slowest, (seconds, number))
        if strange := codes.keys() - CODES:
            outcome.faults[number] = f"{name}: {', '.join(strange)}"
        elif seconds > CPU_SECONDS:
            outcome.faults[number] = f"{name}: {seconds} s"
    if number in outcome.faults:
        (kept / f"{number}-{name}").write_bytes(data)
    return answer is not None


def _ask(reader: subprocess.Popen[str], path: Path) -> tuple[float, Counter[str]] | None:
    """Return the seconds and the codes of a shard; None if the reader ends or hangs."""
    assert reader.stdin
    assert reader.stdout
    reader.stdin.write(f"{path}\n")
    reader.stdin.flush()
    if not select([reader.stdout], [], [], HANG_SECONDS)[0]:
        return None
    line = reader.stdout.readline()
    if not line:
        return None
    seconds, codes = json.loads(line)
    return seconds, Counter(codes)


@contextmanager
def _reader() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.fuzz.reader", str(MEMORY)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as reader:
        try:
            yield reader
        finally:
            reader.kill()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000, help="number of shards to read")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-faults"), help="folder of faults")
    given = parser.parse_args()
    given.kept.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcome = fuzz(range(given.first, given.first + given.shards), given.kept)
    seconds = time.monotonic() - started
    print(f"{given.shards:,} shards in {seconds:.0f} s, samples by code: {dict(outcome.codes)}")
    print("slowest: {:.1f} s of CPU, shard {}".format(*outcome.slowest))
    for number, fault in outcome.faults.items():
        print(f"shard {number}: {fault}")
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
