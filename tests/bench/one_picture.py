"""`prompt-iml scan photo.jpg` as a whole process: seconds, CPU, and memory, by the picture."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from skimage import data as photographs

from prompt_iml.engine.runtimes.blob_cache import VARIABLE

ROUNDS = 3
# Sides of the picture, and flags.
PICTURES: dict[str, tuple[tuple[int, int], list[str]]] = {
    "64x64": ((64, 64), []),
    "1024x1024": ((1024, 1024), []),
    "12 megapixels": ((4000, 3000), []),
    "12 megapixels, bfloat16": ((4000, 3000), ["--precision", "bfloat16"]),
    "48 megapixels": ((8000, 6000), []),
    "108 megapixels": ((12000, 9000), []),
}


@dataclass(frozen=True, slots=True)
class Taken:
    """Cost of one process: seconds by the clock, seconds of CPU, and its largest memory in MiB."""

    seconds: float
    cpu: float
    mebibytes: float


def measure(folder: Path) -> dict[str, Taken]:
    """Return the medians for each picture, and for one where nothing is compiled yet."""
    taken = {}
    for name, (size, flags) in PICTURES.items():
        file = folder / f"{size[0]}x{size[1]}.jpg"
        Image.fromarray(photographs.astronaut()).resize(size).save(file, quality=90)
        if size == (1024, 1024):
            cold = [_run(file, flags, folder / f"cache-{number}") for number in range(ROUNDS)]
            taken[f"{name}, nothing compiled"] = _median(cold)
        _run(file, flags, folder / "cache")
        taken[name] = _median([_run(file, flags, folder / "cache") for _ in range(ROUNDS)])
    return taken


def _run(file: Path, flags: list[str], cache: Path) -> Taken:
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(file), *flags]
    started = time.monotonic()
    environment, none = os.environ | {VARIABLE: str(cache)}, subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdout=none, stderr=none)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"the scan ended with exit code {process.returncode}"
    cpu = usage.ru_utime + usage.ru_stime
    return Taken(time.monotonic() - started, cpu, usage.ru_maxrss / 1024)


def _median(rounds: list[Taken]) -> Taken:
    return Taken(
        *(
            statistics.median(getattr(each, name) for each in rounds)
            for name in ("seconds", "cpu", "mebibytes")
        )
    )
