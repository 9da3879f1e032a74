"""Draw the curves that `python -m tests.bench.scale` wrote to a folder, as one PNG."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.scale.recorder import Sample


def draw(folder: Path) -> None:
    """Draw a row for each curve: memory over the number done, and the rate beside it."""
    files = sorted(folder.glob("*.csv"))
    figure = Figure((10, 2.2 * len(files)), layout="constrained")
    for file, (memory, speed) in zip(
        files, figure.subplots(len(files), 2, squeeze=False), strict=True
    ):
        samples = _read(file)
        _draw(memory, speed, samples)
        memory.set_title(file.stem)
    figure.savefig(folder / "curves.png", dpi=100)


def _read(file: Path) -> list[Sample]:
    with file.open(newline="") as rows:
        return [
            Sample(
                float(r["seconds"]), int(float(r["done"])), float(r["driver"]), float(r["actor"])
            )
            for r in csv.DictReader(rows)
        ]


def _draw(memory: Axes, speed: Axes, samples: list[Sample]) -> None:
    done = [s.done for s in samples]
    memory.plot(done, [s.driver for s in samples], label="driver")
    if any(s.actor for s in samples):
        memory.plot(done, [s.actor for s in samples], label="largest actor")
    highest = max(max(s.driver, s.actor) for s in samples)
    memory.set(ylabel="MiB", xlabel="done", ylim=(0, 1.2 * highest))
    memory.legend(loc="lower right")
    stride = max(1, len(samples) // 40)
    points = samples[::stride]
    pairs = [(a, b) for a, b in pairwise(points) if b.seconds > a.seconds]
    rates = [(b.done - a.done) / (b.seconds - a.seconds) for a, b in pairs]
    speed.plot([b.done for _, b in pairs], rates)
    speed.set(ylabel="done a second", xlabel="done", ylim=(0, None))
