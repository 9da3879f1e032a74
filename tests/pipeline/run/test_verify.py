"""`verify` passes a real scan and names each kind of damage."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.run.folder import Json, Run, encode, read_json
from prompt_iml.pipeline.run.schema import RowWriter
from prompt_iml.pipeline.scan.scan import scan
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.digests import Digests
from tests.bench.null_model import write_null_model
from tests.helpers.archives import TarOf

Damage = Callable[[Path], Path]


@pytest.fixture(scope="module")
def scanned(
    cluster: None,
    photographs: dict[str, bytes],
    tar_of: TarOf,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Output with ten rows of run `r` in three parts, and two of a run `other`."""
    folder = tmp_path_factory.mktemp("verify")
    model = str(write_null_model(folder / "model"))
    (folder / "in").mkdir()
    for copy in range(2):
        for name, data in list(photographs.items())[:3]:
            (folder / f"in/{copy}-{name}").write_bytes(data)
    (folder / "in/broken.jpg").write_bytes(photographs["rocket.jpg"][:2000])
    (folder / "in/README").write_bytes(b"Photographs.")
    (folder / "in/shard.tar").write_bytes(tar_of(dict(list(photographs.items())[2:])))
    for run_id, limit in (("r", None), ("other", 2)):
        scan(
            ScanSettings(
                inputs=[str(folder / "in")],
                output=str(folder / "out"),
                run_id=run_id,
                model=model,
                limit=limit,
                images_per_unit=5,
            )
        )
    return folder / "out"


@pytest.fixture
def output(scanned: Path, tmp_path: Path) -> Path:
    """Copy of the output, to be damaged."""
    return Path(shutil.copytree(scanned, tmp_path / "out"))


def test_a_scan_is_whole(scanned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(scanned)]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert err == ""
    assert (summary["rows"], summary["problems"]) == (12, 0)
    assert (summary["ok"], summary["failed"], summary["skipped"]) == (10, 1, 1)


def part(output: Path) -> Path:
    """Return the part of run `r` with the most rows: five plain objects."""
    manifest = Run(output.as_uri(), "r").manifest()
    assert manifest
    return output / str(max(manifest["parts"], key=lambda entry: int(entry["rows"]))["file"])


def delete(output: Path) -> Path:
    part(output).unlink()
    return part(output)


def flip(output: Path) -> Path:
    data = bytearray(part(output).read_bytes())
    data[100] ^= 1
    part(output).write_bytes(data)
    return part(output)


def truncate(output: Path) -> Path:
    part(output).write_bytes(part(output).read_bytes()[:-100])
    return part(output)


def double(output: Path) -> Path:
    """Write a part with one row twice, and a manifest that matches it."""
    path, rows = part(output), pq.read_table(part(output)).to_pylist()
    writer = RowWriter(path.stem.removeprefix("part-"), "r")
    for row in [*rows, rows[0]]:
        writer.add(row)
    data = writer.close()
    path.write_bytes(data)

    def correct(manifest: Json) -> None:
        old = entry_of(manifest, path)
        new = {"rows": 6, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["parts"][manifest["parts"].index(old)] = old | new

    edit_manifest(output, correct)
    return path


def edit_manifest(output: Path, change: Callable[[Json], None]) -> None:
    uri = Run(output.as_uri(), "r").manifest_uri
    manifest = read_json(uri)
    change(manifest)
    storage.write(uri, encode(manifest))


def entry_of(manifest: Json, path: Path) -> Json:
    (entry,) = [p for p in manifest["parts"] if p["file"] == f"results/{path.name}"]
    return dict(entry)


def foreign(output: Path) -> Path:
    path = output / "results" / "part-copy.parquet"
    path.write_bytes(part(output).read_bytes())
    return path


def rubbish(output: Path) -> Path:
    path = output / "results" / "notes.parquet"
    path.write_bytes(b"no Parquet")
    return path


def lose_plan_file(output: Path) -> Path:
    path = next((output / "_runs" / "r" / "plan").iterdir())
    path.unlink()
    return path


def lose_plan(output: Path) -> Path:
    path = output / "_runs" / "r" / "plan.json"
    path.unlink()
    return path


def spoil_manifest(output: Path) -> Path:
    path = storage.local_path(Run(output.as_uri(), "r").manifest_uri)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def flip_manifest(output: Path) -> Path:
    """Change a byte of the manifest that leaves it valid JSON."""
    path = storage.local_path(Run(output.as_uri(), "r").manifest_uri)
    path.write_bytes(path.read_bytes().replace(b'"file"', b'"fIle"', 1))
    return path


def forget(output: Path) -> Path:
    """Remove a part from the manifest: its file is unnamed and its unit has no rows."""
    path = part(output)
    edit_manifest(output, lambda manifest: manifest["parts"].remove(entry_of(manifest, path)))
    return path


@pytest.mark.parametrize(
    ("damage", "lines", "message"),
    [
        (delete, 1, "is missing; remove it, if it is there, and .*manifest.json, and repeat"),
        (flip, 1, "another sha256 than the manifest"),
        (truncate, 1, r"has \d+ bytes in place of \d+"),
        (double, 3, "image_id [0-9a-f]{32} has 2 rows"),
        (foreign, 1, "a part of run r that no manifest names; remove it"),
        (rubbish, 1, "in no manifest and no readable part"),
        (lose_plan_file, 1, "this file of the plan cannot be read"),
        (lose_plan, 1, "the plan cannot be read"),
        (spoil_manifest, 1, "is no JSON"),
        (flip_manifest, 1, "is damaged: a part without its file"),
        (forget, 3, "no part holds unit [0-9a-f]{32}"),
    ],
)
def test_damage_is_named(
    damage: Damage,
    lines: int,
    message: str,
    output: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = damage(output)
    assert main(["verify", str(output), "--run-id", "r"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["problems"] == len(err.splitlines()) == lines, err
    assert re.search(f"^{re.escape(where.as_uri())}: .*{message}", err, re.MULTILINE), err


def test_only_the_run_that_is_named_is_verified(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(output)
    assert main(["verify", str(output), "--run-id", "other"]) == 0
    assert main(["verify", str(output), "--run-id", "nobody"]) == 2
    assert "one of other, r" in capsys.readouterr().err


def test_a_run_that_is_not_complete_is_reported(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.local_path(Run(output.as_uri(), "r").manifest_uri).unlink()
    assert main(["verify", str(output)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "run r is not complete; the same scan command completes it" in line


def test_digests_beyond_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prompt_iml.pipeline.storage.digests.WAITING", 1000)
    random = np.random.default_rng(0).integers(0, 256, (20_000, 16), np.uint8)
    random[:, 15] = 0  # a zero at the end is part of the digest
    every = random.view("S16").ravel()
    with Digests() as digests:
        for number, chunk in enumerate(np.split(every, 50)):
            digests.add(chunk, number)
        assert not list(digests.repeated())
        digests.add(every[:2], 50)
        twins = sorted(digests.repeated())
        assert twins == sorted((random[i].tobytes().hex(), [0, 50]) for i in range(2))
        assert digests.contains(every).all()
        assert not digests.contains(random[:, ::-1].copy().view("S16").ravel()).any()
