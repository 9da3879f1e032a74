"""A Ray head node for one test, started by `ray start` on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helpers.ports import free_port, wait_for
from tests.helpers.processes import processes_below

TOKEN = "0123456789abcdef" * 4
PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port", "node-manager-port", "object-manager-port",
    "ray-client-server-port",
)  # fmt: skip
ATTEMPTS = 3


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a head and its clients: it finds our commands, and no other
    cluster."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ray = {"RAY_ADDRESS": "", "RAY_API_SERVER_ADDRESS": "", "RAY_USAGE_STATS_ENABLED": "0"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return os.environ | ray | token | {"PATH": path} | more


@contextlib.contextmanager
def ray_head(
    env: Mapping[str, str],
    *flags: str,
    ports: Mapping[str, int] | None = None,
    folder: Path | None = None,
) -> Iterator[Mapping[str, int]]:
    """Start a head and yield its ports once it answers; its session files lie in `folder`, or in a
    temporary one. It is ended by process id, since `ray stop` would end every Ray of the machine.
    """
    ports = ports or free_ports()
    with contextlib.nullcontext(folder) if folder else short_folder() as sessions:
        command = ["ray", "start", "--head", "--block", f"--temp-dir={sessions}", *flags]
        command += [f"--{name}={port}" for name, port in ports.items()]
        process = _start(command, env, ports)
        try:
            yield ports
        finally:
            _kill(process)


def _start(
    command: list[str], env: Mapping[str, str], ports: Mapping[str, int]
) -> subprocess.Popen[bytes]:
    """Start a head that answers. On a busy machine Ray gives up after some seconds: try again."""
    for attempt in range(ATTEMPTS):
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            for name in ("dashboard-port", "dashboard-agent-listen-port"):
                wait_for(ports[name], seconds=120, server=process)
        except TimeoutError:
            _kill(process)
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return process
    raise AssertionError


def _kill(process: subprocess.Popen[bytes]) -> None:
    for pid in [*processes_below(process.pid, ""), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a temporary folder whose path is short enough for the paths of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def free_ports() -> dict[str, int]:
    """Return a free port for each name in `PORTS`."""
    return {name: free_port() for name in PORTS}
