"""Commands on missing inputs print one line, exit with 2 and write nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompt_iml.pipeline.cli import main

HOLDS_NO_RUN = "holds no run: give the --output of a scan"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report nowhere", HOLDS_NO_RUN),
        ("report nowhere --run-id r1", HOLDS_NO_RUN),
        ("report file --path new/report.html", HOLDS_NO_RUN),
        ("verify nowhere", HOLDS_NO_RUN),
        ("verify file", HOLDS_NO_RUN),
        ("compact nowhere", HOLDS_NO_RUN),
        ("compact file --run-id r1", HOLDS_NO_RUN),
        ("plan nowhere", "No such file or directory: check the path"),
        ("plan nowhere --estimate", "No such file or directory: check the path"),
        ("plan empty", "nothing to scan in empty"),
        ("evaluate file --policy nowhere.json", "file: add the column image, mask"),
    ],
)
def test_missing_input_is_one_line_and_writes_nothing(
    command: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]
