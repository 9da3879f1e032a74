"""The server in a process of its own: killed after a decision, and ended by a signal."""

from __future__ import annotations

import json
import shlex
import signal
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from pydantic_settings import CliApp

from prompt_iml.pipeline.settings import CalibrateSettings
from prompt_iml.pipeline.truth import read_labels
from tests.helpers.processes import listening
from tests.helpers.reviewed import commit_many, served


class Opened:
    """Client over a real socket, that has opened the link."""

    def __init__(self, link: str) -> None:
        self._root = link.partition("/?")[0]
        cookies = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(cookies)
        self._opener.open(link).close()

    def get(self, path: str) -> Any:
        with self._opener.open(self._root + path) as answer:
            return json.load(answer)

    def decide(self, image_id: str, decision: str) -> None:
        headers = {"Content-Type": "application/json", "Origin": self._root}
        data = json.dumps({"decision": decision}).encode()
        url = f"{self._root}/decisions/{image_id}"
        self._opener.open(urllib.request.Request(url, data, headers)).close()


def test_a_killed_server_loses_nothing_and_a_signal_ends_with_the_next_command(
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    rows = commit_many(f"file://{output}", 5)
    with served(output, ["--reviewer", "ann"]) as server:
        assert listening(server.process.pid) == {"127.0.0.1"}
        client = Opened(server.link)
        for row in rows[:3]:
            client.decide(row["image_id"], "authentic")
        server.end(signal.SIGKILL)
    assert [each.uri for each in read_labels(output)] == [row["uri"] for row in rows[:3]]
    with served(output, ["--reviewer", "ann"]) as server:
        client = Opened(server.link)
        decided = [each["decision"] for each in client.get("/queue")["pictures"]]
        assert sorted(decided) == ["", "", "authentic", "authentic", "authentic"]
        client.decide(rows[4]["image_id"], "mask_wrong")
        code, out, err = server.end()
    assert code == 0
    reviews = f"file://{output}/reviews"
    summary = {"run_id": "r1", "reviewer": "ann", "decided": 1, "reviews": reviews}
    assert json.loads(out) == summary
    line, _, command = err.rstrip().splitlines()[-1].partition("; next: prompt-iml calibrate ")
    assert line == "1 picture decided"
    parsed = CliApp.run(CalibrateSettings, shlex.split(command), cli_exit_on_error=False)
    assert parsed.manifests == [output]
