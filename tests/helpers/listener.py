"""A server that answers nothing and keeps what it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """Listen on this machine; yield the URL, and the first bytes of each connection so far."""
    asked = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # it was shut down
                while True:
                    with server.accept()[0] as client:
                        asked.append(client.recv(200))

        (thread := threading.Thread(target=serve)).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
