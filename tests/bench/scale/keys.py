"""Serve an S3 bucket of any number of keys, which are generated when they are listed.

    python -m tests.bench.scale.keys PORT KEYS

Answers ListObjectsV2 as S3 does (prefix, delimiter, start-after, tokens, pages of 1000) for
`photos/0000000/000.jpg`, `photos/0000000/001.jpg`, ...: a thousand a folder. Nothing can be read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PER_FOLDER = 1000
PAGE = 1000
ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    '<ETag>"{:032x}"</ETag><Size>150000</Size></Contents>'
)


def key(number: int) -> str:
    """Return the key of a number; keys ascend with their numbers."""
    return f"photos/{number // PER_FOLDER:07d}/{number % PER_FOLDER:03d}.jpg"


def folder(number: int) -> str:
    """Return the prefix of a folder's keys."""
    return f"photos/{number:07d}/"


def first_after(name: Callable[[int], str], text: str, count: int) -> int:
    """Return the first number, 0..count, whose name is greater than `text`; names ascend."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if name(middle) > text else (middle + 1, high)
    return low


def listing(query: dict[str, str], keys: int) -> str:
    """Return the response to one ListObjectsV2."""
    prefix, after = query.get("prefix", ""), query.get("start-after", "")
    after = max(after, query.get("continuation-token", ""), prefix[:-1])
    by_folder = query.get("delimiter") == "/" and prefix == "photos/"
    name, count = (folder, -(-keys // PER_FOLDER)) if by_folder else (key, keys)
    if query.get("delimiter") == "/" and not by_folder and not prefix.startswith("photos/"):
        name, count = (lambda _: "photos/"), 1
    start = first_after(name, after, count)
    names = [name(i) for i in range(start, min(start + PAGE, count))]
    inside = [each for each in names if each.startswith(prefix)]
    is_cut = len(inside) == len(names) and start + PAGE < count
    if name is key:
        body = "".join(ENTRY.format(each, hash(each) & (1 << 64) - 1) for each in inside)
    else:
        body = "".join(
            f"<CommonPrefixes><Prefix>{each}</Prefix></CommonPrefixes>" for each in inside
        )
    token = f"<NextContinuationToken>{inside[-1]}</NextContinuationToken>" if is_cut else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
        f"<Name>bucket</Name><Prefix>{prefix}</Prefix><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>{token}{body}</ListBucketResult>"
    )


def main() -> None:
    """Serve until killed."""
    port, keys = int(sys.argv[1]), int(sys.argv[2])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if "list-type" in query:
                self._answer(200, listing(query, keys).encode())
            else:
                self._answer(404, b"")

        def do_HEAD(self) -> None:
            self._answer(404, b"")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
