"""A web server with a certificate of its own, whose paths are the faults that servers have."""

from __future__ import annotations

import datetime
import gzip
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ADDRESSES = ("127.0.0.1", "127.0.0.2")


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate that signs itself, for this machine, and its key; return both paths."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ip_address(a)) for a in ADDRESSES)]
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(encoding))
    paths[1].write_bytes(private.private_bytes(encoding, form, serialization.NoEncryption()))
    return paths


class WebServer(ThreadingHTTPServer):
    """Server of `files`, by name.

    `/file/NAME` answers in full, and the first word of other paths says what goes wrong.
    `requests` counts the requests by path.
    """

    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.files: dict[str, bytes] = {}
        self.requests = Counter[str]()
        self.uri = f"https://localhost:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Be silent: clients hang up on purpose."""


class Handler(BaseHTTPRequestHandler):
    """Handler of a request for `WORD/NAME`."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        """Answer with a file, as the first word of the path says."""
        path = self.path.partition("?")[0]
        self.server.requests[path] += 1
        _, word, name = path.split("/", 2)
        data = self.server.files.get(name, b"")
        with suppress(OSError):  # the client has gone
            getattr(self, f"answer_{word}")(name, data)

    def send(self, data: bytes, status: int = 200, **headers: str) -> None:
        """Send an answer; a header's name has `_` for `-`."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(data))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def answer_file(self, name: str, data: bytes) -> None:
        """Send the file, or the part that is asked for."""
        if name not in self.server.files:
            self.send(b"no", 404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.send(data, ETag='"1"')
        elif not data:
            self.send(b"", 416, Content_Range="bytes */0")
        else:
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            span = f"bytes {start}-{end - 1}/{len(data)}"
            self.send(data[start:end], 206, Content_Range=span, ETag='"1"')

    def answer_whole(self, name: str, data: bytes) -> None:
        """Send the file whole, whatever is asked for."""
        self.send(data)

    def answer_endless(self, name: str, data: bytes) -> None:
        """Send zeros without end, and no length."""
        self.send(b"", Transfer_Encoding="chunked", Content_Length="")
        while True:
            self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def answer_slow(self, name: str, data: bytes) -> None:
        """Send a byte at a time."""
        self.send(b"", Content_Length=str(len(data)))
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)

    def answer_silent(self, name: str, data: bytes) -> None:
        """Send nothing."""
        time.sleep(3)

    def answer_short(self, name: str, data: bytes) -> None:
        """Break off halfway."""
        self.send(data[: len(data) // 2], Content_Length=str(len(data)), Connection="close")
        self.close_connection = True

    def answer_gzip(self, name: str, data: bytes) -> None:
        """Send the file compressed, though nobody asked for it."""
        self.send(gzip.compress(data), Content_Encoding="gzip")

    def answer_to(self, name: str, data: bytes) -> None:
        """Redirect to a path, or to a URL."""
        where = self.path.partition("?")[2]
        self.send(b"", 302, Location=where if "://" in where else f"/{name}")

    def answer_round(self, name: str, data: bytes) -> None:
        """Redirect to this path."""
        self.send(b"", 302, Location=self.path)

    def answer_status(self, name: str, data: bytes) -> None:
        """Answer with a status."""
        self.send(b"an error", int(name))

    def answer_flaky(self, name: str, data: bytes) -> None:
        """Send the file after two errors."""
        count = self.server.requests[self.path]
        self.send(data, (429, 503, 200)[min(count, 3) - 1])


@contextmanager
def serving(certificate: Path, key: Path) -> Iterator[WebServer]:
    """Run a server while the block runs."""
    with WebServer(certificate, key) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()
