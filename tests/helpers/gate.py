"""A proxy in front of an S3 server that answers some requests itself, as other stores would."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """Response of the proxy: status, S3 error code, and further elements of the error."""

    status: int
    code: str
    more: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


# Called with method, path and headers; None passes the request on, with the headers that are left.
Refuse = Callable[[str, str, dict[str, str]], Answer | None]


@contextmanager
def gate(to: str, refuse: Refuse, certificate: Path | None = None) -> Iterator[str]:
    """Yield the URL of a proxy for the server `to`, in TLS if it has a certificate."""
    handler = type("Handler", (_Handler,), {"to": urlsplit(to).netloc, "refuse": (refuse,)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    to: str
    refuse: tuple[Refuse]

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = dict(self.headers.items())
        if answer := self.refuse[0](self.command, self.path, headers):
            text = f"<Error><Code>{answer.code}</Code><Message>No</Message>{answer.more}</Error>"
            self._send(answer.status, answer.headers, text.encode())
            return
        server = http.client.HTTPConnection(self.to)
        server.request(self.command, self.path, body, headers)
        response = server.getresponse()
        self._send(response.status, dict(response.getheaders()), response.read())
        server.close()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        length = str(len(body))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = _pass  # noqa: N815
