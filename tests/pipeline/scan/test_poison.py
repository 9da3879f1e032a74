"""Images that kill a process cost one row each."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml.engine.errors import PromptImlError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.monitoring.progress import Tally
from prompt_iml.pipeline.scan.isolated import KILLS, cause_of, isolated_rows
from prompt_iml.pipeline.scan.scan import row_spec
from prompt_iml.pipeline.scan.watchdog import EXIT_STUCK
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources import list_units
from tests.bench.null_model import write_null_model
from tests.helpers.archives import TarOf
from tests.helpers.processes import kill_first_two

ROOT = Path(__file__).parents[3]
EXPECTED = {"segfault": "crashed", "allocate": "out_of_memory"}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    plant = ROOT / "tests" / "chaos" / "plant"
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return inherited | {"PYTHONPATH": f"{plant}:{ROOT}"}


def small_jpeg(data: bytes) -> bytes:
    sink = io.BytesIO()
    with Image.open(io.BytesIO(data)) as photograph:
        photograph.crop((60, 20, 300, 220)).save(sink, "JPEG", quality=85)
    return sink.getvalue()


@pytest.fixture
def scan_poisoned(
    photographs: dict[str, bytes], tar_of: TarOf, environment: dict[str, str], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Return a function that scans a tar of images, each with its poison; it returns the rows by
    member."""

    def scan(images: dict[str, str], *flags: str) -> dict[str, Any]:
        healthy = small_jpeg(photographs["astronaut.jpg"])
        members = {
            name: healthy + (b"POISON:" + poison.encode() if poison else b"")
            for name, poison in images.items()
        }
        (tmp_path / "poisoned.tar").write_bytes(tar_of(members))
        command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(tmp_path / "*.tar")]
        model = write_null_model(tmp_path / "model")  # it is ready at once, in every process
        options = ["--output", str(tmp_path / "out"), "--address", "local", "--model", str(model)]
        done = subprocess.run(
            [*command, *options, "--max-pixels", "1000000", *flags],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 3, done.stderr  # too many failed
        assert json.loads(done.stdout.splitlines()[-1])["listed"] == len(images)
        table = pq.read_table(tmp_path / "out" / "results")
        return {row["member"]: row for row in table.to_pylist()}

    return scan


@pytest.mark.timeout(600)
def test_every_poison_costs_one_row(scan_poisoned: Callable[..., dict[str, Any]]) -> None:
    """The default time-out is so long that no image here reaches it on a busy machine."""
    rows = scan_poisoned({"a.jpg": ""} | {f"{name}.jpg": name for name in EXPECTED} | {"z.jpg": ""})
    failed = {
        member: (row["error_stage"], row["error_code"])
        for member, row in rows.items()
        if row["status"] == "failed"
    }
    assert failed == {f"{n}.jpg": ("decode", code) for n, code in EXPECTED.items()}
    assert len(rows) == len(failed) + 2


@pytest.mark.timeout(600)
def test_a_loop_times_out(scan_poisoned: Callable[..., dict[str, Any]]) -> None:
    """The image is alone, because a short time-out may hit any image on a busy machine."""
    row = scan_poisoned({"loop.jpg": "loop"}, "--image-timeout", "2")["loop.jpg"]
    assert (row["error_stage"], row["error_code"]) == ("decode", "timeout")


@pytest.mark.timeout(600)
def test_a_shard_whose_reading_hangs_is_incomplete(
    scan_poisoned: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    images = {"a.jpg": "", "b.jpg": "hang"}
    rows = scan_poisoned(images, "--read-timeout", "6", "--run-id", "r")
    row = rows[None]  # of what cannot be read
    assert (row["error_stage"], row["error_code"]) == ("fetch", "timeout")
    assert (row["uri"], rows["a.jpg"]["status"]) == (f"file://{tmp_path}/poisoned.tar", "ok")
    summary = json.loads((tmp_path / "out/_runs/r/summary.json").read_text())
    assert summary["incomplete_shards"] == [row["uri"]]


@pytest.mark.parametrize(
    ("poisons", "codes"),
    [
        (["", "hang", "", ""], ["ok", "timeout", "ok", "ok"]),
        (["hang", "hang", "", ""], ["timeout"] * 4),  # the store hangs, and no single object
    ],
)
def test_an_object_whose_reading_hangs_costs_one_row(
    poisons: list[str],
    codes: list[str],
    photographs: dict[str, bytes],
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, poison in enumerate(poisons):
        data = small_jpeg(photographs["rocket.jpg"]) + (b"POISON:hang" if poison else b"")
        (tmp_path / f"{number}.jpg").write_bytes(data)
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    model = load_model(str(write_null_model(tmp_path / "model")))
    settings = ScanSettings(inputs=["in"], output="out", read_timeout=5)
    (unit,) = list_units([str(tmp_path / "*.jpg")], images_per_unit=4)
    rows = list(isolated_rows(row_spec(settings, model), unit))
    assert [row.get("error_code", "ok") for row in rows] == codes
    assert [row["uri"] for row in rows] == [ref.uri for ref in unit.objects]


def test_reading_that_takes_too_long_ends_the_process() -> None:
    hang = """
import time
from prompt_iml.pipeline.scan.watchdog import Watchdog
with Watchdog(100.0, 1.0).working("fetch"):
    time.sleep(100)
"""
    ended = subprocess.run([sys.executable, "-c", hang], timeout=90, stderr=-3)
    assert ended.returncode == EXIT_STUCK


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited on Linux only")
def test_what_needs_more_memory_than_an_actor_may_take_fails(tmp_path: Path) -> None:
    limited = """
import sys
from prompt_iml.pipeline.scan.isolated import limit_memory
from prompt_iml.pipeline.sources import list_units, read_unit
limit_memory(50 << 20)
for unit in list_units(sys.argv[1:], images_per_unit=9):
    for sample in read_unit(unit, max_object_bytes=1 << 30, threads=1):
        print(sample.error.code if sample.error else "ok")
"""
    for name, size in (("0.jpg", 1000), ("1.jpg", 300 << 20), ("2.jpg", 1000)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    command = [sys.executable, "-c", limited, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert ended.stdout.split() == ["ok", "out_of_memory", "ok"], ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited on Linux only")
@pytest.mark.parametrize("memory", ["", "2GiB"])
def test_an_actor_takes_its_limit_from_the_setting(memory: str, tmp_path: Path) -> None:
    begin = """
import resource, sys
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.scan.actors import ScanActor
from prompt_iml.pipeline.scan.scan import row_spec
from prompt_iml.pipeline.scan.scanner import ScanSpec
from prompt_iml.pipeline.settings import ScanSettings
model, memory = sys.argv[1:]
settings = ScanSettings(inputs=["in"], output="out", model=model, actor_memory=memory or None)
ScanActor(ScanSpec(Run("file:///out", "r"), row_spec(settings, load_model(model))), None)
print(resource.getrlimit(resource.RLIMIT_DATA)[0] >> 30)
"""
    model = write_null_model(tmp_path / "model")
    command = [sys.executable, "-c", begin, str(model), memory]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert (2 <= int(ended.stdout) < 100) if memory else int(ended.stdout) == -1


@pytest.mark.parametrize(
    ("exit_status", "code", "message"),
    [
        (-signal.SIGABRT, "crashed", "SIGABRT"),
        (7, "crashed", "exit status 7"),
        (0, "crashed", "exit status 0"),
        (-signal.SIGKILL, "out_of_memory", "memory"),
    ],
)
def test_a_death_has_a_cause(exit_status: int, code: str, message: str) -> None:
    cause = cause_of(exit_status)
    assert (cause.code, message in str(cause)) == (code, True)


def test_a_loop_that_keeps_python_s_lock_ends_the_process() -> None:
    hang = """
import ctypes
from prompt_iml.pipeline.scan.watchdog import Watchdog
with Watchdog(1.0).working("decode"):
    ctypes.PyDLL(None).{}
"""
    for call in ("sleep(60)", "usleep(1); [None for _ in iter(int, 1)]"):
        ended = subprocess.run([sys.executable, "-c", hang.format(call)], timeout=200, stderr=-3)
        assert ended.returncode in (1, EXIT_STUCK)


def test_idle_time_does_not_count() -> None:
    idle = """
import time
from prompt_iml.pipeline.scan.watchdog import Watchdog
watchdog = Watchdog(10.0)  # longer than the watchdog's thread may be kept from running
with watchdog.working("decode"):
    pass
time.sleep(13)
"""
    assert subprocess.run([sys.executable, "-c", idle], timeout=200).returncode == 0


def test_a_process_of_its_own_has_memory_for_tiles_of_every_shape(
    photographs: dict[str, bytes], tmp_path: Path
) -> None:
    photograph = Image.open(io.BytesIO(photographs["astronaut.jpg"]))
    for width, height in ((200, 200), (200, 400), (400, 200), (400, 400)):
        photograph.crop((0, 0, width, height)).save(tmp_path / f"{width}x{height}.png")
    settings = ScanSettings(inputs=[str(tmp_path)], output=str(tmp_path), max_pixels=1_000_000)
    model = load_model(settings.model)
    (unit,) = list_units([str(tmp_path / "*.png")], images_per_unit=4)
    rows = list(isolated_rows(row_spec(settings, model), unit))
    assert [row["status"] for row in rows] == ["ok"] * 4, [row.get("error_message") for row in rows]


def test_a_process_killed_while_it_loads_is_started_again(
    photographs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes the most memory, beside the actor's own engine."""
    (tmp_path / "a.jpg").write_bytes(photographs["rocket.jpg"])
    model = load_model(str(write_null_model(tmp_path / "model")))
    (unit,) = list_units([str(tmp_path / "a.jpg")], images_per_unit=1)
    settings = ScanSettings(
        inputs=[str(tmp_path)], output=str(tmp_path), model=str(tmp_path / "model")
    )
    killed = kill_first_two(monkeypatch)
    rows = list(isolated_rows(row_spec(settings, model), unit))
    assert [row["status"] for row in rows] == ["ok"]
    assert killed == [-signal.SIGKILL] * 2


@pytest.mark.parametrize(
    ("poison", "at", "row"),
    [
        ("", 1, {"error_code": "out_of_memory", "error_stage": "decode"}),
        ("hang", 1, {"member": None}),
        ("hang", 0, {"member": None}),
    ],
)
def test_what_kills_the_actor_with_its_child_is_not_tried_without_end(
    poison: str,
    at: int,
    row: dict[str, Any],
    photographs: dict[str, bytes],
    environment: dict[str, str],
    tar_of: TarOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each actor dies at an image, or while it is read, as where a container is killed."""
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    healthy = small_jpeg(photographs["astronaut.jpg"])
    members = {f"{number}.jpg": healthy for number in range(3)}
    members[f"{at}.jpg"] += b"POISON:" + poison.encode() if poison else b""
    (tmp_path / "s.tar").write_bytes(tar_of(members))
    model = load_model(str(write_null_model(tmp_path / "model")))
    settings = ScanSettings(inputs=["in"], output="out", read_timeout=60)
    (unit,) = list_units([str(tmp_path / "s.tar")], images_per_unit=4)
    tally = Tally()

    class ActorDied(BaseException):
        pass

    def begun(done: int, is_image: bool) -> int:
        deaths = tally.begin_image("unit", done, is_image)
        if done == at and is_image != bool(poison) and deaths < KILLS:
            raise ActorDied
        return deaths

    deaths = 0
    while deaths <= KILLS:
        try:
            rows = list(isolated_rows(row_spec(settings, model), unit, begun))
            break
        except ActorDied:
            deaths += 1
    assert deaths == KILLS
    codes = [each.get("error_code", "ok") for each in rows]
    read = ["ok"] * at + ["out_of_memory"]
    assert codes == (read if poison else [*read, "ok"])
    failed = rows[at]
    assert {name: failed.get(name) for name in row} == row


def test_without_an_engine_nothing_is_called_poison(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (unit,) = list_units([str(tmp_path / "a.jpg")], images_per_unit=1)
    settings = ScanSettings(inputs=[str(tmp_path)], output=str(tmp_path))
    model = replace(load_model(settings.model), graph_sha256="another")
    with pytest.raises(PromptImlError, match="cannot scan"):
        list(isolated_rows(row_spec(settings, model), unit))
