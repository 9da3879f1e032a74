"""Pictures over HTTPS from a real server: what may be fetched, and what is refused."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from prompt_iml.cluster.fleet import https
from prompt_iml.cluster.fleet.https import Fetcher
from prompt_iml.engine.errors import Denied, FetchError, FetchTimeout, NotFound, TooLarge

MAX_BYTES = 1000


class Store(BaseHTTPRequestHandler):
    """Answers by path: a redirect, an error, or bytes."""

    def do_GET(self) -> None:
        word, _, rest = self.path[1:].partition("/")
        match word:
            case "to":
                self._answer(302, b"", Location=rest)
            case "status":
                self._answer(int(rest), b"")
            case "slow":
                time.sleep(1)
                self._answer(200, b"late")
            case "endless":
                self.send_response(200)
                self.end_headers()
                while not self.wfile.closed:
                    self.wfile.write(bytes(100))
            case "bytes":
                self._answer(200, bytes(int(rest)))

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for localhost."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]
    )  # fmt: skip
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), address])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, *plain)
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients break off
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetcher(port: int, certificate: Path) -> Fetcher:
    """One for which the server's address counts as public."""
    context = ssl.create_default_context(cafile=certificate)
    return Fetcher([f"localhost:{port}"], MAX_BYTES, lambda _: True, context)


def get(fetcher: Fetcher, url: str, after: float = 0.1) -> bytes:
    """Fetch, and wait so many seconds until the loop has closed the connection."""

    async def fetch() -> bytes:
        try:
            return await fetcher.fetch(url)
        finally:
            await asyncio.sleep(after)

    return asyncio.run(fetch())


def test_a_picture_is_fetched_and_redirects_on_the_list_are_followed(
    fetcher: Fetcher, port: int
) -> None:
    here = f"https://localhost:{port}"
    assert get(fetcher, f"{here}/bytes/1000") == bytes(1000)
    assert get(fetcher, f"{here}/to//bytes/3") == bytes(3)
    assert get(fetcher, f"{here}/to/{here}/bytes/3") == bytes(3)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("bytes/1001", TooLarge, "more than 1000 bytes"),
        ("endless", TooLarge, "more than 1000 bytes"),
        ("status/404", NotFound, "no such picture"),
        ("status/403", Denied, "denies access"),
        ("status/500", FetchError, "status 500"),
        ("to/https://127.0.0.1:1/a", Denied, "not on the list"),
        ("to/http://localhost:1/a", Denied, "not on the list"),
        ("to/https://localhost/a", Denied, "not on the list"),
        ("to/file:///etc/passwd", Denied, "not on the list"),
        ("to/https://localhost:99999/", Denied, "no URL"),
    ],
)
def test_what_is_not_fetched_is_named(
    path: str, error: type[Exception], message: str, fetcher: Fetcher, port: int
) -> None:
    with pytest.raises(error, match=message):
        get(fetcher, f"https://localhost:{port}/{path}")


def test_redirects_in_a_circle_end(fetcher: Fetcher, port: int) -> None:
    with pytest.raises(FetchError, match="more than 3 times"):
        get(fetcher, f"https://localhost:{port}/" + "to//" * 5)


def test_a_slow_host_has_a_time_limit(
    fetcher: Fetcher, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "SECONDS", 0.3)
    with pytest.raises(FetchTimeout, match=r"0\.3 s"):
        get(fetcher, f"https://localhost:{port}/slow", after=2)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/bytes/1",
        "https://user@localhost:{port}/bytes/1",
        "https://127.0.0.1:{port}/bytes/1",
        "https://localhost/bytes/1",
        "https://localhost.:{port}/bytes/1",
        "https://localhost:{port}\\@a.example/",
        "https://",
        "localhost",
    ],
)
def test_urls_off_the_list_are_denied(url: str, fetcher: Fetcher, port: int) -> None:
    with pytest.raises(Denied):
        get(fetcher, url.format(port=port))


def test_a_host_with_a_private_address_is_denied(certificate: Path, port: int) -> None:
    context = ssl.create_default_context(cafile=certificate)
    with pytest.raises(Denied, match="localhost has an address that is not public"):
        get(Fetcher([f"localhost:{port}"], MAX_BYTES, context=context), f"https://localhost:{port}")


def test_a_host_whose_certificate_nobody_trusts_is_not_read(port: int) -> None:
    with pytest.raises(FetchError, match="certificate"):
        get(Fetcher([f"localhost:{port}"], MAX_BYTES, lambda _: True), f"https://localhost:{port}")
