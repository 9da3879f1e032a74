"""Complete scans with a real Ray, real photographs, a real S3 server and real kills."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from ray.exceptions import RayTaskError, UserCodeException

from prompt_iml.engine.errors import (
    CredentialsFailed,
    EmptySource,
    MissingInput,
    OutputNotWritable,
    RunMismatch,
    UsageError,
)
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.monitoring.progress import Done
from prompt_iml.pipeline.registry.promotion import promote, publish, record_verdict, roll_back
from prompt_iml.pipeline.registry.registry import PromptSetRef, Registry, with_prompt_set
from prompt_iml.pipeline.run.folder import Json, Run, encode
from prompt_iml.pipeline.run.plan import PlannedUnit
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.scan.actors import (
    PoolSize,
    ScanActor,
    error_of_actor,
    pool_size,
    read_tally,
    shared_tally,
)
from prompt_iml.pipeline.scan.scan import choose_prompt_set, row_spec, scan
from prompt_iml.pipeline.scan.scanner import RowMaker, Scanner, ScanSpec
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources import list_units
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import unit_to_json
from tests.bench.null_model import write_null_model
from tests.helpers.archives import TarOf
from tests.helpers.pages import PAGES, blocks
from tests.helpers.processes import processes_below
from tests.helpers.stores import Bucket, Folder, Store, check_credentials_after

pytestmark = pytest.mark.usefixtures("cluster")
ROOT = Path(__file__).parents[3]
FINDING = ["sha256", "status", "error_code", "score", "score_raw", "mask_rle", "width", "height"]


def run_scan(*inputs: str, output: str, **settings: object) -> Json:
    """Scan with one actor by default, because starting actors takes most of the time here."""
    return scan(ScanSettings(inputs=list(inputs), output=output, **{"max_actors": 1} | settings))


def rows(output: str) -> pa.Table:
    """Return the whole table, sorted by the scanned bytes."""
    filesystem, path = fsspec.core.url_to_fs(output, use_listings_cache=False)
    results = ds.dataset(f"{path}/results", filesystem=filesystem)
    return results.to_table().sort_by([("sha256", "ascending"), ("member", "ascending")])


def findings(output: str) -> list[Json]:
    return rows(output).select(FINDING).to_pylist()


@pytest.fixture(scope="module")
def crops(photographs: dict[str, bytes]) -> dict[str, bytes]:
    """Return the photographs, cropped to one tile each, which are scanned quickly."""
    return {name: crop(name, data) for name, data in photographs.items()}


def crop(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with Image.open(io.BytesIO(data)) as photograph:
        photograph.crop((60, 20, 300, 220)).save(sink, photograph.format, quality=85)
    return sink.getvalue()


def fill(store: Store, crops: dict[str, bytes]) -> str:
    """Write eight images, one broken image and another file; return their folder."""
    for number, (name, data) in enumerate(crops.items()):
        store.put(f"in/{name}", data)
        store.put(f"in/deep/{number}-{name}", data + b"\0" * number)
    store.put("in/deep/broken.jpg", crops["rocket.jpg"][:2000])
    store.put("in/README", b"Eight photographs.")
    return f"{store.uri}/in"


@pytest.fixture
def inputs(folder: Folder, crops: dict[str, bytes]) -> str:
    return fill(folder, crops)


@dataclass(frozen=True)
class Scanned:
    """Completed scan of the inputs in units of four, with the run id `one`."""

    inputs: str
    output: Path

    def again(self, **settings: object) -> Json:
        """Repeat the scan, with further settings."""
        same: dict[str, object] = {"run_id": "one", "images_per_unit": 4}
        return run_scan(self.inputs, output=str(self.output), **same | settings)


@pytest.fixture(scope="module")
def scanned_once(
    cluster: None, crops: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Scanned:
    folder = tmp_path_factory.mktemp("scanned")
    scanned = Scanned(fill(Folder(folder), crops), folder / "out")
    scanned.again()
    return scanned


@pytest.fixture
def scanned(scanned_once: Scanned, tmp_path: Path) -> Scanned:
    """Return the scan with a copy of its output for this test."""
    output = shutil.copytree(scanned_once.output, tmp_path / "out")
    return Scanned(scanned_once.inputs, output)


def test_every_input_has_a_row(store: Store, crops: dict[str, bytes]) -> None:
    summary = run_scan(fill(store, crops), output=f"{store.uri}/out", max_actors=2)
    table = rows(f"{store.uri}/out")
    assert table.schema.equals(SCHEMA)
    assert (summary["ok"], summary["failed"], summary["skipped"]) == (8, 1, 1)
    assert summary["listed"] == table.num_rows == len(set(table["image_id"].to_pylist())) == 10
    assert summary["codes"] == {"truncated": 1, "not_an_image": 1}
    assert summary["failure_rate"] == pytest.approx(1 / 9, abs=1e-6)
    assert summary["labels"] == Counter(label for label in table["label"].to_pylist() if label)
    scores = table.filter(pc.equal(table["label"], "manipulated"))["score"].to_pylist()
    assert [found["score"] for found in summary["findings"]] == sorted(scores)[::-1][:5]


def test_same_findings_from_folder_tar_parquet_and_list(
    crops: dict[str, bytes], tar_of: TarOf, s3: Bucket, tmp_path: Path
) -> None:
    for place in ("folder", "listed"):
        for name, data in crops.items():
            Folder(tmp_path).put(f"{place}/{name}", data)
    (tmp_path / "list.txt").write_text("\n".join(f"listed/{name}" for name in crops))
    images = [{"bytes": data, "path": None} for data in crops.values()]
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    run_scan(
        str(tmp_path / "folder"),
        s3.put("shards/a.tar", tar_of(crops)),
        str(tmp_path / "images.parquet"),
        str(tmp_path / "list.txt"),
        output=str(tmp_path / "out"),
    )
    table = rows(str(tmp_path / "out"))
    by_source = [
        table.filter(pc.match_substring(table["uri"], source)).select(FINDING).to_pylist()
        for source in ("/folder/", "a.tar", "images.parquet", "/listed/")
    ]
    assert [len(found) for found in by_source] == [len(crops)] * 4
    assert by_source[1:] == by_source[:1] * 3


def test_again_is_already_complete(scanned: Scanned, capsys: pytest.CaptureFixture[str]) -> None:
    again = scanned.again()
    assert "already complete" in capsys.readouterr().err
    assert (again["scanned_now"], again["listed"]) == (0, 10)


def test_a_complete_run_says_that_its_inputs_changed(
    crops: dict[str, bytes], folder: Folder
) -> None:
    for number, data in enumerate(crops.values()):
        folder.put(f"img/{number}.jpg", data)
    listed = folder.put("list.txt", b"img/0.jpg\nimg/1.jpg\nimg/1.jpg\n")
    output = f"{folder.uri}/out"
    assert run_scan(listed, output=output)["listed"] == 3
    folder.put("list.txt", b"img/0.jpg\nimg/1.jpg\nimg/1.jpg\nimg/2.jpg\nimg/3.jpg\n")
    with pytest.raises(RunMismatch, match=r"list\.txt holds other files, or lists others, than"):
        run_scan(listed, output=output)
    assert run_scan(listed, output=output, run_id="new")["listed"] == 5


def test_another_configuration_under_the_same_run_is_refused(scanned: Scanned) -> None:
    with pytest.raises(RunMismatch, match=r"\(limit\)"):
        scanned.again(limit=2)


def test_runs_share_an_output_and_keep_their_rows(scanned: Scanned) -> None:
    scanned.again(run_id="two", limit=2)
    ids = rows(str(scanned.output))["run_id"].to_pylist()
    assert sorted(ids) == ["one"] * 10 + ["two"] * 2


def test_a_lost_part_is_made_again_and_the_others_are_kept(scanned: Scanned) -> None:
    before = findings(str(scanned.output))
    parts = sorted((scanned.output / "results").glob("*.parquet"))
    kept = parts[0].stat().st_mtime_ns
    storage.local_path(Run(scanned.output.as_uri(), "one").manifest_uri).unlink()
    parts[1].unlink()
    half_written = parts[0].with_name(f".{parts[0].name}.0123456789abcdef")
    half_written.write_bytes(b"PAR1")
    again = scanned.again()
    assert 0 < again["scanned_now"] < again["listed"] == 10
    assert not half_written.exists()
    assert parts[0].stat().st_mtime_ns == kept
    assert findings(str(scanned.output)) == before


def test_a_run_that_was_bound_to_a_setting_that_is_gone_resumes(scanned: Scanned) -> None:
    run = Run(scanned.output.as_uri(), "one")
    before, config = findings(run.output), storage.local_path(f"{run.folder}/config.json")
    config.write_bytes(encode({**json.loads(config.read_bytes()), "decoder": "nvimagecodec"}))
    storage.local_path(run.manifest_uri).unlink()
    next((scanned.output / "results").glob("*.parquet")).unlink()
    assert 0 < scanned.again()["scanned_now"] < 10
    assert findings(run.output) == before
    assert main(["verify", str(scanned.output)]) == 0


def test_manifest_names_every_part_with_its_digest(scanned: Scanned) -> None:
    manifest = Run(scanned.output.as_uri(), "one").manifest()
    assert manifest
    parts = {part["file"]: part["sha256"] for part in manifest["parts"]}
    files = (scanned.output / "results").iterdir()
    assert parts == {f"results/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    assert sum(part["rows"] for part in manifest["parts"]) == manifest["listed"] == 10
    assert len(parts) == 3


def test_truncated_shard_gives_its_images_and_one_failed_row(
    crops: dict[str, bytes], tar_of: TarOf, tmp_path: Path
) -> None:
    shard = tmp_path / "cut.tar"
    shard.write_bytes(tar_of(crops)[:-12_000])
    summary = run_scan(str(shard), output=str(tmp_path / "out"))
    assert summary["ok"] >= 1
    assert summary["codes"] == {"damaged_shard": 1}
    (failed,) = [r for r in rows(str(tmp_path / "out")).to_pylist() if r["status"] == "failed"]
    assert failed["uri"] == shard.as_uri()
    assert re.search(r"cut\.tar at byte \d+", failed["error_message"])
    assert (summary["incomplete"], summary["incomplete_shards"]) == (1, [shard.as_uri()])
    shard.write_bytes(tar_of(crops)[:-12_000])  # the same bytes: what was lost is not "scanned"
    again = {"run_id": "again", "skip_scanned": summary["run_id"]}
    repeated = run_scan(str(shard), output=str(tmp_path / "out"), **again)
    assert repeated["codes"] == summary["codes"]


def test_waves_change_nothing(scanned: Scanned) -> None:
    before = findings(str(scanned.output))
    shutil.rmtree(scanned.output)
    scanned.again(wave_units=2)
    assert findings(str(scanned.output)) == before


def test_progress_ends_at_the_bytes_of_the_plan(
    crops: dict[str, bytes], tar_of: TarOf, tmp_path: Path
) -> None:
    """A shard that is mostly padding ends at its size; resumed, its bytes are not counted."""
    (tmp_path / "a.tar").write_bytes(tar_of({"a.jpg": crops["rocket.jpg"]}) + bytes(50_000))
    null, output = str(write_null_model(tmp_path / "model")), f"file://{tmp_path}/out"
    settings = ScanSettings(inputs=[str(tmp_path)], output=output, model=null)
    spec = ScanSpec(Run(output, "r"), row_spec(settings, load_model(null)))
    (unit,) = list_units([str(tmp_path / "a.tar")], images_per_unit=4)
    planned = [PlannedUnit("u", unit_to_json(unit))._asdict()]
    first = Done(1, unit.size_bytes, 0, Counter(uncertain=1))
    for expected in (first, Done(0, 0, unit.size_bytes)):
        with shared_tally() as tally:
            actor = ray.remote(ScanActor).remote(spec, tally)
            ray.get(actor.__call__.remote(pa.Table.from_pylist(planned)))
            assert read_tally(tally) == expected
            ray.kill(actor)


def test_heatmap_is_stored_on_demand(crops: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(crops["astronaut.jpg"])
    run_scan(str(tmp_path / "a.jpg"), output=str(tmp_path / "out"), heatmap=True)
    (row,) = rows(str(tmp_path / "out")).to_pylist()
    picture = Image.open(io.BytesIO(row["heatmap_png"]))
    assert picture.size == (row["width"] // 4, row["height"] // 4)
    assert np.asarray(picture).max() <= 15


@pytest.mark.parametrize(
    ("source", "error"),
    [("nowhere", MissingInput), ("empty", EmptySource), ("s3://no-such-bucket/x", MissingInput)],
)
def test_bad_inputs(source: str, error: type[UsageError], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    name = source if "://" in source else str(tmp_path / source)
    with pytest.raises(error) as raised:
        run_scan(name, output=str(tmp_path / "out"))
    assert len(str(raised.value).splitlines()) == 1


def test_output_that_cannot_be_written(crops: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(crops["rocket.jpg"])
    with pytest.raises(OutputNotWritable):
        run_scan(str(tmp_path / "a.jpg"), output=str(tmp_path / "a.jpg" / "out"))


def test_more_actors_than_cpus_is_refused() -> None:
    with pytest.raises(UsageError, match="99 CPUs and the cluster has room for 2"):
        pool_size(99, None, 100)
    with pytest.raises(UsageError, match="more than --max-actors 1"):
        ScanSettings(inputs=["in"], output="out", min_actors=2, max_actors=1)
    with pytest.raises(UsageError, match=r"1 CPUs and 0.5 GPUs and the cluster has room for 0"):
        pool_size(None, 4, 100, gpus=0.5)


def test_a_cluster_that_grows_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert pool_size(None, 4, 100, gpus=0.5, grows=True) == PoolSize(1, 4, 0.5)
    assert "has room for 0 so far" in capsys.readouterr().err


def test_no_more_actors_than_units() -> None:
    assert pool_size(None, 2, units=1) == PoolSize(1, 1)
    assert pool_size(1, None, units=100) == PoolSize(1, 2)


def test_the_queries_shown(scanned: Scanned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every SQL block of the README and the pages runs on a real table."""
    scanned.output.rename(scanned.output.with_name("scanned"))
    monkeypatch.chdir(scanned.output.parent)
    queries = [query for page in PAGES for query in blocks("sql", page.read_text())]
    assert len(queries) > 2
    for query in queries:
        assert duckdb.sql(query).fetchall()


def test_a_note_of_a_model_is_logged_once(
    inputs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_null_model(tmp_path / "model", notes=("it is untrained",))
    summary = run_scan(inputs, output=str(tmp_path / "out"), limit=4, model=str(model))
    assert summary["model"] == "null@bench"
    assert capsys.readouterr().err.count("untrained") == 1
    assert "it is untrained" in summary["notes"]


@pytest.fixture
def promoted(folder: Folder) -> list[str]:
    """Return two prompt sets of a registry beside the inputs; the first is current."""
    base = load_model("prompt-iml-micro")
    registry = Registry(f"{folder.uri}/registry", base.sha256)
    versions = []
    for shift in (0.5, 1.0):
        prompts = PromptSet(tuple(t + np.float32(shift) for t in base.prompts.tensors))
        made = publish(registry, prompts, base.policy, parent=None, made_by="test", model=base.id)
        record_verdict(registry, made, {"passed": True, "reasons": []})
        versions.append(made)
    promote(registry, versions[0], expected=None, by="test")
    return versions


def prompt_sets(output: str) -> set[str]:
    return set(rows(output)["prompt_set"].to_pylist())


def test_prompts_of_a_registry_are_pinned_when_the_run_starts(
    inputs: str, folder: Folder, promoted: list[str]
) -> None:
    base = load_model("prompt-iml-micro")
    registry = Registry(f"{folder.uri}/registry", base.sha256)
    one, two = (registry.read(version).prompts.id for version in promoted)
    output, options = f"{folder.uri}/out", {"limit": 1, "registry": registry.uri}
    run_scan(inputs, output=output, run_id="mine", **options)
    assert prompt_sets(output) == {one}
    promote(registry, promoted[1], expected=promoted[0], by="test")
    again = run_scan(inputs, output=output, run_id="mine", **options)
    assert again["scanned_now"] == 0  # it goes on as it began
    for other in ({"prompts": promoted[1]}, {"refresh_prompts": True}, {"registry": None}):
        with pytest.raises(RunMismatch):
            run_scan(inputs, output=output, run_id="mine", **(options | other))
    run_scan(inputs, output=output, **options)  # the next run takes the new one
    assert prompt_sets(output) == {one, two}


def test_a_verdict_uses_the_prompts_of_a_registry(
    inputs: str, folder: Folder, promoted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(f"{folder.uri}/registry", load_model("prompt-iml-micro").sha256)
    main(["scan", inputs, "--limit=4", "--json", "--registry", registry.uri])
    (one,) = {json.loads(line).get("prompt_set") for line in capsys.readouterr().out.splitlines()}
    assert one == registry.read(promoted[0]).prompts.id


def test_prompts_are_refreshed_between_units(
    inputs: str, folder: Folder, promoted: list[str]
) -> None:
    """`current` moves while an actor scans: each part has one prompt set and names it."""
    base = load_model("prompt-iml-micro")
    registry = Registry(f"{folder.uri}/registry", base.sha256)
    settings = ScanSettings(
        inputs=[inputs], output=f"{folder.uri}/out", registry=registry.uri, refresh_prompts=True
    )
    source = choose_prompt_set(settings, base, settings.output)
    assert source == PromptSetRef(registry.uri, promoted[0], refresh=True)
    models = [with_prompt_set(base, registry, each) for each in promoted]
    maker = RowMaker(row_spec(settings, models[0], source))
    scanner, found = Scanner(Run(settings.output, "r"), maker), []
    units = list(list_units([inputs], images_per_unit=1, limit=4))
    for number, unit in enumerate(units[:3]):
        if number == 1:
            promote(registry, promoted[1], expected=promoted[0], by="test")
        if number == 2:
            roll_back(registry, expected=promoted[1], by="test")
        part = scanner.scan(str(number), unit, lambda row: None)
        table = pq.read_table(storage.local_path(f"{settings.output}/{part.file}"))
        found += table["prompt_set"].to_pylist()
        (row,) = table.select(["model", "model_digest", "policy", "engine"]).to_pylist()
        assert (row["model"], row["policy"]) == (base.id, base.policy.id)
        assert row["model_digest"] == models[number % 2].digest
        assert row["engine"].startswith("openvino")
    one, two = (registry.read(version).prompts.id for version in promoted)
    assert found == [one, two, one]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "12345678"}, "need --registry"),
        ({"refresh_prompts": True}, "need --registry"),
        ({"registry": "REGISTRY", "prompts": "12345678"}, "no prompt set 12345678"),
        ({"registry": "REGISTRY", "prompts": "1" * 8, "refresh_prompts": True}, "leave out"),
        ({"registry": "ftp://b/r"}, "cannot read"),
    ],
)
def test_bad_prompts(inputs: str, options: dict[str, object], message: str, tmp_path: Path) -> None:
    options = {k: str(tmp_path / "r") if v == "REGISTRY" else v for k, v in options.items()}
    with pytest.raises(UsageError, match=message):
        run_scan(inputs, output=str(tmp_path / "out"), **options)


def test_an_empty_registry_scans_with_the_model_s_own(
    inputs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_scan(inputs, output=f"{tmp_path}/out", limit=1, registry=f"{tmp_path}/registry")
    assert prompt_sets(f"{tmp_path}/out") == {load_model("prompt-iml-micro").prompts.id}
    assert "nothing is promoted in" in capsys.readouterr().err


def here() -> list[str]:
    """Return the options of a driver on the tests' cluster."""
    return ["--address", ray.get_runtime_context().gcs_address, "--max-actors", "1"]


def launch(*arguments: str, path: Path | None = None) -> subprocess.Popen[str]:
    """Start `prompt-iml` in a new process."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = f"{path}:{ROOT}" if path else str(ROOT)
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def write_tars(folder: Path, crops: dict[str, bytes], tar_of: TarOf) -> str:
    """Write eight shards of four images; return a glob of them."""
    for shard in range(8):
        members = {f"{shard}-{name}": data for name, data in crops.items()}
        (folder / f"{shard}.tar").write_bytes(tar_of(members))
    return str(folder / "*.tar")


def files_of(output: Path) -> dict[Path, bytes]:
    """Return all files of a run but the summary of the last launch."""
    files = (path for path in output.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name != "summary.json"}


def wait_for_parts(output: Path, number: int, driver: subprocess.Popen[str]) -> None:
    while driver.poll() is None and len(list((output / "results").glob("*.parquet"))) < number:
        time.sleep(0.05)


def test_killed_halfway_and_run_again_gives_the_same_table(
    crops: dict[str, bytes], tar_of: TarOf, tmp_path: Path
) -> None:
    source, killed = write_tars(tmp_path, crops, tar_of), tmp_path / "killed"
    driver = launch("scan", source, "--output", str(killed), *here())
    wait_for_parts(killed, 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not list(killed.glob("_runs/*/manifest.json"))
    again = run_scan(source, output=str(killed))
    assert 0 < again["scanned_now"] < again["listed"] == 32
    run_scan(source, output=str(tmp_path / "clean"))
    assert findings(str(killed)) == findings(str(tmp_path / "clean"))


def test_two_drivers_and_an_actor_that_wakes_late_make_one_table(
    crops: dict[str, bytes], tar_of: TarOf, tmp_path: Path
) -> None:
    """The actor of the first driver wakes after the second driver has completed the run."""
    source, output = write_tars(tmp_path, crops, tar_of), tmp_path / "out"
    others = set(processes_below(os.getpid(), "ScanActor"))  # of tests before, not gone yet
    first = launch("scan", source, "--output", str(output), *here())
    wait_for_parts(output, 1, first)
    (zombie,) = set(processes_below(os.getpid(), "ScanActor")) - others
    os.kill(zombie, signal.SIGSTOP)
    second = run_scan(source, output=str(output))
    assert 0 < second["scanned_now"] < second["listed"] == 32
    complete = files_of(output)
    os.kill(zombie, signal.SIGCONT)
    _, err = first.communicate()
    assert first.returncode == 0, err
    assert "another driver completed" in err
    assert files_of(output) == complete


def test_the_command_line_scans_without_torch(crops: dict[str, bytes], tmp_path: Path) -> None:
    """Exit code, one JSON line on stdout, and not one process that imports torch."""
    trap = tmp_path / "trap" / "torch"
    trap.mkdir(parents=True)
    witness = tmp_path / "torch-was-imported"
    (trap / "__init__.py").write_text(f"open({str(witness)!r}, 'w').close()\nraise ImportError\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(crops["astronaut.jpg"])
    (tmp_path / "in" / "b.jpg").write_bytes(crops["rocket.jpg"][:2000])
    scanning = launch(
        "scan", str(tmp_path / "in"), "--output", str(tmp_path / "out"), path=trap.parent
    )
    out, err = scanning.communicate()
    assert scanning.returncode == 3, err  # half of the images failed
    (line,) = out.splitlines()
    assert (json.loads(line)["ok"], json.loads(line)["failed"]) == (1, 1)
    assert not witness.exists()


def test_credentials_that_end_stop_the_run_which_resumes(
    crops: dict[str, bytes], s3: Bucket, s3_endpoint: str, tmp_path: Path
) -> None:
    for number in range(12):
        s3.put(f"in/{number}.jpg", crops["rocket.jpg"])
    flags = {"output": str(tmp_path / "out"), "run_id": "r", "images_per_unit": 2}
    check_credentials_after(s3_endpoint, "6")
    try:
        with pytest.raises(CredentialsFailed, match="set AWS_ACCESS_KEY_ID"):
            run_scan(f"{s3.uri}/in", **flags)
    finally:
        check_credentials_after(s3_endpoint, "inf")
    summary = run_scan(f"{s3.uri}/in", **flags)
    assert (summary["ok"], summary["failed"]) == (12, 0)


def test_what_an_actor_raises_is_one_line() -> None:
    ours = CredentialsFailed("refused\nFailed to apply UDF transform after 1/1 attempts")
    for cause, expected in [
        (ours, "refused"),
        (ValueError("a\nb"), "a scan actor failed: ValueError: a b; the same command resumes"),
    ]:
        task = RayTaskError("f", "Traceback (most recent call last):\n", cause)
        wrapped = UserCodeException()
        wrapped.__cause__ = task.as_instanceof_cause()
        assert str(error_of_actor(wrapped)) == str(error_of_actor(task)) == expected


def test_what_an_actor_cannot_write_ends_the_scan(inputs: str, folder: Folder) -> None:
    folder.put("out/results", b"a file where the folder should be")
    with pytest.raises(OutputNotWritable, match=r"File exists; choose another --output$"):
        run_scan(inputs, output=f"{folder.uri}/out")


def test_a_part_that_was_damaged_is_made_again(scanned: Scanned) -> None:
    before = findings(str(scanned.output))
    (scanned.output / "_runs" / "one" / "manifest.json").unlink()
    part, *_ = sorted((scanned.output / "results").iterdir())
    data = bytearray(part.read_bytes())
    column = pq.read_metadata(part).row_group(0).column(0)
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    data[end - 1] ^= 1  # the last byte of a page
    part.write_bytes(data)
    scanned.again()
    assert part.read_bytes() != data
    assert findings(str(scanned.output)) == before


def test_a_complete_run_whose_part_is_gone_is_not_called_complete(scanned: Scanned) -> None:
    part, *_ = sorted((scanned.output / "results").iterdir())
    part.unlink()
    with pytest.raises(UsageError, match=rf"{part.name} is missing: see prompt-iml verify"):
        scanned.again()
