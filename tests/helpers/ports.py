"""Ports of this machine: one that is free, and waiting for a server on one."""

from __future__ import annotations

import socket
import subprocess
import time


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_for(port: int, seconds: int = 30, server: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a server listens on the port.

    Raises:
        TimeoutError: nothing listens after `seconds`, or the server has ended.
    """
    for _ in range(10 * seconds):
        if server is not None and server.poll() is not None:
            break
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")
