"""A replica of the endpoint behind its limits on a real socket, without Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from prompt_iml.cluster.fleet.limits import Connection


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
