"""The parts, each a process of its own with a time limit, and the record that they fill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.gpu.files import ROOT

MACHINE = "machine"
PARTS = {  # function, and seconds: with what starts a process, below eight minutes together
    MACHINE: ("device:facts", 40),
    "kernel tests": ("kernel_tests:measure", 75),
    "operator": ("operator:measure", 60),
    "parity": ("engine:parity", 75),
    "rates": ("engine:rates", 60),
    "training": ("training:measure", 45),
    "search": ("search:measure", 35),
    "compiled": ("engine:compiled", 80),
}
DONE = "done"


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a part.

    Attributes:
        status: `done`, `failed` or `timeout`.
        seconds: wall time.
        found: its rows, or the machine's facts.
        error: last lines of the failed process.
    """

    status: str
    seconds: float
    found: Any = None
    error: str = ""


def run_part(name: str, limit: float, environment: Mapping[str, str]) -> Result:
    """Run a part in a process of its own; a process that takes too long is killed with its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, "-m", "tests.bench.gpu", "--part", name, "--write", str(found)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip
            try:
                code, status = process.wait(limit), "failed"
            except subprocess.TimeoutExpired:
                code, status = None, "timeout"
            with_children = process.pid  # as it leads a session, also the number of its group
            _kill(with_children)
            process.wait()
        seconds = round(time.monotonic() - started, 1)
        if code == 0:
            return Result(DONE, seconds, json.loads(found.read_text()))
        return Result(status, seconds, error="\n".join(_tail(log)))


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-12:]


class Record:
    """Results by part, as one JSON file, which is written after each part."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, dict(about)
        self.parts: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.parts = json.loads(path.read_text())["parts"]

    def is_done(self, name: str) -> bool:
        """Return whether an earlier run has done this part."""
        return self.parts.get(name, {}).get("status") == DONE

    def put(self, name: str, result: Result) -> None:
        """Add a result, and write the file."""
        self.parts[name] = {n: getattr(result, n) for n in Result.__slots__}
        text = json.dumps({**self.about, "parts": self.parts}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".part")
        half.write_text(text)
        half.replace(self.path)

    def table(self) -> str:
        """Return the results as text, a line for each number."""
        lines = [" ".join(f"{name} {value}," for name, value in self.about.items()).rstrip(",")]
        for name in (name for name in PARTS if name in self.parts and name != MACHINE):
            part = self.parts[name]
            lines.append(f"\n{name}: {part['status']} in {part['seconds']} s")
            lines += [_line(**row) for row in part["found"] or []]
            lines += [f"  | {line}" for line in part["error"].splitlines()]
        return "\n".join(lines) + "\n"


def _line(name: str, value: float | None, unit: str, note: str) -> str:
    number = "-" if value is None else f"{value:.4g}"
    return f"  {name:44} {number:>9} {unit:14} {note}".rstrip()
