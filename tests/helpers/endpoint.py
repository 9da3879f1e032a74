"""The endpoint: a replica behind its limits on a real socket, and `prompt-iml serve` itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import uvicorn
from starlette.types import ASGIApp

from prompt_iml.cluster.fleet.limits import Connection
from tests.helpers.ports import free_port

TOKEN = "PROMPT_IML_SERVE_TOKEN"


@contextmanager
def listening(app: ASGIApp, http: type[Connection] = Connection) -> Iterator[int]:
    """Serve an application as a proxy of Serve does while the block runs; yields the port."""
    config = uvicorn.Config(app, http=http, lifespan="off", log_level="critical", loop="asyncio")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join(30)


@contextmanager
def serving(*flags: str, **environment: str) -> Iterator[int]:
    """Run `prompt-iml serve FLAGS` with one replica while the block runs; yields the port.

    It requires the token that `environment` has, and none otherwise.
    """
    port = free_port()
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "serve", "--address=local"]
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN}
    with subprocess.Popen(
        [*command, f"--port={port}", *flags],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        lines = list(takewhile(lambda line: "serving at" not in line, process.stderr))
        assert process.poll() is None, lines
        try:
            yield port
        finally:
            process.terminate()
            out, err = process.communicate(timeout=120)
    summary = json.loads(out.splitlines()[-1])
    assert (process.returncode, summary["url"]) == (0, f"http://127.0.0.1:{port}/"), err
