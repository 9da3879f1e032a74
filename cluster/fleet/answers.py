"""Answers to the newest requests with an idempotency key, in the memory of one replica."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.responses import Response

from prompt_iml.cluster.fleet.limits import Refused

MOST = 1000
MOST_BYTES = 64 << 20
REPEATED = "Idempotent-Replayed"  # header of an answer that was kept


class Answered(NamedTuple):
    """An answer, and whether the same request would always get it again."""

    response: Response
    lasting: bool


class _Answer(NamedTuple):
    digest: str  # of the request
    status: int
    body: bytes
    media_type: str | None


class Answers:
    """Answers by key; the oldest are forgotten.

    Args:
        most: number of answers.
        most_bytes: bytes of all their bodies.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._kept: OrderedDict[str, _Answer] = OrderedDict()
        self._under_way: set[str] = set()

    async def once(
        self, key: str, digest: str, answer: Callable[[], Awaitable[Answered]]
    ) -> Response:
        """Return the answer that the key's first request got, or answer it now.

        Args:
            key: what the client calls the request, with its token.
            digest: digest of what is asked.
            answer: function that answers it.

        Raises:
            Refused: another request had the key, or this one is not answered yet.
        """
        if key in self._under_way:
            message = "A request with this Idempotency-Key is being answered: try again."
            raise Refused(409, {"error_message": message}, {"Retry-After": "1"})
        if kept := self._kept.get(key):
            if kept.digest != digest:
                message = "Another request had this Idempotency-Key: choose another key."
                raise Refused(409, {"error_message": message})
            return Response(kept.body, kept.status, {REPEATED: "true"}, kept.media_type)
        self._under_way.add(key)
        try:
            response, lasting = await answer()
        finally:
            self._under_way.discard(key)
        if lasting:
            body = bytes(response.body)
            self._keep(key, _Answer(digest, response.status_code, body, response.media_type))
        return response

    def _keep(self, key: str, answer: _Answer) -> None:
        self._kept[key] = answer
        self._bytes += len(answer.body)
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.body)
