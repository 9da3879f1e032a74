"""Reviews of small outputs, and their server in this process or in one of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from prompt_iml.pipeline.review.review import subject_of
from prompt_iml.pipeline.review.server import make_app
from prompt_iml.pipeline.review.session import Session
from prompt_iml.pipeline.review.sources import Sources
from prompt_iml.pipeline.run.schema import image_id
from prompt_iml.pipeline.settings import ReviewSettings
from prompt_iml.pipeline.truth.reviews import Review
from tests.helpers.outputs import START, Row, commit

POLICY = {"authentic_below": 0.3, "manipulated_at": 0.9}
PORT, TOKEN = 4321, "secret"
ORIGIN = f"http://127.0.0.1:{PORT}"
LINK = re.compile(r"http://127\.0\.0\.1:\d+/\?token=\S+")


def session_on(output: str, **flags: Any) -> Session:
    """Return a session of the reviewer ann, unless flags name another."""
    subject = subject_of(ReviewSettings(output=output, **{"reviewer": "ann"} | flags))
    rows = [shown.row for shown in subject.queue]
    return Session(subject, Sources(rows, subject.config, lambda: False))


def client_of(session: Session) -> TestClient:
    """Return a client that has opened the link."""
    client = TestClient(make_app(session, PORT, TOKEN), base_url=ORIGIN)
    client.headers["Origin"] = ORIGIN
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


@contextmanager
def running(session: Session) -> Iterator[str]:
    """Serve a session from a thread of this process; yield its link."""
    with socket.create_server(("127.0.0.1", 0)) as line:
        port = line.getsockname()[1]
        app = make_app(session, port, TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([line],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join()


def commit_many(output: str, count: int) -> list[Row]:
    """Write a run of rows with scores evenly from 0 to 1, whose pictures do not exist."""
    rows = []
    for number in range(count):
        uri, score = f"file:///{number}", (number + 0.5) / count
        rows.append(
            {
                "image_id": image_id(uri, None),
                "uri": uri,
                "member": None,
                "sha256": "0" * 64,
                "status": "ok",
                "media_type": "image/jpeg",
                "size_bytes": 1000,
                "width": 300,
                "height": 200,
                "score": score,
                "label": label_of(score),
                "threshold": POLICY["manipulated_at"],
                "manipulated_fraction": 0.0,
            }
        )
    commit(output, rows, policy=POLICY)
    return rows


def label_of(score: float) -> str:
    """Return the label that the policy gives."""
    if score >= POLICY["manipulated_at"]:
        return "manipulated"
    return "uncertain" if score >= POLICY["authentic_below"] else "authentic"


def review_of(row: Row, decision: Any, **changes: Any) -> Review:
    """Return ann's decision on a row, or another's; `after` is in minutes."""
    after = changes.pop("after", 0)
    values: dict[str, Any] = {
        **{name: row[name] for name in ("image_id", "uri", "member", "sha256")},
        "decision": decision,
        "mask": None,
        "note": "",
        "reviewer": "ann",
        "decided_at": START + timedelta(minutes=after),
        "run_id": "r1",
        "model": "micro@1",
        "scan_label": row["label"],
        "scan_score": row["score"],
        "shown_for": "score",
    }
    return Review(**values | changes)


@dataclass(frozen=True)
class Served:
    """Server of `prompt-iml review` in a process of its own."""

    process: subprocess.Popen[str]
    link: str

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal; return the exit code, stdout and the rest of stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def served(output: str, flags: Sequence[str] = ()) -> Iterator[Served]:
    """Start `prompt-iml review OUTPUT`, and end it with the block."""
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "review", output, "--no-browser"]
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        found = next(filter(None, map(LINK.search, process.stderr)), None)
        assert found, "the server has ended"
        yield Served(process, found[0])
    finally:
        process.kill()
        process.communicate()
