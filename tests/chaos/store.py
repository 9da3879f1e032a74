"""An S3 server that fails: an HTTP proxy before the real one.

    python -m tests.chaos.store --port 9001 --to 9000 --rate 0.1 --seed 0

A share of the requests meets a fault, the kinds in turn:

    refused    503 SlowDown, and the server never hears of it
    lost       500 InternalError, after the server did as it was asked
    reset      the connection is reset before, or after, the server did as it was asked
    stalled    half of the answer, and then nothing for longer than a client waits
    truncated  half of the body that the headers promise, and the connection closes
    lied       half of the body, and headers that call it whole

Prints a line of JSON with the number of each when it ends.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("refused", "lost", "reset", "stalled", "truncated", "lied")
STALL_SECONDS = 5.0
ANSWER = '<?xml version="1.0"?><Error><Code>{}</Code><Message>planted</Message></Error>'


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a port of this machine, or not quite."""

    daemon_threads = True

    def __init__(self, port: int, to: int, rate: float, seed: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.to, self.rate = to, rate
        self.faults: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._faults = itertools.cycle(FAULTS)

    def draw(self) -> str:
        """A fault, or ""."""
        with self._lock:
            fault = next(self._faults) if self._random.random() < self.rate else ""
            self.faults[fault or "none"] += 1
        return fault


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.draw()
        if fault == "refused":
            return self._answer(503, ANSWER.format("SlowDown").encode(), {})
        if fault == "reset" and random.random() < 0.5:
            return self._reset()
        status, headers, data = self._hand_on(body)
        if fault == "lost":
            return self._answer(500, ANSWER.format("InternalError").encode(), {})
        if fault == "reset":
            return self._reset()
        if fault == "lied" and len(data) > 1:
            return self._answer(status, data[: len(data) // 2], headers)
        if fault in ("stalled", "truncated") and len(data) > 1:
            self._answer(status, data[: len(data) // 2], headers, promised=len(data))
            time.sleep(STALL_SECONDS if fault == "stalled" else 0)
            self.close_connection = True
            return None
        return self._answer(status, data, headers)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

    def _hand_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.server.to, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        data = answer.read()
        server.close()
        return answer.status, dict(answer.getheaders()), data

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str], promised: int | None = None
    ) -> None:
        self.send_response_only(status)
        length = str(len(data) if promised is None else promised)
        if self.command == "HEAD" and "Content-Length" in headers:
            length = headers["Content-Length"]
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)  # close sends RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        # The server's own shutdown() of the socket would turn it into an orderly end.
        self.wfile = self.rfile = open("/dev/null", "wb")  # noqa: SIM115, PTH123

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    proxy = Proxy(args.port, args.to, args.rate, args.seed)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=proxy.shutdown).start())
    proxy.serve_forever()
    print(json.dumps(proxy.faults))


if __name__ == "__main__":
    main()
