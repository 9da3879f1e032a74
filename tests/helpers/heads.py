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
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block"]
            + [f"--temp-dir={sessions}", *flags]
            + [f"--{name}={port}" for name, port in ports.items()],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for name in ("dashboard-port", "dashboard-agent-listen-port"):
                wait_for(ports[name], seconds=120)
            yield ports
        finally:
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
