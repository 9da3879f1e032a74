"""One complete re-training cycle, `make train-smoke`: the packaged model, two training processes on
Ray Train, one of them killed, and the gate. Nothing is replaced for the test."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml.cluster.training.curves import CURVES, read_curves
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.cli import INTERRUPTED, main
from prompt_iml.pipeline.registry.promotion import leased
from prompt_iml.pipeline.registry.registry import Registry
from tests.helpers.photos import write_photos
from tests.helpers.processes import (
    assert_ends,
    begin,
    listening,
    processes_below,
    wait_for_process,
    wait_for_reports,
)


def _forged(photo: Path, folder: Path) -> tuple[Path, bytes]:
    """Write a photograph with a copied part; return its path, and the mask as PNG."""
    pixels = np.asarray(Image.open(photo).convert("RGB")).copy()
    pixels[40:140, 40:140] = pixels[200:300, 200:300]
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[40:140, 40:140] = 255
    path, sink = folder / f"forged-{photo.name}", io.BytesIO()
    Image.fromarray(pixels).save(path, quality=90)
    Image.fromarray(mask).save(sink, "PNG")
    return path, sink.getvalue()


def _write_labels(photos: list[Path], folder: Path) -> Path:
    forged = [_forged(photo, folder) for photo in photos]
    table = {
        "uri": [str(photo) for photo in photos] + [str(path) for path, _ in forged],
        "label": ["authentic"] * len(photos) + ["manipulated"] * len(forged),
        "mask": pa.array([None] * len(photos) + [mask for _, mask in forged], pa.binary()),
    }
    pq.write_table(pa.table(table), folder / "labels.parquet")
    return folder / "labels.parquet"


def _write_set(photo: Path, folder: Path) -> Path:
    forged, mask = _forged(photo, folder)
    (folder / "mask.png").write_bytes(mask)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = [("image", "mask"), (forged.name, "mask.png"), (str(photo), "")]
        csv.writer(file).writerows(rows)
    return folder / "manifest.csv"


def _command(folder: Path, samples: int) -> list[str]:
    """Write photographs, labels and a set; return the flags of a cycle on them."""
    photos = write_photos(folder / "photos")
    pictures = sorted(photos.rglob("*.jpg"))
    flags = {
        "photos": str(photos),
        "labels": str(_write_labels(pictures, folder)),
        "registry": f"file://{folder}/registry",
        "eval-sets": str(_write_set(pictures[0], folder)),
        "samples": str(samples),
        "workers": "2",
        "margin": "1",  # the effect of so few samples on the metrics is not tested here
        "fpr-margin": "1",
        "min-gain": "-1",
        "address": "local",
        "output": str(folder / "output"),
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def _models(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["models", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.timeout(900)
def test_train_kill_resume_evaluate_gate_promote_roll_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, output = _command(tmp_path, samples=16), tmp_path / "output"
    registry = f"file://{tmp_path}/registry"
    with begin("retrain", *command) as cycle:
        # Killed after the first report, so that a new process makes the next ones.
        wait_for_process(cycle, "ray::RayTrainWorker")
        (folder,) = (path for path in output.glob("cycle-*") if path.is_dir())
        wait_for_reports(f"file://{folder}/{CURVES}", 1, cycle)
        addresses = [listening(pid) for pid in processes_below(cycle.pid, "")]
        assert set().union(*addresses) == {"127.0.0.1"}
        os.kill(processes_below(cycle.pid, "ray::RayTrainWorker")[0], signal.SIGKILL)
        out, err = cycle.communicate()
    assert cycle.returncode == 0, err[-2000:]
    summary = json.loads(out.splitlines()[-1])
    assert summary["verdict"] == "passed"
    (curves,) = output.glob(f"cycle-*/{CURVES}")
    # A run that started again would not have the report of the 8 examples before the kill.
    assert [int(report["samples"]) for report in read_curves(f"file://{curves}")] == [8, 16]
    assert summary["version"] in _models(capsys, "list", "--registry", registry)
    _models(capsys, "rollback", "--registry", registry)
    listed = json.loads(_models(capsys, "list", "--registry", registry).splitlines()[-1])
    assert listed["bases"][0]["current"] is None
    # The same cycle again is not trained twice, and does not undo the rollback.
    assert main(["retrain", *command]) == 2
    assert "was rolled back" in capsys.readouterr().err
    assert main(["retrain", *command, "--min-gain=1"]) == 3
    assert "nothing gained" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_sigterm_ends_a_cycle_as_sigint_does(tmp_path: Path) -> None:
    """It also gives its lease back, so that the same command need not wait for it."""
    with begin("retrain", *_command(tmp_path, samples=4000)) as cycle:
        wait_for_process(cycle, "ray::RayTrainWorker")
        line = "interrupted: the same command resumes"
        assert_ends(cycle, signal.SIGTERM, INTERRUPTED, line)
    model = load_model("prompt-iml-micro")
    with leased(Registry(f"file://{tmp_path}/registry", model.sha256), "another", 60):
        pass
