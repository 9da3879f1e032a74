"""Compaction keeps the rows in fewer files, also when killed or run twice at once."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from prompt_iml.engine.errors import FetchError, UsageError
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.run.compact import compact_run
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.plan import make_plan, waves
from prompt_iml.pipeline.run.schema import SCHEMA, RowWriter, image_id, read_summary
from prompt_iml.pipeline.run.table import open_results
from prompt_iml.pipeline.scan.earlier import retry_units
from prompt_iml.pipeline.scan.scan import scan
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources.packing import objects_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, unit_from_json
from tests.bench.null_model import write_null_model
from tests.helpers.stores import Store

UNITS, PER_UNIT = 12, 3
SIZE = 60_000  # bytes: about four parts


def complete(output: str, run_id: str = "r") -> Run:
    """Write a run of 36 objects in 12 parts; every fifth object failed."""
    run = Run(output, run_id)
    run.bind({})
    refs = [ObjectRef(f"file:///{n:02}.jpg", 1, "v1") for n in range(UNITS * PER_UNIT)]
    plan = make_plan(run, [objects_unit(refs[n::UNITS]) for n in range(UNITS)])
    parts, statuses = [], Counter[str]()
    for planned in next(waves(plan, UNITS)):
        writer = RowWriter(planned.unit_id, run_id)
        for ref in unit_from_json(planned.unit).objects:
            writer.add(row(ref.uri) | {"run_id": run_id})
            statuses[row(ref.uri)["status"]] += 1
        payload = writer.close()
        storage.create_once(run.part_uri(planned.unit_id), payload)
        parts.append(
            {
                "file": run.part_uri(planned.unit_id).removeprefix(f"{output}/"),
                "rows": PER_UNIT,
                "size_bytes": len(payload),
                "sha256": hashlib.sha256(payload).hexdigest(),
            }
        )
    counts = {"listed": statuses.total(), "statuses": statuses}
    run.commit(counts | {"codes": {"corrupt": statuses["failed"]}, "parts": parts})
    return run


def row(uri: str) -> Json:
    named = {"image_id": image_id(uri, None), "uri": uri}
    if int(uri[-6:-4]) % 5:
        return named | {"status": "ok", "score": 0.5, "mask_rle": b"0" * 100}
    return named | {"status": "failed", "error_stage": "decode", "error_code": "corrupt"}


EXPECTED = sorted(image_id(f"file:///{n:02}.jpg", None) for n in range(UNITS * PER_UNIT))


def image_ids(run: Run) -> list[str]:
    """Return the ids that a reader of the manifest finds."""
    return sorted(open_results(run).to_table(columns=["image_id"])["image_id"].to_pylist())


def globbed(run: Run) -> list[str]:
    """Return the ids that an engine finds that reads the folder."""
    filesystem, path = fsspec.core.url_to_fs(f"{run.output}/results", use_listings_cache=False)
    return sorted(ds.dataset(path, filesystem=filesystem).to_table()["image_id"].to_pylist())


def test_fewer_files_with_the_same_rows(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"{store.uri}/out"
    runs = [complete(output, run_id) for run_id in ("r", "s")]
    before = open_results(runs[0]).to_table().sort_by("image_id")
    command = ["compact", output, "--grace", "0"]
    assert main([*command, "--run-id", "r", "--target-size", "50kB"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parts_before"] == UNITS
    assert 2 <= summary["parts"] <= 4
    assert open_results(runs[0]).to_table().sort_by("image_id").equals(before)
    assert globbed(runs[0]) == sorted(EXPECTED * 2)
    assert main(["verify", output]) == 0
    generations = runs[0].generations()
    assert generations == list(range(len(generations)))
    assert main([*command, "--run-id", "r", "--target-size", "50kB"]) == 0
    assert runs[0].generations() == generations  # there was nothing to do
    assert main(command) == 0  # to a larger size, and the other run too
    assert [len(parts_of(run)) for run in runs] == [1, 1]
    assert main(["verify", output]) == 0


def parts_of(run: Run) -> list[Json]:
    manifest = run.manifest()
    assert manifest
    return list(manifest["parts"])


def test_a_merged_file_is_a_part_like_any_other(tmp_path: Path) -> None:
    run = complete(tmp_path.as_uri())
    (entry,) = compact_run(run, 10**9)["parts"]
    path = tmp_path / entry["file"]
    summary = read_summary(path.read_bytes())
    assert pq.read_schema(path).equals(SCHEMA)
    assert (summary["run_id"], summary["rows"], len(summary["units"])) == ("r", 36, UNITS)
    assert (summary["statuses"], summary["codes"]) == ({"failed": 8, "ok": 28}, {"corrupt": 8})
    assert pq.read_metadata(path).num_row_groups == 1


class Killed(BaseException):
    """Exception that no code catches."""


@pytest.mark.parametrize("survived", range(20))
def test_killed_at_any_point(
    survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each change to the store in turn; the 20th is after the last."""
    run = complete(tmp_path.as_uri())
    lock, left = threading.Lock(), [survived]

    def dying(work: Any) -> Any:
        def change(*arguments: Any) -> Any:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return work(*arguments)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create_once", dying(storage.create_once))
        patch.setattr(storage, "remove", dying(storage.remove))
        try:
            compact_run(run, SIZE)
        except Killed:
            assert survived < 19
    assert image_ids(run) == EXPECTED
    assert sorted(set(globbed(run))) == EXPECTED
    compact_run(run, SIZE)
    assert image_ids(run) == globbed(run) == EXPECTED
    assert main(["verify", str(tmp_path)]) == 0


@pytest.mark.parametrize("sizes", [(SIZE, SIZE), (SIZE, 30_000)])
def test_two_at_once_and_a_reader(sizes: tuple[int, int], store: Store) -> None:
    run = complete(f"{store.uri}/out")
    failures: list[BaseException] = []
    over, start = threading.Event(), threading.Barrier(3)

    def work(size: int) -> None:
        try:
            start.wait()
            compact_run(run, size)
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        start.wait()
        while not over.is_set():
            try:
                if image_ids(run) != EXPECTED:
                    failures.append(AssertionError("other rows"))
            except (FileNotFoundError, FetchError):
                continue  # it held the manifest before: it reads the new one

    compactors = [threading.Thread(target=work, args=(size,)) for size in sizes]
    reader = threading.Thread(target=read)
    for thread in (*compactors, reader):
        thread.start()
    for thread in compactors:
        thread.join()
    over.set()
    reader.join()
    assert not failures
    assert image_ids(run) == globbed(run) == EXPECTED
    assert main(["verify", f"{store.uri}/out"]) == 0


def test_parts_of_a_late_scan_are_reported_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = complete(tmp_path.as_uri())
    part = parts_of(run)[0]["file"]
    data = (tmp_path / part).read_bytes()
    compact_run(run, SIZE)
    (tmp_path / part).write_bytes(data)
    assert image_ids(run) == EXPECTED
    assert main(["verify", str(tmp_path)]) == 3
    assert f"{part}: is a part of run r that no manifest names" in capsys.readouterr().err
    compact_run(run, SIZE)
    assert main(["verify", str(tmp_path)]) == 0


def test_damage_is_not_merged_away(tmp_path: Path) -> None:
    run = complete(tmp_path.as_uri())
    path = tmp_path / parts_of(run)[0]["file"]
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"x" + data[101:])
    with pytest.raises(UsageError, match=f"{path.name} has another sha256 .* prompt-iml verify"):
        compact_run(run, SIZE)
    path.unlink()
    with pytest.raises(UsageError, match=f"{path.name}: .*: run prompt-iml verify"):
        compact_run(run, SIZE)
    assert run.generations() == [0]


def test_a_run_that_is_not_complete_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = complete(tmp_path.as_uri())
    storage.local_path(run.manifest_uri).unlink()
    assert main(["compact", str(tmp_path)]) == 0
    assert "not complete: left as it is" in capsys.readouterr().err
    assert main(["compact", str(tmp_path), "--run-id", "r"]) == 2
    assert main(["compact", str(tmp_path), "--run-id", "nobody"]) == 2


def test_after_it_a_scan_is_complete_and_can_be_retried(
    cluster: None,
    photographs: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    for name, data in photographs.items():
        (tmp_path / "in" / name).write_bytes(data[:3000] if name == "rocket.jpg" else data)
    settings = ScanSettings(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        run_id="r",
        model=str(write_null_model(tmp_path / "model")),
        images_per_unit=1,
    )
    scan(settings)
    run = Run((tmp_path / "out").as_uri(), "r")
    failed = list(retry_units(run, [], images_per_unit=1, limit=None))
    assert len(compact_run(run, 10**9)["parts"]) == 1
    shutil.rmtree(tmp_path / "in")  # nothing is read again
    again = scan(settings)
    assert "already complete" in capsys.readouterr().err
    assert (again["listed"], again["scanned_now"]) == (4, 0)
    assert list(retry_units(run, [], images_per_unit=1, limit=None)) == failed
    assert len(failed) == 1
    assert main(["verify", str(tmp_path / "out")]) == 0
