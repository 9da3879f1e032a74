"""The endpoint's limits against clients on real sockets; times and sizes are short ones."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from prompt_iml.cluster.fleet import limits
from prompt_iml.cluster.fleet.limits import BODIES, Bodies, Connection, Front
from tests.helpers.endpoint import listening

TOKEN = "of-a-test"
MAX_BYTES = 100_000
SECONDS = 1.0  # for a head, and for a body
MOST = 20
POST = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
HELD = "Content-Type: held\r\n"  # its answer waits until `Held.free` is set


class Short(Connection):
    head_seconds = SECONDS
    most = MOST
    waiting: ClassVar[dict[Connection, None]] = {}


class Held:
    """Application that answers with the size of the body and the headers that it was given."""

    def __init__(self) -> None:
        self.free = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        size = len(await request.body())
        while request.headers.get("content-type") == "held" and not self.free.is_set():
            await asyncio.sleep(0.01)
        answer = {"size": size, "headers": dict(request.headers), "path": scope["path"]}
        await JSONResponse(answer)(scope, receive, send)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def port(held: Held, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(Bodies, "seconds", SECONDS)
    monkeypatch.setattr(limits, "LINGER_SECONDS", SECONDS)
    with listening(Front(held, TOKEN.encode(), MAX_BYTES), Short) as port:
        yield port
        held.free.set()


@pytest.fixture
def connect(port: int) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as opened:
        yield lambda: opened.enter_context(socket.create_connection(("127.0.0.1", port), 20))


Connect = Callable[[], socket.socket]


def answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read one response; status 0 if the connection was closed without one."""
    with client.makefile("rb") as file:
        status = file.readline()
        if not status:
            return 0, {}
        size = 0
        while (line := file.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        return int(status.split()[1]), json.loads(file.read(size) or b"{}")


def ask(connect: Connect, text: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    client = connect()
    client.sendall(text.encode("latin-1") + b"\r\n" + body)
    return answer(client)


def sized(body: bytes) -> str:
    return f"{POST}Content-Length: {len(body)}\r\n"


def closed_after(client: socket.socket) -> float:
    """Return the seconds until the other side closes the connection."""
    begun = time.monotonic()
    with suppress(ConnectionError):
        while client.recv(65536):
            pass
    return time.monotonic() - begun


def test_an_image_passes_whole(connect: Connect) -> None:
    status, told = ask(connect, sized(bytes(90_000)), bytes(90_000))
    assert (status, told["size"]) == (200, 90_000)


def test_chunks_pass_as_one_body(connect: Connect) -> None:
    chunked = b"5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n"
    status, told = ask(connect, POST + "Transfer-Encoding: chunked\r\n", chunked)
    assert (status, told["size"], told["headers"]["content-length"]) == (200, 8, "8")


def test_headers_that_steer_serve_do_not_pass(connect: Connect) -> None:
    steering = "X-Request-Timeout-Seconds: 0\r\nX-Session-Id: \xff\r\nX-Request-ID: 1\r\n"
    status, told = ask(connect, sized(b"") + steering)
    assert (status, set(told["headers"])) == (200, {"authorization", "content-length"})


def test_a_connection_serves_one_request_after_another(connect: Connect) -> None:
    client = connect()
    for size in (3, 0, 90_000):
        client.sendall(f"{sized(bytes(size))}\r\n".encode() + bytes(size))
        assert answer(client)[1]["size"] == size
    assert closed_after(client) < 5 * SECONDS


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_bearer_is_written_in_any_case(scheme: str, connect: Connect) -> None:
    head = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: {scheme}{TOKEN}\r\n"
    assert ask(connect, head + "Content-Length: 0\r\n")[0] == 200


@pytest.mark.parametrize(
    "given", ["", "Bearer", f"Basic {TOKEN}", f"Bearer{TOKEN}", "Bearer \xff", f"Bearer {TOKEN} x"]
)
def test_another_token_is_refused_before_the_body(given: str, connect: Connect) -> None:
    head = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: {given}\r\nContent-Length: 90000\r\n"
    status, told = ask(connect, head)
    assert (status, "A token is needed" in told["error_message"]) == (401, True)


@pytest.mark.parametrize("sent", [b"", b"POST / HT", POST.encode()])
def test_a_head_that_does_not_come_ends_the_connection(sent: bytes, connect: Connect) -> None:
    client = connect()
    client.sendall(sent)
    assert SECONDS / 2 < closed_after(client) < 5 * SECONDS


def test_a_head_that_drips_ends_the_connection(connect: Connect) -> None:
    client = connect()
    client.settimeout(SECONDS / 10)
    drops = 0
    with suppress(ConnectionError):
        while drops < 100:
            client.sendall(b"X")
            drops += 1
            with suppress(TimeoutError):
                assert client.recv(1) == b""
                break
    assert 2 < drops < 50


def test_a_large_head_is_refused(connect: Connect) -> None:
    client = connect()
    with suppress(ConnectionError):
        client.sendall(POST.encode() + b"X: " + bytes(10**6).replace(b"\0", b"x"))
    assert closed_after(client) < 5 * SECONDS


def test_a_body_that_does_not_come_is_refused(connect: Connect) -> None:
    status, told = ask(connect, sized(bytes(9)), b"12345678")
    assert (status, told["error_message"]) == (408, "The request body did not arrive in 1 s.")


@pytest.mark.parametrize("head", ["Content-Length: 9437184\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_client_that_sends_on_reads_the_refusal(head: str, connect: Connect) -> None:
    """A connection closed at once would be reset while the client still sends."""
    first = b"900000\r\n" if "chunked" in head else b""
    status, told = ask(connect, POST + head, first + bytes(9 << 20))
    assert (status, told["error_code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("line", "status"), [("GET / HTTP/1.1", 405), ("POST /other HTTP/1.1", 404), ("GET /", 400)]
)
def test_there_is_one_place_and_one_method(line: str, status: int, connect: Connect) -> None:
    assert ask(connect, POST.replace("POST / HTTP/1.1", line))[0] == status


def test_serves_own_paths_need_no_token_and_take_no_body(connect: Connect) -> None:
    head = "GET /-/healthz HTTP/1.1\r\nHost: x\r\n"
    assert ask(connect, head)[1]["path"] == "/-/healthz"
    assert ask(connect, head + "Content-Length: 1\r\n", b"x")[0] == 413
    assert ask(connect, head.replace("GET", "POST"))[0] == 401


def test_a_websocket_is_a_request_as_others_are(connect: Connect) -> None:
    upgrade = (
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    assert ask(connect, upgrade)[0] == 401


def test_idle_connections_make_room_for_a_request(connect: Connect) -> None:
    idle = [connect() for _ in range(3 * MOST)]
    for client in idle[::2]:
        with suppress(ConnectionError):
            client.sendall(b"POST / HTTP/1.1\r\nX: ")
    assert ask(connect, sized(b"abc"), b"abc")[0] == 200
    assert closed_after(idle[0]) < SECONDS / 2  # not for want of a head: it was the oldest


def test_an_upload_with_the_token_outlasts_a_flood(connect: Connect) -> None:
    upload = connect()
    upload.sendall(sized(bytes(10)).encode() + b"\r\n1234567")
    time.sleep(SECONDS / 5)
    for _ in range(3 * MOST):
        connect()
    time.sleep(SECONDS / 5)
    upload.sendall(b"890")
    assert answer(upload)[0] == 200


def test_bodies_fill_a_bounded_memory(connect: Connect, held: Held) -> None:
    body = bytes(MAX_BYTES)
    with ThreadPoolExecutor(BODIES) as clients:
        waiting = [clients.submit(ask, connect, sized(body) + HELD, body) for _ in range(BODIES)]
        deadline = time.monotonic() + 20
        while (status := ask(connect, sized(b"x"), b"x")[0]) != 503:
            assert time.monotonic() < deadline
        assert status == 503
        held.free.set()
        assert [each.result()[0] for each in waiting] == [200] * BODIES
    assert ask(connect, sized(body), body)[0] == 200


def test_a_client_that_goes_away_leaves_its_room(connect: Connect) -> None:
    for _ in range(3 * BODIES):
        client = connect()
        client.sendall(sized(bytes(MAX_BYTES)).encode() + b"\r\n" + bytes(MAX_BYTES // 2))
        client.close()
    body = bytes(MAX_BYTES)
    deadline = time.monotonic() + 5 * SECONDS
    while (status := ask(connect, sized(body), body)[0]) == 503 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == 200
