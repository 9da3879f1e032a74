"""`prompt-iml scan photo.jpg` as a whole process: seconds, CPU, and memory, by the picture."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from skimage import data as photographs

from prompt_iml.engine.runtimes.blob_cache import VARIABLE

ROUNDS = 3
# Runs a command and prints what it took. In a small process of its own, because the largest memory
# of a process is at least that of the one that started it.
MEASURED = """
import os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
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
    scan = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(file), *flags]
    environment = os.environ | {VARIABLE: str(cache)}
    command = [sys.executable, "-c", MEASURED, *scan]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Taken(*map(float, done.stdout.split()))


def _median(rounds: list[Taken]) -> Taken:
    return Taken(
        *(
            statistics.median(getattr(each, name) for each in rounds)
            for name in ("seconds", "cpu", "mebibytes")
        )
    )
