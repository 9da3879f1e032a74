"""Estimates of `prompt-iml plan`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.scan.estimate import SAMPLED_UNITS, survey
from prompt_iml.pipeline.units import Unit
from tests.bench.null_model import write_null_model


@pytest.fixture
def folder(photographs: dict[str, bytes], tmp_path: Path) -> Path:
    """Write plain images, one of them broken, and a tar of ten."""
    (tmp_path / "in").mkdir()
    for name, data in photographs.items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with tarfile.open(tmp_path / "in" / "ten.tar", "w") as tar:
        for number in range(10):
            tar.add(tmp_path / "in" / "rocket.jpg", f"{number}.jpg")
    return tmp_path / "in"


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> Json:
    capsys.readouterr()
    assert main(["plan", *arguments]) == 0
    summary: Json = json.loads(capsys.readouterr().out)
    return summary


def test_images_are_counted_and_those_in_tars_estimated(
    folder: Path, photographs: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = plan(capsys, str(folder))
    assert summary["images"] == pytest.approx(len(photographs) + 1 + 10, abs=1)
    assert summary["units"] == 2
    assert summary["size_bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_a_given_rate_is_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--estimate", "--rate=100", "--actors=4", "--actor-gpus=0.5"]
    summary = plan(capsys, str(folder), *flags)
    hours = summary["images"] / 100 / 4 / 3600
    assert summary["hours"] == pytest.approx(hours, abs=1e-3)
    assert summary["gpu_hours"] == pytest.approx(hours * 2, abs=1e-3)


def test_this_machine_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_null_model(tmp_path / "model")
    summary = plan(capsys, str(folder), "--estimate", f"--model={model}", "--engine=onnxruntime")
    assert summary["images_per_second"] > 0
    assert "onnxruntime" in summary["assumptions"][0]


def test_units_are_sampled_uniformly() -> None:
    units = [Unit("tar", f"file:///{number}", 10) for number in range(100)]
    seen = {unit.uri for seed in range(60) for unit in survey(units, seed).sampled}
    assert len(seen) == 100
    assert len(survey(units).sampled) == SAMPLED_UNITS


def test_nothing_to_scan_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err
