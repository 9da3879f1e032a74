"""Log lines, as text and as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from prompt_iml.pipeline import logs


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    yield
    logs.configure()


def test_people_read_the_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(run="r")
    logs.log("note: a line")
    assert capsys.readouterr().err == "note: a line\n"


def test_machines_read_run_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", run="r")
    logs.log("done", unit="u", rows=3)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "message": "done", "run": "r", "unit": "u", "rows": 3}


def test_a_message_names_no_address_of_an_object() -> None:
    error = OSError(f"cannot identify\nimage file {io.BytesIO()!r}")
    assert logs.one_line(error) == "cannot identify image file"
