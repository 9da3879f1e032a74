"""Guard of the review's server: nobody but the person with the link reads or decides.

- The link has a random token. The page's answer sets it as a cookie, HttpOnly and SameSite=Strict,
  that every other request needs.
- The Host header must be the server's own, so that a stranger's name that resolves to 127.0.0.1
  (DNS rebinding) is refused.
- What changes something must have this server's Origin, so that no other page can post.
- The Content-Security-Policy lets the page load from this server alone, and be in no frame.
"""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 << 20  # bytes: a mask as base64, and a note
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI application that passes on only the requests that are allowed.

    Args:
        app: application to protect.
        port: port of the server on 127.0.0.1.
        token: secret of the link.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app, self._token = app, token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"prompt-iml-review-{port}"  # cookies do not differ by port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        is_link = self._is_token(request.query_params.get("token", ""))

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(message, is_link)
            await send(message)

        answer = self._refusal(request, is_link) or self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, request: Request, is_link: bool) -> Response | None:
        """Return the answer to a request that is not allowed; None for one that is."""
        host = request.headers.get("host", "")
        if host not in self._hosts:
            return _answer(HTTPStatus.MISDIRECTED_REQUEST, "This server has another name.")
        if not is_link and not self._is_token(request.cookies.get(self._cookie, "")):
            reason = "Open the link that prompt-iml review printed: it has a token."
            return _answer(HTTPStatus.FORBIDDEN, reason)
        if request.method not in ("GET", "HEAD"):
            if request.headers.get("origin") != f"http://{host}":
                return _answer(HTTPStatus.FORBIDDEN, "Another page must not post here.")
            length = request.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY:
                return _answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This is too much for a decision."
                )
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())

    def _add_headers(self, message: MutableMapping[str, object], is_link: bool) -> None:
        headers = MutableHeaders(raw=message.setdefault("headers", []))  # type: ignore
        headers.update(HEADERS)
        if is_link:
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            headers.append("Set-Cookie", cookie)


def _answer(status: HTTPStatus, text: str) -> Response:
    return PlainTextResponse(text, status)
