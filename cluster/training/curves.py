"""Curves of a training run: a CSV file, a picture and a TensorBoard event file.

Every report rewrites all three from the CSV file. So they are complete on any storage, and a run
that was killed continues them.
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from prompt_iml.pipeline.evaluation.plots import blank_figure
from prompt_iml.pipeline.storage import storage

CURVES, PICTURE = "curves.csv", "curves.png"
EVENTS = "tensorboard/events.out.tfevents.0"
Report = dict[str, str]


class Curves(UserCallback):
    """Writer of `curves.csv`, `curves.png` and `tensorboard/` in the run's folder."""

    def __init__(self, output: str) -> None:
        self._output = output

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Add the report of process 0; drop later reports, which a run killed after its last
        checkpoint may have left."""
        row, uri = metrics[0], f"{self._output}/{CURVES}"
        past = [old for old in read_curves(uri) if int(old["samples"]) < row["samples"]]
        reports = [*past, {name: _text(value) for name, value in row.items()}]
        storage.write(uri, _csv(reports))
        storage.write(f"{self._output}/{PICTURE}", picture(reports))
        storage.write(f"{self._output}/{EVENTS}", events(reports))


def read_curves(uri: str) -> list[Report]:
    """Return the reports so far, in order; [] before the first."""
    if not storage.exists(uri):
        return []
    return list(csv.DictReader(io.StringIO(storage.read_bytes(uri).decode())))


def picture(reports: list[Report]) -> bytes:
    """Return a PNG of the loss and of the metrics on held-back examples, over samples."""
    figure = blank_figure(9, 3.5)
    left, right = figure.subplots(1, 2)
    samples = [int(report["samples"]) for report in reports]
    left.plot(samples, [float(report["loss"]) for report in reports], label="loss")
    for name in ("f1", "average_f1", "pixel_auc", "score_auc", "flagged"):
        # Runs of earlier versions have no average.
        right.plot(samples, [float(report.get(name, "nan")) for report in reports], label=name)
    for axes in (left, right):
        axes.set_xlabel("samples")
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def events(reports: list[Report]) -> bytes:
    """Return a TensorBoard event file with one scalar for each column."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for report in reports:
                for name, value in report.items():
                    writer.add_scalar(name, float(value), int(report["samples"]))
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _text(value: float) -> str:
    """Format a whole number exactly, as `int` reads it back, and any other to six digits."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _csv(reports: list[Report]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(reports[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(reports)
    return file.getvalue().encode()
