"""Scans that continue another run: of its failures, or of inputs that are new since."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from prompt_iml.engine.errors import Crashed, EmptySource, MissingInput, UsageError
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.scan.earlier import ScannedIn, _of_shard, check_retry, retry_units
from prompt_iml.pipeline.scan.isolated import _unread
from prompt_iml.pipeline.scan.scan import scan
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.units import ObjectRef, Unit
from tests.bench.null_model import write_null_model
from tests.helpers.archives import TarOf
from tests.helpers.stores import Bucket, Folder, Store

pytestmark = pytest.mark.usefixtures("cluster")
Table = dict[tuple[str, str | None], str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_null_model(tmp_path_factory.mktemp("model")))


def run_scan(store: Store, model: str, run_id: str, *inputs: str, **settings: Any) -> Json:
    named = {"inputs": list(inputs), "output": f"{store.uri}/out", "run_id": run_id}
    return scan(ScanSettings(model=model, images_per_unit=2, max_actors=1, **named, **settings))


def table(store: Store, run_id: str) -> Table:
    """Return the status or code of every row of a run, by name and member."""
    filesystem, path = fsspec.core.url_to_fs(f"{store.uri}/out", use_listings_cache=False)
    results = ds.dataset(f"{path}/results", filesystem=filesystem)
    rows = results.to_table(filter=ds.field("run_id") == run_id).to_pylist()
    named = {(row["uri"].rpartition("/")[2], row["member"]): row for row in rows}
    assert len(named) == len(rows)
    return {name: row["error_code"] or row["status"] for name, row in named.items()}


def parquet_of(*images: bytes | None) -> bytes:
    """Return a Parquet file with two rows per row group, which is one unit."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), sink, row_group_size=2)
    return sink.getvalue()


def fill(store: Store, good: bytes, tar_of: TarOf) -> str:
    """Write eight good images and six that fail, in every kind of source."""
    bad = good[:2000]
    cut = tar_of({"1.jpg": good, "2.jpg": good})
    store.put("in/bad.jpg", bad)
    store.put("in/good.jpg", good)
    store.put("in/members.tar", tar_of({"bad.jpg": bad, "gone.jpg": bad, "good.jpg": good}))
    store.put("in/rows.parquet", parquet_of(good, good, good, bad, None, good))
    store.put("in/short.tar", cut[: len(cut) // 2 - 2000])
    return f"{store.uri}/in"


@pytest.fixture
def good(photographs: dict[str, bytes]) -> bytes:
    return photographs["rocket.jpg"]


def test_what_failed_is_scanned_again_and_nothing_else(
    s3: Bucket, model: str, good: bytes, tar_of: TarOf
) -> None:
    first = run_scan(s3, model, "first", fill(s3, good, tar_of))
    assert (first["ok"], first["failed"]) == (6, 6)
    s3.put("in/bad.jpg", good)  # mended, all but one
    s3.put("in/members.tar", tar_of({"good.jpg": good, "bad.jpg": good}))
    s3.put("in/rows.parquet", parquet_of(good, good, good, good, good, good))
    s3.put("in/short.tar", tar_of({"1.jpg": good, "2.jpg": good}))
    s3.put("in/new.jpg", good)
    second = run_scan(s3, model, "second", retry_failed="first")
    assert table(s3, "second") == {
        ("bad.jpg", None): "ok",
        ("members.tar", "bad.jpg"): "ok",
        ("members.tar", "gone.jpg"): "not_found",
        ("rows.parquet", "3"): "ok",
        ("rows.parquet", "4"): "ok",
        ("short.tar", "1.jpg"): "ok",  # the shard broke off: all of it
        ("short.tar", "2.jpg"): "ok",
    }
    assert second["listed"] == second["ok"] + second["failed"] == 7
    config = Run(f"{s3.uri}/out", "second").config()
    assert config
    assert (config["retry_failed"], config["inputs"]) == ("first", [f"{s3.uri}/in"])
    run_scan(s3, model, "third", retry_failed="second")
    assert table(s3, "third") == {("members.tar", "gone.jpg"): "not_found"}
    assert run_scan(s3, model, "second", retry_failed="first")["scanned_now"] == 0
    assert main(["verify", f"{s3.uri}/out"]) == 0


def retried(run: Run, *codes: str, limit: int | None = None) -> list[tuple[str, Sequence[str]]]:
    """Return what would be retried: each file with its members or objects."""
    units = retry_units(run, codes, images_per_unit=2, limit=limit)
    named = [(unit, unit.members or [ref.uri.rpartition("/")[2] for ref in unit.objects])
             for unit in units]  # fmt: skip
    return [(unit.uri.rpartition("/")[2], tuple(names)) for unit, names in named]


def test_codes_and_limit_choose_what_is_retried(
    folder: Folder, model: str, good: bytes, tar_of: TarOf
) -> None:
    run_scan(folder, model, "first", fill(folder, good, tar_of))
    run = Run(f"{folder.uri}/out", "first")
    assert retried(run, "damaged_shard") == [("short.tar", ())]
    assert retried(run, "empty") == [("rows.parquet", ("4",))]
    assert sorted(retried(run, "truncated", "empty")) == [
        ("bad.jpg", ("bad.jpg",)),
        ("members.tar", ("bad.jpg", "gone.jpg")),
        ("rows.parquet", ("3",)),
        ("rows.parquet", ("4",)),
    ]
    assert sum(len(names) for _, names in retried(run, "truncated", "empty", limit=2)) >= 2
    with pytest.raises(EmptySource, match="no row that failed by timeout: nothing to retry"):
        check_retry(run, ["timeout"])
    with pytest.raises(UsageError, match="not_an_image is no code of a failure: one of bad_an"):
        check_retry(run, ["not_an_image"])


def test_each_unit_of_a_lost_parquet_file_fails_by_its_own_name(store: Store, good: bytes) -> None:
    uri = store.put("a.parquet", parquet_of(good, good, good))
    units = list(list_units([uri], images_per_unit=2))
    store.remove("a.parquet")
    samples = [s for u in units for s in read_unit(u, max_object_bytes=10**9, threads=1)]
    assert [(s.member, s.error and s.error.code) for s in samples] == [
        (None, "not_found"),
        ("2", "not_found"),
    ]


def test_a_parquet_file_that_shrank_is_damaged(folder: Folder, good: bytes) -> None:
    uri = folder.put("a.parquet", parquet_of(good, good, good))
    last = list(list_units([uri], images_per_unit=2))[-1]
    folder.put("a.parquet", parquet_of(good))
    (sample,) = read_unit(last, max_object_bytes=10**9, threads=1)
    assert sample.error
    assert (sample.member, sample.error.code) == ("2", "damaged_shard")


def test_members_behind_the_damage_fail_with_it(folder: Folder, good: bytes, tar_of: TarOf) -> None:
    whole = tar_of({"1.jpg": good, "2.jpg": good})
    uri = folder.put("a.tar", whole[: len(whole) // 2 - 2000])
    unit = Unit("tar", uri, -1, members=("2.jpg",))
    (sample,) = read_unit(unit, max_object_bytes=10**9, threads=1)
    assert sample.error
    assert (sample.member, sample.error.code) == ("2.jpg", "damaged_shard")


def test_what_is_unchanged_is_skipped_and_counted(
    folder: Folder, model: str, good: bytes, tar_of: TarOf
) -> None:
    source = fill(folder, good, tar_of)
    folder.put("in/README", b"Photographs.")
    run_scan(folder, model, "monday", source)
    folder.put("in/bad.jpg", good)
    folder.put("in/new.jpg", good)
    folder.put("in/short.tar", tar_of({"1.jpg": good}))
    tuesday = run_scan(folder, model, "tuesday", source, skip_scanned="monday")
    assert table(folder, "tuesday") == {
        ("bad.jpg", None): "ok",
        ("new.jpg", None): "ok",
        ("short.tar", "1.jpg"): "ok",
        ("good.jpg", None): "already_scanned",
        ("README", None): "already_scanned",
        ("members.tar", None): "already_scanned",
        ("rows.parquet", None): "already_scanned",
    }
    assert (tuesday["ok"], tuesday["failed"], tuesday["skipped"]) == (3, 0, 4)
    assert tuesday["codes"] == {"already_scanned": 4}
    wednesday = run_scan(folder, model, "wednesday", source, skip_scanned="tuesday", limit=1)
    assert (wednesday["listed"], wednesday["skipped"]) == (7, 7)
    assert main(["verify", f"{folder.uri}/out"]) == 0


def test_only_whole_versions_count_as_scanned(
    folder: Folder, model: str, good: bytes, tar_of: TarOf
) -> None:
    folder.put("in/a.jpg", good)
    folder.put("in/b.jpg", good)
    folder.put("in/c.tar", tar_of({"1.jpg": good, "2.jpg": good}))
    run_scan(folder, model, "first", f"{folder.uri}/in", limit=3)
    whole, cut = list_units([f"{folder.uri}/in"], images_per_unit=2)
    ref, _ = whole.objects
    others = [
        ObjectRef(ref.uri),
        ObjectRef(ref.uri, 1, "other"),
        ObjectRef(cut.uri, 1, cut.etag),
    ]
    with ScannedIn(Run(f"{folder.uri}/out", "first")) as scanned:
        assert scanned.has([ref, *others]) == [True, False, False, False]


def test_a_share_of_a_parquet_file_is_not_all_of_it(folder: Folder, model: str) -> None:
    uri = folder.put("a.parquet", parquet_of(*[b"\xff\xd8\xff"] * 40))
    run_scan(folder, model, "share", uri, slice="1/2")
    (unit, *_) = list_units([uri], images_per_unit=2)
    with ScannedIn(Run(f"{folder.uri}/out", "share")) as scanned:
        assert scanned.has([ObjectRef(uri, 1, unit.etag)]) == [False]


def test_a_shard_named_twice_is_scanned_twice(
    folder: Folder, model: str, good: bytes, tar_of: TarOf
) -> None:
    uri = folder.put("a.tar", tar_of({"1.jpg": good, "2.jpg": good}))
    first = run_scan(folder, model, "twice", uri, f"{folder.uri}/*.tar")
    assert (first["listed"], first["ok"]) == (4, 4)
    assert run_scan(folder, model, "twice", uri, f"{folder.uri}/*.tar")["scanned_now"] == 0


def test_what_a_list_must_not_name_is_refused_again(
    s3: Bucket, model: str, good: bytes, tmp_path: Path
) -> None:
    (tmp_path / "secret.jpg").write_bytes(good)
    listed = s3.put("list.txt", f"file://{tmp_path}/secret.jpg\n".encode())
    run_scan(s3, model, "first", listed)
    run_scan(s3, model, "again", retry_failed="first")
    run_scan(s3, model, "trusted", retry_failed="first", trust_lists=True)
    codes = [table(s3, run)["secret.jpg", None] for run in ("first", "again", "trusted")]
    assert codes == ["denied", "denied", "ok"]


def test_what_could_not_be_reached_is_retried_and_nothing_else() -> None:
    """A retry reads the images that a unit did not reach because reading it killed."""
    whole = Unit("parquet", "file:///a.parquet", -1, first=1, last=2, images=2, first_row=2)
    chosen = Unit("tar", "file:///a.tar", -1, images=2, members=("1.jpg", "2.jpg"))
    for unit, seen in ((whole, set()), (chosen, {"1.jpg"})):
        left = [name for name in unit.members if name not in seen]
        rows = list(_unread(unit, len(seen), left, Crashed("it")))
        failed = {unit.uri: {row.get("member"): "fetch" for row in rows}}
        (again,) = _of_shard(unit, failed)
        assert again.members == (("2.jpg",) if unit is chosen else ())
        assert (again.first, again.last) == (unit.first, unit.last)
        assert not failed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in", "--retry-failed", "r"], "leave out all others"),
        (["--retry-failed", "r", "--skip-scanned", "r"], "leave out all others"),
        (["in", "--retry-codes", "timeout"], "--retry-codes needs --retry-failed RUN"),
        (["in", "--skip-scanned", "r", "--run-id", "r"], "cannot continue itself"),
        (["--retry-failed", "../r"], "--retry-failed"),
        ([], "INPUTS"),
    ],
)
def test_bad_usage(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", *arguments, "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_run_to_go_on_from_is_there_and_complete(folder: Folder, model: str, good: bytes) -> None:
    folder.put("in/a.jpg", good)
    with pytest.raises(MissingInput, match="holds no run"):
        run_scan(folder, model, "second", retry_failed="first")
    folder.put("out/_runs/first/config.json", json.dumps({}).encode())
    with pytest.raises(UsageError, match="run first is not complete: finish it first"):
        run_scan(folder, model, "second", f"{folder.uri}/in", skip_scanned="first")
