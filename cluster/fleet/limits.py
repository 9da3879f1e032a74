"""Limits of the endpoint against strangers, which hold in the HTTP proxy of each node.

Ray Serve's proxy sets none itself: it waits for ever for the first lines of a request, keeps any
number of connections and bytes, and hands a request to a replica, which has few places, before its
body is there. Here a connection must send a whole head in time (`Connection`), and only a request
with a token and a whole body passes, into a bounded amount of memory (`Front`).

Serve calls `install` in its proxies where the environment has `CALLBACK`.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from asyncio import TimerHandle, Transport
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import ClassVar

import uvicorn.protocols.http.auto
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.engine.errors import TooLarge
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.scan.rows import failure

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "prompt_iml.cluster.fleet.limits:install"}
TOKEN = "PROMPT_IML_SERVE_TOKEN"
HEAD_SECONDS = 10.0  # for the head of a request, after the connection or the answer before it
BODY_SECONDS = 30.0
LINGER_SECONDS = 2.0  # of reading on after a refusal, so that a client that sends can read it
CONNECTIONS = 500  # of a proxy, below the limit of open files
BODIES = 8  # as many of the largest bodies fit in a proxy's memory
# Headers that are passed on: others can change what Serve does.
FORWARDED = (b"authorization", b"content-type", b"accept", b"idempotency-key")
METHODS = {"/": "POST", "/v1/scan": "POST", "/openapi.json": "GET"}  # of each path
ADMITTED = "prompt_iml.admitted"  # key of the scope of a request that has the token


class Connection(H11Protocol):
    """HTTP connection that ends when its head does not come, or when there are too many.

    Of too many, the one ends that has waited longest for the rest of its request, unless this has
    the token. Heads have 16 KiB at most: h11 answers larger ones with 400.
    """

    head_seconds: ClassVar[float] = HEAD_SECONDS
    most: ClassVar[int] = CONNECTIONS
    waiting: ClassVar[dict[Connection, None]] = {}
    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wait for a request; end another connection if there are too many."""
        super().connection_made(transport)
        self.ws_protocol_class = None  # a WebSocket would have none of these limits
        self._update()
        if len(self.connections) > self.most:
            longest = next(each for each in self.waiting if each._is_waiting())
            del self.waiting[longest]
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._set_timer(False)
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_waiting(self) -> bool:
        return self._is_answered() or (self.cycle.more_body and ADMITTED not in self.scope)

    def _update(self) -> None:
        self._set_timer(self._is_answered())
        if self._is_waiting():
            self.waiting.setdefault(self)
        else:
            self.waiting.pop(self, None)

    def _set_timer(self, is_wanted: bool) -> None:
        if is_wanted and self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.abort)
        elif not is_wanted and self._timer:
            self._timer.cancel()
            self._timer = None


class Refused(Exception):
    """A request gets this response, and is not passed on.

    Args:
        status: HTTP status.
        answer: content of the response, as JSON.
        headers: headers of the response.
    """

    def __init__(self, status: int, answer: Json, headers: dict[str, str] | None = None) -> None:
        super().__init__(answer["error_message"])
        self.response: Response = JSONResponse(answer, status, headers)


def check_head(scope: Scope, token: bytes) -> None:
    """Check all of a request but its body; raise `Refused`.

    Args:
        scope: ASGI scope of the request.
        token: token that clients need; empty: none.
    """
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    is_known = hmac.compare_digest(given.strip(" ").encode("latin-1"), token)
    if token and not (is_known and scheme.lower() == "bearer"):
        message = "A token is needed: send it as `Authorization: Bearer TOKEN`."
        raise Refused(401, {"error_message": message}, {"WWW-Authenticate": "Bearer"})
    method = METHODS.get(scope["path"])
    if method is None:
        message = "There is no such path: POST an image to /v1/scan; /openapi.json describes more."
        raise Refused(404, {"error_message": message})
    if scope["method"] != method:
        message = f"There is no such method: {scope['path']} takes {method}."
        raise Refused(405, {"error_message": message}, {"Allow": method})


class Bodies:
    """Reader of the bodies of requests.

    Args:
        max_bytes: largest body.
        most_bytes: bytes of all bodies that are held at once.
    """

    seconds: ClassVar[float] = BODY_SECONDS

    def __init__(self, max_bytes: int, most_bytes: int) -> None:
        self._max_bytes, self._room = max_bytes, most_bytes

    @asynccontextmanager
    async def whole(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """Read a body, and hold it while the block runs; raise `Refused`."""
        self._check_size(int(Headers(scope=scope).get("content-length", 0)))
        body = bytearray()
        try:
            await self._read(receive, body)
            yield bytes(body)
        finally:
            self._room += len(body)

    async def _read(self, receive: Receive, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                while await self._read_on(receive, body):
                    pass
        except TimeoutError:
            message = f"The request body did not arrive in {self.seconds:g} s."
            raise Refused(408, {"error_message": message}) from None

    async def _read_on(self, receive: Receive, body: bytearray) -> bool:
        """Add a part to the body; return whether there is more."""
        event = await receive()
        if event["type"] != "http.request":
            raise Refused(400, {"error_message": "The connection ended before the request body."})
        chunk = event.get("body", b"")
        body += chunk
        self._room -= len(chunk)
        self._check_size(len(body))
        if self._room < 0:
            message = "Too many images arrive at once: try again."
            raise Refused(503, {"error_message": message}, {"Retry-After": "1"})
        return bool(event.get("more_body", False))

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            message = f"The request body is larger than {self._max_bytes} bytes."
            raise Refused(413, failure(TooLarge(message)))


class Front:
    """ASGI application before another, that passes on whole requests with the token alone.

    Args:
        app: Serve's, or a replica's.
        token: token that clients need; empty: none.
        max_bytes: largest body.
        bodies: as many of the largest bodies are held at once.
    """

    def __init__(self, app: ASGIApp, token: bytes, max_bytes: int, bodies: int = BODIES) -> None:
        self._app, self._token = app, token
        self._images, self._nothing = Bodies(max_bytes, bodies * max_bytes), Bodies(0, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":  # a replica's start and end
            await self._app(scope, receive, send)
            return
        try:
            async with self._checked(scope, receive) as body:
                headers = [pair for pair in scope["headers"] if pair[0] in FORWARDED]
                headers.append((b"content-length", b"%d" % len(body)))
                await self._app({**scope, "headers": headers}, _replay(body, receive), send)
        except Refused as refused:
            await _refuse(refused.response, receive, send)

    @asynccontextmanager
    async def _checked(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        is_serves = scope["method"] == "GET" and scope["path"].startswith("/-/")
        if not is_serves:
            check_head(scope, self._token)
            if self._token:
                scope[ADMITTED] = True
        bodies = self._images if scope["method"] == "POST" else self._nothing
        async with bodies.whole(scope, receive) as body:
            yield body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a whole body, and then what the connection gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _refuse(response: Response, receive: Receive, send: Send) -> None:
    """Send a response, read on for a moment, and close the connection.

    A connection that is closed on data that nobody read is reset, and its client may not see the
    response.
    """
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body"})


def install() -> list[Middleware]:
    """Set the limits in the process of a proxy, before it listens; return what Serve adds."""
    # uvicorn looks its protocol up by this name, and Serve passes no other.
    uvicorn.protocols.http.auto.AutoHTTPProtocol = Connection
    no_flags: Json = {}  # the environment says how large a body may be
    max_bytes = int(EndpointSettings(**no_flags).max_bytes)
    return [Middleware(Front, os.environ.get(TOKEN, "").encode(), max_bytes)]
