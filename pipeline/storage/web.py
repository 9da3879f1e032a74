"""Files of web servers, by https: read within limits, and from public addresses alone.

The author of a list must not reach what only the machines that scan can reach. So each address is
checked before it is connected to, also after a redirect, unless `Access.private_addresses` is set.
Proxies of the environment are not used: they would look names up themselves.
"""

from __future__ import annotations

import atexit
import errno
import functools
import ipaddress
import os
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fsspec.asyn import get_loop, sync
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from prompt_iml.engine.errors import (
    BadAnswer,
    Denied,
    FetchError,
    FetchTimeout,
    NotFound,
    TooLarge,
)
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.storage import s3
from prompt_iml.pipeline.units import too_large

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0  # between two pieces of an answer
TOTAL_SECONDS = 300.0  # of one request, with its redirects
MOST_REDIRECTS = 5
MOST_WHOLE = 256 << 20  # bytes of a shard or list on a server that does not send parts of files
ALLOW = "--allow-private-addresses"

_CHUNK = 1 << 16
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")
_PASSING = {408, 425, 429}  # and all from 500 on
_DENIED = {401, 403, 407, 451}
_GONE = {404, 410}
# Not private by their numbers: machines at Azure and Oracle have their metadata at the first two,
# and a network may map all of IPv4 to the last.
_SHUT = ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48")
_METADATA = tuple(map(ipaddress.ip_network, _SHUT))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PRIVATE = f"is a private address: it is read only with {ALLOW}"
_REFUSED = re.compile(rf"[^\s\[]+ {re.escape(_PRIVATE)}")


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, and no machine's metadata."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or inner or ip
    return ip.is_global and not ip.is_multicast and not any(ip in each for each in _METADATA)


class WebFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """File system of fsspec over https; a path is a URL without its scheme.

    Its methods raise `FetchError`.
    """

    protocol = "https"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **_: object) -> dict[str, Any]:
        """Return `size` (-1 if the server does not say), `ETag`, and `parts`: whether the server
        sends parts of the file."""
        answer = _get(path, (0, 0), -1)
        size = answer.total
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        known = {"name": path, "type": "file", "size": size, "parts": answer.status == 206}
        return known | {"ETag": tag.removeprefix("W/")}

    def cat_file(self, path: str, most: int, **_: object) -> bytes:
        """Return all bytes of a file; raise `TooLarge` if they are more than `most`."""
        return _get(path, None, most).body

    def _open(self, path: str, mode: str = "rb", **options: Any) -> _WebFile:
        known = self.info(path)
        if known["size"] < 0:
            raise BadAnswer(f"https://{path}: its server does not say its size: download it first")
        if not known["parts"]:
            options["cache_type"] = "all"
        return _WebFile(self, path, mode, size=known["size"], **options)


class _WebFile(AbstractBufferedFile):  # type: ignore[misc]
    """File that is read in parts, or whole where the server does not send parts."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        whole = end - start == self.size
        if whole and self.size > MOST_WHOLE:
            reason = "its server does not send parts of files: download it first"
            raise BadAnswer(f"https://{self.path}: {reason}")
        answer = _get(self.path, None if whole else (start, end - 1), end - start)
        if answer.total != self.size or answer.start != start:
            raise FetchError(f"https://{self.path}: another part arrived than was asked for")
        return answer.body


@functools.cache
def filesystem(pid: int) -> WebFileSystem:
    """Return the file system of a process."""
    return WebFileSystem(skip_instance_cache=True)


class _Answer(NamedTuple):
    """Answer of a server.

    Attributes:
        start: position of the body in the file.
        total: bytes of the whole file; -1 if the server does not say.
    """

    status: int
    headers: Any
    body: bytes
    start: int
    total: int


def _get(path: str, span: tuple[int, int] | None, most: int) -> _Answer:
    """Return the answer to a GET.

    Args:
        path: URL without its scheme.
        span: first and last byte of the part to ask for; None: all.
        most: limit of the body; -1: it is not read.

    Raises:
        TooLarge: the body is longer.
        FetchError: the server gives no such file, or not now, or must not be read.
    """
    url = f"https://{path}"
    try:
        return cast(_Answer, sync(get_loop(), _request, url, span, most))
    except (FetchError, TooLarge):
        raise
    except Exception as error:  # aiohttp raises many kinds, also of its own parsers
        raise _failure(url, error) from error


async def _request(url: str, span: tuple[int, int] | None, most: int) -> _Answer:
    headers = {"Range": f"bytes={span[0]}-{span[1]}"} if span else {}
    session = _session(os.getpid(), s3.current().private_addresses)
    async with session.get(url, headers=headers, max_redirects=MOST_REDIRECTS + 1) as response:
        part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 416 and part and part[2] == "0":  # a part of an empty file
            return _Answer(200, response.headers, b"", 0, 0)
        _check_status(url, response.status, response.reason)
        is_part = response.status == 206 and part is not None
        is_packed = response.headers.get("Content-Encoding", "identity") != "identity"
        length = None if is_packed else response.content_length
        body = await _body(response, most) if most >= 0 else b""
        total = int(part[2]) if part and is_part else -1 if length is None else length
        start = int(part[1] or 0) if part and is_part else 0
        return _Answer(206 if is_part else 200, response.headers, body, start, total)


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    if refused := too_large(response.content_length or 0, most):
        raise refused
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > most:
            raise TooLarge(f"more than the limit of {most} bytes")
    return bytes(body)


def _check_status(url: str, status: int, reason: str | None) -> None:
    message = f"{url}: HTTP {status} {reason or ''}".rstrip()
    if status in _GONE:
        raise NotFound(message)
    if status in _DENIED:
        raise Denied(message)
    if status in _PASSING or status >= 500:
        raise FetchError(message)
    if status >= 300:
        raise BadAnswer(message)


def _failure(url: str, error: Exception) -> FetchError:
    """Return the error of a request that got no answer."""
    import aiohttp

    message = f"{url}: {one_line(error) or type(error).__name__}"
    if refused := _REFUSED.search(message):
        return Denied(f"{url}: {refused[0]}")
    if isinstance(error, TimeoutError):
        return FetchTimeout(f"{url}: no answer, or not all of it, in time")
    if isinstance(error, aiohttp.TooManyRedirects):
        return BadAnswer(f"{url}: more than {MOST_REDIRECTS} redirects")
    if isinstance(error, aiohttp.RedirectClientError):
        return BadAnswer(f"{url}: a redirect to {one_line(error)}, which is not read")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        fix = "set SSL_CERT_FILE to a file with the certificate of its authority"
        return BadAnswer(f"{message}: {fix}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        missing = getattr(error.os_error, "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA)
        return (NotFound if missing else FetchError)(f"{url}: no address of this server is known")
    if isinstance(error, ValueError | aiohttp.InvalidURL):
        return BadAnswer(message)
    return FetchError(message)


@functools.cache
def _session(pid: int, private: bool) -> aiohttp.ClientSession:
    """Return the session of a process; called in fsspec's loop."""
    import aiohttp

    class Connector(aiohttp.TCPConnector):
        """Connector for https alone, which redirects may leave."""

        async def connect(self, req: Any, *args: Any, **kwargs: Any) -> Any:
            if req.url.scheme != "https":
                raise BadAnswer(f"{req.url}: a redirect to http://, which is not read")
            return await super().connect(req, *args, **kwargs)

    session = aiohttp.ClientSession(
        connector=Connector(
            ssl=ssl.create_default_context(),
            socket_factory=None if private else _public_socket,
        ),
        timeout=aiohttp.ClientTimeout(
            total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "prompt-iml", "Accept-Encoding": "identity"},
    )
    atexit.register(lambda: pid == os.getpid() and sync(get_loop(), session.close, timeout=1))
    return session


def _public_socket(info: Any) -> socket.socket:
    """Return a socket for an address that is about to be connected to; refuse private ones."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PermissionError(errno.EACCES, f"{address[0]} {_PRIVATE}")
    return socket.socket(family, kind, protocol)
