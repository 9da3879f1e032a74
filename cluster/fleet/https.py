"""Pictures that are fetched over HTTPS from hosts on a list, and from nowhere else.

Addresses are checked where they are connected to, so that a name cannot change its address between
the check and the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from prompt_iml.engine.errors import Denied, FetchError, FetchTimeout, NotFound, TooLarge
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.storage.web import is_public

SECONDS = 20.0  # for all of a fetch
REDIRECTS = 3
Check = Callable[[str], bool]


class _Resolver(AbstractResolver):
    """Resolver that fails for names of which any address is refused."""

    def __init__(self, check: Check) -> None:
        self._check, self._resolver = check, aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Return the addresses of a host."""
        found = await self._resolver.resolve(host, port, family)  # type: ignore[arg-type]
        if not all(self._check(each["host"]) for each in found):
            raise Denied(f"{host} has an address that is not public")
        return found

    async def close(self) -> None:
        """Do nothing: no resource is held."""


class Fetcher:
    """Reader of pictures over HTTPS.

    Args:
        hosts: `HOST` or `HOST:PORT` that may be fetched from; the port is 443 where none is given.
        max_bytes: most bytes of a picture.
        check: function of an address that returns whether to connect to it.
        context: what is trusted; None: the certificate authorities of the system.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        max_bytes: int,
        check: Check = is_public,
        context: ssl.SSLContext | None = None,
    ) -> None:
        urls = [URL(f"https://{host}") for host in hosts]
        self._allowed = {(url.host, url.port) for url in urls}
        self._max_bytes, self._check, self._context = max_bytes, check, context

    async def fetch(self, address: str) -> bytes:
        """Return the bytes at a URL.

        Raises:
            FetchError: they cannot be fetched; `Denied` if they may not be.
            TooLarge: there are more than `max_bytes`.
        """
        url = self._allowed_url(address)
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(self._check), ssl=self._context or True, use_dns_cache=False
        )
        try:
            async with (
                asyncio.timeout(SECONDS),
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"Accept-Encoding": "identity", "User-Agent": "prompt-iml"},
                    auto_decompress=False,
                ) as session,
            ):
                return await self._follow(session, url)
        except TimeoutError:
            raise FetchTimeout(f"{url.host} did not send the picture in {SECONDS:g} s") from None
        except aiohttp.ClientError as error:
            raise FetchError(f"{url.host}: {one_line(error)}") from error

    def _allowed_url(self, address: str | URL) -> URL:
        """Return the URL; raise `Denied` if it is not on the list."""
        try:
            url = URL(address)
            place = (url.host, url.port)
        except ValueError as error:
            raise Denied(f"it is no URL: {error}") from error
        if url.scheme != "https" or url.user or place not in self._allowed:
            raise Denied(
                f"{url.host or 'the host'} is not on the list of HTTPS hosts (--url-hosts)"
            )
        return url

    async def _follow(self, session: aiohttp.ClientSession, url: URL) -> bytes:
        for _ in range(REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as response:
                if not 300 <= response.status < 400:
                    return await self._body(response)
                target = response.headers.get("Location", "")
            url = self._redirected(url, target)
        raise FetchError(f"{url.host} redirects more than {REDIRECTS} times")

    def _redirected(self, url: URL, target: str) -> URL:
        """Return the URL to which a host redirects; raise `Denied` if it is not on the list."""
        try:
            return self._allowed_url(url.join(URL(target)))
        except ValueError as error:
            raise Denied(f"{url.host} redirects to what is no URL: {error}") from error

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        host = response.url.host
        if response.status in (404, 410):
            raise NotFound(f"{host} has no such picture")
        if response.status in (401, 403):
            raise Denied(f"{host} denies access to the picture")
        if response.status != 200:
            raise FetchError(f"{host} answers with status {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._max_bytes:
                raise TooLarge(f"the picture has more than {self._max_bytes} bytes")
        return bytes(body)
