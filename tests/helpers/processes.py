"""Processes that a driver started, to be watched and killed."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prompt_iml.cluster.training.curves import read_curves

TIMEOUT = 240  # seconds
MARK = "TEST_MARK"  # environment variable that the processes of a test share


def scan_command(source: Path, output: Path) -> list[str]:
    """Return `prompt-iml scan SOURCE --output OUTPUT`, for more flags to follow."""
    scan = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan"]
    return [*scan, str(source), "--output", str(output)]


def kill_first_two(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill the next two processes that are started; their exit codes are added to the list."""
    start, killed = subprocess.Popen, list[int]()

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        if len(killed) < 2:
            process.kill()
            killed.append(process.wait())
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    return killed


def wait_for_reports(curves: str, number: int, driver: subprocess.Popen[bytes]) -> None:
    """Wait until the training run that `driver` started has made so many reports."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and driver.poll() is None:
        if len(read_curves(curves)) >= number:
            return
        time.sleep(0.2)
    raise TimeoutError(f"no report number {number}: {driver.poll()}")


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def processes_below(driver: int, title: str) -> list[int]:
    """Return the ids of a driver's descendants whose command line contains `title`."""
    titled = [pid for pid in _all() if title in _read(f"/proc/{pid}/cmdline")]
    return [pid for pid in titled if driver in _ancestors(pid)]


def wait_for_process(driver: subprocess.Popen[str], title: str) -> None:
    """Wait until a descendant of the driver has a command line that contains `title`."""
    deadline = time.monotonic() + TIMEOUT
    while not processes_below(driver.pid, title):
        if driver.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"no process {title}: {driver.poll()}")
        time.sleep(0.05)


def assert_ends(process: subprocess.Popen[str], number: int, code: int, line: str) -> None:
    """Assert that a process, started by `begin`, ends on a signal within a minute, with this exit
    code and last line on stderr, and that it leaves no process behind."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (code, line), err
    mark = f"{MARK}={process.args[-1]}"  # type: ignore[index]
    deadline = time.monotonic() + 20
    while left := [pid for pid in _all() if mark in _read(f"/proc/{pid}/environ")]:
        assert time.monotonic() < deadline, [_read(f"/proc/{pid}/cmdline") for pid in left]
        time.sleep(0.2)


@contextlib.contextmanager
def begin(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start `prompt-iml ARGUMENTS`; what it starts carries the last argument, a path or port. It is
    killed when a test fails meanwhile."""
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", *arguments]
    environment, pipe = os.environ | {MARK: arguments[-1]}, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _ancestors(pid: int) -> list[int]:
    parents: list[int] = []
    while pid > 1 and (stat := _read(f"/proc/{pid}/stat")):
        pid = int(stat.rpartition(")")[2].split()[1])
        parents.append(pid)
    return parents


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # it has ended


def listening(pid: int) -> set[str]:
    """Return the addresses at which a process accepts TCP connections."""
    links = set[str]()
    with contextlib.suppress(OSError):  # it has ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                links.add(str(link.readlink()))
        tables = _read("/proc/net/tcp") + _read("/proc/net/tcp6")
        rows = [line.split() for line in tables.splitlines()]
        # Columns: 1 the local address, 3 the state (0A: listens), 9 the socket's inode.
        return {_address(r[1]) for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in links}
    return set()


def _address(text: str) -> str:
    """Return the IP address in `0100007F:1F90`: 32-bit words in native byte order, then a port."""
    words, _, _ = text.partition(":")
    packed = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
    found = ipaddress.ip_address(packed)
    return str(getattr(found, "ipv4_mapped", None) or found)
