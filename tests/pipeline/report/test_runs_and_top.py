"""`prompt-iml runs` and `prompt-iml top`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.report.survey import highest
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.table import open_results
from tests.helpers.outputs import START, commit, failed
from tests.helpers.stores import Store

STORED = Path(__file__).parents[2] / "stored" / "output-v1"
COUNTED: dict[str, Any] = {
    "listed": 9, "ok": 8, "failed": 1, "skipped": 0, "codes": {"corrupt": 1},
    "labels": {"authentic": 6, "manipulated": 2}, "incomplete": 1,
}  # fmt: skip


def row(name: str, score: float, label: str = "manipulated") -> dict[str, Any]:
    found = {"score": score, "label": label, "threshold": 0.5, "regions": [], "image_id": name * 32}
    return {"uri": f"file:///photos/{name}.jpg", "status": "ok"} | found


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output with an old run that is complete and a new one that is not."""
    commit(f"file://{tmp_path}", [failed("file:///x")], "micro@1", "a-long-name").write_summary(
        COUNTED
    )
    Run(f"file://{tmp_path}", "new").bind({"inputs": ["in"], "model": "micro@2"})
    for place, name in enumerate(("a-long-name", "new")):
        seconds = START.timestamp() + 60 * place
        os.utime(tmp_path / "_runs" / name / "config.json", (seconds, seconds))
    return str(tmp_path)


def test_runs_are_listed_newest_first(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", output]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "new          2026-01-02 03:05 UTC  unfinished  micro@2",
        "a-long-name  2026-01-02 03:04 UTC  complete    micro@1  9 images: 2 manipulated, "
        "0 uncertain, 6 authentic, 1 failed, 1 shard incomplete",
    ]


def test_runs_are_objects_for_programs(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", output, "--json"]) == 0
    new, old = map(json.loads, capsys.readouterr().out.splitlines())
    inputs = [f"file://{output}/in"]
    assert old == COUNTED | {
        "run_id": "a-long-name", "started": "2026-01-02T03:04:05+00:00", "complete": True,
        "model": "micro@1", "inputs": inputs,
    }  # fmt: skip
    assert (new["run_id"], new["complete"], new["ok"]) == ("new", False, None)
    assert new.keys() == old.keys()


def test_a_run_without_a_summary_is_counted_by_its_manifest(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(store.uri, "r1")
    run.bind({"inputs": ["in"], "model": "micro@1"})
    statuses = {name: COUNTED[name] for name in ("ok", "failed", "skipped")}
    manifest = {"statuses": statuses, "listed": 9, "labels": COUNTED["labels"], "codes": {}}
    run.commit(manifest | {"incomplete": {"a.tar": None}, "parts": []})
    assert main(["runs", store.uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in COUNTED} == COUNTED | {"codes": {}}


def test_runs_of_an_earlier_version_have_no_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(STORED)]) == 0
    assert capsys.readouterr().out.endswith("prompt-iml-micro@8  6 images: 5 ok, 1 failed\n")


@pytest.fixture
def scored(tmp_path: Path) -> str:
    rows = [row("a", 0.25, "authentic"), row("c", 0.75), failed("file:///x"), row("b", 0.75),
            row("d", 1.0, "uncertain")]  # fmt: skip
    commit(f"file://{tmp_path}", rows)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], "dbca"),
        (["--limit", "2"], "db"),
        (["--label", "manipulated"], "bc"),
        (["--label", "uncertain,authentic"], "da"),
        (["--run-id", "r1", "--limit", "1"], "d"),
    ],
)
def test_the_highest_scores(
    flags: list[str], names: str, scored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", scored, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == [f"{name}.jpg" for name in names]
    assert main(["top", scored, "--json", *flags]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [found["image_id"][0] for found in objects] == list(names)


def test_a_line_and_an_object_of_the_highest_score(
    scored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", scored, "--limit", "1"]) == 0
    assert capsys.readouterr().out == "uncertain    1.000              /photos/d.jpg\n"
    assert main(["top", scored, "--limit", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["label"], found["scanned_at"]) == ("uncertain", "2026-01-02T03:04:09+00:00")
    assert "mask_rle" not in found


def test_no_image_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(f"file://{tmp_path}", [failed("file:///x")])
    assert main(["top", str(tmp_path), "--label", "manipulated"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "run r1 has no image with the label manipulated\n")


def test_a_reader_that_has_enough_ends_the_lines(scored: str) -> None:
    code = "import sys; from prompt_iml.pipeline.cli import main; sys.exit(main())"
    command = f'"{sys.executable}" -c "{code}" top "{scored}" | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_only_the_rows_of_the_run_are_read(scored: str) -> None:
    commit(f"file://{scored}", [row("z", 0.99)], run_id="r2")
    found = highest(open_results(Run(f"file://{scored}", "r1")), 9, ["image_id", "score"])
    assert [each["image_id"][0] for each in found] == ["d", "b", "c", "a"]
