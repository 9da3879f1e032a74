"""`make gpu`: run every part, write one JSON and one table.

    python -m tests.bench.gpu [--rehearse] [--again] [--only PART] [--output DIR] [--list]

Run again, it skips the parts that are done for this code and this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench.gpu.files import PACKAGES, ROOT, digest, listed
from tests.bench.gpu.parts import DONE, MACHINE, PARTS, Record, Result, run_part

MINUTES = 8
LEAST_SECONDS = 15  # a part that would get less is left for the next run


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if the parts are done, 2 without a GPU, 3 if one is not done."""
    options = _options(arguments)
    if options.list:
        _list()
        return 0
    if options.part:
        _measure(options.part, options.write)
        return 0
    with _environment(options.rehearse) as environment:
        return _run(options, environment)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="run every part on a CPU, in small")
    parser.add_argument("--again", action="store_true", help="run parts again that are done")
    parser.add_argument("--only", choices=list(PARTS), help="run this part alone")
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all parts")
    parser.add_argument("--list", action="store_true", help="print what must be carried, and end")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, environment: dict[str, str]) -> int:
    deadline = time.monotonic() + 60 * options.minutes
    machine = run_part(MACHINE, PARTS[MACHINE][1], environment)
    if machine.status != DONE:
        print(f"make gpu: {(machine.error.splitlines() or ['timeout'])[-1]}", file=sys.stderr)
        return 2
    record = _record(options.output, machine)
    names = [options.only] if options.only else [name for name in PARTS if name != MACHINE]
    for name in names:
        if record.is_done(name) and not options.again:
            print(f"{name}: done before", file=sys.stderr)
            continue
        left = min(PARTS[name][1], deadline - time.monotonic())
        if left < LEAST_SECONDS:
            print(f"{name}: no time left; run it again", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        record.put(name, run_part(name, left, environment))
        record.path.with_suffix(".txt").write_text(record.table())
    print(record.table(), end="")
    print(f"\n{record.path}")
    return 0 if all(record.is_done(name) for name in names) else 3


def _record(folder: Path, machine: Result) -> Record:
    """Return the record of this code on this machine; another code or machine has its own file."""
    about = {"date": time.strftime("%Y-%m-%d"), "code": digest(), "commit": _commit()}
    about |= {"cpu": f"{os.cpu_count()} x {platform.machine()}", **machine.found}
    words = re.sub(r"[^\w.]+", "-", "-".join([about["code"], *machine.found.values()]))
    return Record(folder / f"{words}.json", about)


def _commit() -> str:
    """Return the commit; `unknown` in a copy without its history."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.strip()


def _measure(name: str, write: Path) -> None:
    """Run one part in this process, and write what it found."""
    module, function = PARTS[name][0].split(":")
    found: Any = getattr(import_module(f"tests.bench.gpu.{module}"), function)()
    rows = found if isinstance(found, dict) else [asdict(row) for row in found if is_dataclass(row)]
    write.write_text(json.dumps(rows))


@contextmanager
def _environment(rehearsed: bool) -> Iterator[dict[str, str]]:
    """Yield the variables of the parts; in a rehearsal the emulator is the CUDA driver."""
    if not rehearsed:
        yield {}
        return
    from tests.helpers.emulator import compile_emulator

    with tempfile.TemporaryDirectory() as folder:
        compile_emulator(Path(folder))
        yield {"PROMPT_IML_REHEARSE": "1", "LD_LIBRARY_PATH": folder}


def _list() -> None:
    """Print paths and sizes to carry, and the packages that this Python lacks."""
    paths = list(listed())
    for path in paths:
        print(path.relative_to(ROOT))
    size = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
    lacking = [name for name in PACKAGES if find_spec(name.split(".")[0]) is None]
    print(f"{len(paths)} files, {size:.1f} MB; packages: {', '.join(PACKAGES)}", file=sys.stderr)
    print(f"this Python lacks {', '.join(lacking) or 'none of them'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
