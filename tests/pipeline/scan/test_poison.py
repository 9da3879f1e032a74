"""Images that kill cost one row each, whatever they do, and nothing else."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml.engine.errors import PromptImlError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.scan.isolated import cause_of, isolated_rows
from prompt_iml.pipeline.scan.scan import scan_spec
from prompt_iml.pipeline.scan.watchdog import EXIT_STUCK
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources import list_units
from tests.bench.null_model import write_null_model
from tests.conftest import TarOf

ROOT = Path(__file__).parents[3]
EXPECTED = {
    "segfault": "crashed",
    "loop": "timeout",
    "allocate": "out_of_memory",
}


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


@pytest.mark.timeout(600)
def test_every_poison_costs_one_row(
    photographs: dict[str, bytes], tar_of: TarOf, environment: dict[str, str], tmp_path: Path
) -> None:
    healthy = small_jpeg(photographs["astronaut.jpg"])
    poison = {f"{name}.jpg": healthy + b"POISON:" + name.encode() for name in EXPECTED}
    members = {"a.jpg": healthy} | poison | {"z.jpg": healthy}
    (tmp_path / "poisoned.tar").write_bytes(tar_of(members))
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(tmp_path / "*.tar")]
    model = write_null_model(tmp_path / "model")  # it is ready at once, in every process
    options = ["--output", str(tmp_path / "out"), "--address", "local", "--model", str(model)]
    limits = ["--image-timeout", "5", "--max-pixels", "1000000"]
    scan = subprocess.run(
        [*command, *options, *limits], env=environment, capture_output=True, text=True
    )
    assert scan.returncode == 3, scan.stderr  # three of five failed
    summary = json.loads(scan.stdout.splitlines()[-1])
    assert (summary["listed"], summary["ok"], summary["failed"]) == (5, 2, 3)
    table = pq.read_table(tmp_path / "out" / "results")
    failed = {
        row["member"]: (row["error_stage"], row["error_code"])
        for row in table.to_pylist()
        if row["status"] == "failed"
    }
    assert failed == {f"{n}.jpg": ("decode", code) for n, code in EXPECTED.items()}


@pytest.mark.parametrize(
    ("exit_status", "code", "said"),
    [
        (-signal.SIGABRT, "crashed", "SIGABRT"),
        (7, "crashed", "exit status 7"),
        (0, "crashed", "exit status 0"),
        (-signal.SIGKILL, "out_of_memory", "memory"),
    ],
)
def test_a_death_has_a_cause(exit_status: int, code: str, said: str) -> None:
    cause = cause_of(exit_status)
    assert (cause.code, said in str(cause)) == (code, True)


def test_a_loop_that_keeps_python_s_lock_ends_the_process() -> None:
    hang = """
import ctypes
from prompt_iml.pipeline.scan.watchdog import Watchdog
with Watchdog(1.0).working("decode"):
    ctypes.PyDLL(None).{}
"""
    for call in ("sleep(60)", "usleep(1); [None for _ in iter(int, 1)]"):
        ended = subprocess.run([sys.executable, "-c", hang.format(call)], timeout=30, stderr=-3)
        assert ended.returncode in (1, EXIT_STUCK)


def test_idle_time_is_nobody_s_fault() -> None:
    idle = """
import time
from prompt_iml.pipeline.scan.watchdog import Watchdog
watchdog = Watchdog(1.0)
with watchdog.working("decode"):
    pass
time.sleep(4)
"""
    assert subprocess.run([sys.executable, "-c", idle], timeout=30).returncode == 0


def test_a_process_of_its_own_has_memory_for_tiles_of_every_shape(
    photographs: dict[str, bytes], tmp_path: Path
) -> None:
    photograph = Image.open(io.BytesIO(photographs["astronaut.jpg"]))
    for width, height in ((200, 200), (200, 400), (400, 200), (400, 400)):
        photograph.crop((0, 0, width, height)).save(tmp_path / f"{width}x{height}.png")
    settings = ScanSettings(inputs=[str(tmp_path)], output=str(tmp_path), max_pixels=1_000_000)
    model = load_model(settings.model)
    (unit,) = list_units([str(tmp_path / "*.png")], images_per_unit=4)
    rows = list(isolated_rows(scan_spec(settings, Run(f"file://{tmp_path}", "r"), model), unit))
    assert [row["status"] for row in rows] == ["ok"] * 4, [row.get("error_message") for row in rows]


def test_a_process_killed_while_it_loads_is_started_again(
    photographs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it takes most memory, beside the actor's own engine."""
    (tmp_path / "a.jpg").write_bytes(photographs["rocket.jpg"])
    model = load_model(str(write_null_model(tmp_path / "model")))
    (unit,) = list_units([str(tmp_path / "a.jpg")], images_per_unit=1)
    settings = ScanSettings(
        inputs=[str(tmp_path)], output=str(tmp_path), model=str(tmp_path / "model")
    )
    start, killed = subprocess.Popen, list[int]()

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        if len(killed) < 2:
            process.kill()
            killed.append(process.wait())
        return process

    monkeypatch.setattr("prompt_iml.pipeline.scan.isolated.subprocess.Popen", popen)
    rows = list(isolated_rows(scan_spec(settings, Run(f"file://{tmp_path}", "r"), model), unit))
    assert [row["status"] for row in rows] == ["ok"]
    assert killed == [-signal.SIGKILL] * 2


def test_without_an_engine_nothing_is_called_poison(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (unit,) = list_units([str(tmp_path / "a.jpg")], images_per_unit=1)
    settings = ScanSettings(inputs=[str(tmp_path)], output=str(tmp_path))
    model = replace(load_model(settings.model), sha256="another")
    spec = scan_spec(settings, Run(f"file://{tmp_path}", "r"), model)
    with pytest.raises(PromptImlError, match="cannot scan"):
        list(isolated_rows(spec, unit))
