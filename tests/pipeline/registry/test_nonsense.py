"""A registry full of nonsense ends in one line that names the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prompt_iml.engine.errors import DamagedModel
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.registry.documents import parse_entry, parse_record, parse_verdict

BASE, ONE, TWO = "b" * 64, "1" * 16, "2" * 16
AT = "2026-11-29T17:25:46+00:00"
MOVE = {"kind": "promote", "version": ONE, "by": "ann@host", "at": AT}
BACK = MOVE | {"kind": "rollback", "version": None}
LEASE = {"owner": "ann@host", "token": 1, "expires": 1.8e9}
ENTRY = {"number": 2, "moves": [MOVE], "lease": LEASE, "current": ONE, "key": "0"}
RECORD = {
    "version": ONE, "prompt_set": ONE, "parent": None, "base": BASE, "model": "m", "policy": "p",
    "metrics": {"dev.f1": 0.5}, "made_by": "ann", "made_at": AT, "sha256": {"policy.json": BASE},
}  # fmt: skip
VERDICT = {"passed": False, "reasons": ["dev: f1 fell"]}

RAW = {
    "empty": b"",
    "no-utf8": b'{"number": 2, "key": "\xff\xfe"}',
    "utf16": json.dumps(ENTRY).encode("utf-16"),
    "cut": json.dumps(ENTRY).encode()[:-9],
    "two": json.dumps(ENTRY).encode() * 2,
    "deep-lists": b"[" * 100_000,
    "deep-objects": b'{"a":' * 100_000,
    "list": b"[]",
    "null": b"null",
    "digits": b'{"number": ' + b"9" * 5000 + b"}",
    "exponent": json.dumps(ENTRY).encode().replace(b"1800000000.0", b"1e999"),
    "surrogate": json.dumps(ENTRY | {"current": "\ud800"}).encode(),
}
FIELDS: dict[str, dict[str, Any]] = {
    "another-number": {"number": 1},
    "a-later-number": {"number": 3},
    "number-zero": {"number": 0},
    "number-text": {"number": "2"},
    "number-float": {"number": 2.5},
    "number-bool": {"number": True},
    "number-huge": {"number": 10**400},
    "number-missing": {"number": None},
    "moves-null": {"moves": None},
    "moves-object": {"moves": {}},
    "moves-of-null": {"moves": [None]},
    "move-of-a-list": {"moves": [[MOVE]]},
    "kind-unknown": {"moves": [MOVE | {"kind": "demote"}]},
    "kind-list": {"moves": [MOVE | {"kind": []}]},
    "version-number": {"moves": [MOVE | {"version": 7}], "current": 7},
    "version-null": {"moves": [MOVE | {"version": None}], "current": None},
    "version-path": {"moves": [MOVE | {"version": "../../other"}], "current": "../../other"},
    "by-object": {"moves": [MOVE | {"by": {}}]},
    "by-escape": {"moves": [MOVE | {"by": "\x1b[2J"}]},
    "at-lines": {"moves": [MOVE | {"at": "now\nthen"}]},
    "rollback-of-nothing": {"moves": [BACK], "current": None},
    "rollback-to-another": {"moves": [MOVE, BACK | {"version": TWO}], "current": TWO},
    "current-another": {"current": TWO},
    "lease-list": {"lease": []},
    "lease-text": {"lease": "ann"},
    "owner-escape": {"lease": LEASE | {"owner": "\x1b]0;\x07"}},
    "token-later": {"lease": LEASE | {"token": 3}},
    "token-negative": {"lease": LEASE | {"token": -1}},
    "expires-nan": {"lease": LEASE | {"expires": float("nan")}},
    "expires-infinite": {"lease": LEASE | {"expires": float("inf")}},
    "expires-never": {"lease": LEASE | {"expires": 1e300}},
    "expires-huge": {"lease": LEASE | {"expires": 10**400}},
    "expires-text": {"lease": LEASE | {"expires": "soon"}},
}
NONSENSE = RAW | {name: json.dumps(ENTRY | fields).encode() for name, fields in FIELDS.items()}


def write(registry: Path, name: str, document: object) -> None:
    path = registry / BASE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())


def refused(registry: Path, file: str, capsys: pytest.CaptureFixture[str], action: str) -> None:
    """Assert that `prompt-iml models` ends with exit 2 and one clean line that names the file."""
    assert main(["models", action, "--registry", str(registry)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert f"{file} is damaged: " in err


@pytest.mark.timeout(20)
@pytest.mark.parametrize("action", ["list", "rollback"])
@pytest.mark.parametrize("name", NONSENSE)
def test_a_nonsensical_log_ends_in_one_line(
    name: str, action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "log/00000002.json", NONSENSE[name])
    refused(tmp_path, "00000002.json", capsys, action)


def test_the_table_spoils_an_entry_that_is_good() -> None:
    assert parse_entry(json.dumps(ENTRY).encode(), 2, "it").current == ONE


@pytest.mark.parametrize(
    ("file", "good", "fields"),
    [
        ("record.json", RECORD, {"version": TWO}),
        ("record.json", RECORD, {"prompt_set": ["x"]}),
        ("record.json", RECORD, {"made_at": 5}),
        ("record.json", RECORD, {"made_by": "\x1b[31m"}),
        ("record.json", RECORD, {"sha256": None}),
        ("verdict.json", VERDICT, {"passed": "yes"}),
        ("verdict.json", VERDICT, {"passed": []}),
        ("verdict.json", VERDICT, {"reasons": "none"}),
        ("verdict.json", VERDICT, {"reasons": [{}]}),
        ("verdict.json", VERDICT, {"reasons": ["a\nb"]}),
    ],
)
def test_a_nonsensical_record_or_verdict_ends_in_one_line(
    file: str,
    good: dict[str, Any],
    fields: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, document in {"record.json": RECORD, "verdict.json": VERDICT}.items():
        write(tmp_path, f"versions/{ONE}/{name}", document)
    assert main(["models", "list", "--registry", str(tmp_path)]) == 0
    capsys.readouterr()
    write(tmp_path, f"versions/{ONE}/{file}", good | fields)
    refused(tmp_path, file, capsys, "list")


@pytest.mark.parametrize("name", ["9" * 200, "99", "٠٠٠٠٠٠٠٣", "00000003.json", "000000003", "x"])
def test_files_of_other_names_are_no_entries(name: str, tmp_path: Path) -> None:
    write(tmp_path, "log/00000002.json", ENTRY)
    write(tmp_path, f"log/{name}.json", b"")
    assert main(["models", "list", "--registry", str(tmp_path)]) == 0


def test_a_folder_in_the_place_of_an_entry_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "log/00000001.json/file", b"")
    assert main(["models", "rollback", "--registry", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_set_that_is_gone_is_listed_by_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "log/00000002.json", ENTRY)
    assert main(["models", "list", "--registry", str(tmp_path)]) == 0
    assert f"current: {ONE}" in capsys.readouterr().err


def spoiled(document: dict[str, Any], dice: random.Random) -> bytes:
    """Return a document with one value replaced, or one part of its text."""
    values: list[Any] = [None, [], {}, "", "\x1b[2J", True, -1, 0, 1e300, float("inf"), 10**400]
    text = json.dumps(document | {dice.choice([*document]): dice.choice(values)}).encode()
    if dice.random() < 0.5:
        text = json.dumps(document).encode()
    place, size = dice.randrange(len(text)), dice.choice([0, 1, 1, 2, 30])
    patch = dice.choice([b"", dice.randbytes(size), b"[" * 3000, b"9" * 400, b'"', b"}"])
    return text[:place] + patch + text[place + size :] if dice.random() < 0.8 else text


def parse_and_use(data: bytes) -> None:
    state = parse_entry(data, 2, "it")
    json.dumps(state.to_json(), allow_nan=False)
    assert state.withdrawn.isdisjoint(state.promoted)
    if state.lease:
        datetime.fromtimestamp(state.lease.expires, UTC)


def refusal(parse: Callable[[bytes], object], data: bytes) -> str | None:
    """Return the message with which a document is refused; None if it is taken."""
    try:
        parse(data)
    except DamagedModel as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("good", "parse"),
    [
        pytest.param(ENTRY, parse_and_use, id="entry"),
        pytest.param(RECORD, lambda data: parse_record(data, ONE, "it"), id="record"),
        pytest.param(VERDICT, lambda data: parse_verdict(data, "it"), id="verdict"),
    ],
)
def test_fuzzed_documents_are_taken_or_refused_in_one_line(
    good: dict[str, Any], parse: Callable[[bytes], object]
) -> None:
    dice = random.Random(22)
    refusals = [refusal(parse, spoiled(good, dice)) for _ in range(1000)]
    lines = [line for line in refusals if line is not None]
    assert all(line.startswith("it is damaged: ") and line.isprintable() for line in lines)
    assert 500 < len(lines) < 1000
