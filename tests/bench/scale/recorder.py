"""Memory of a process and its descendants, sampled every second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.helpers.processes import processes_below

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        seconds: since the start.
        done: keys, images or units done so far.
        driver: resident memory of the driver, MiB.
        actor: resident memory of the largest scan actor, MiB; 0 where there is none.
    """

    seconds: float
    done: int
    driver: float
    actor: float = 0.0


class Recorder:
    """Takes a sample a second while the `with` block runs.

    Args:
        driver: process id of the driver.
        done: returns the number done so far.
    """

    def __init__(self, driver: int, done: Callable[[], int]) -> None:
        self.samples: list[Sample] = []
        self._driver, self._done = driver, done
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._over.wait(1.0):
            actors = map(resident, processes_below(self._driver, "ScanActor"))
            sample = Sample(
                time.monotonic() - started,
                self._done(),
                resident(self._driver),
                max(actors, default=0.0),
            )
            if sample.driver:
                self.samples.append(sample)


def resident(pid: int) -> float:
    """Return the resident memory of a process, MiB; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def growth(samples: Sequence[Sample], field: str, per: int) -> float:
    """Return the MiB by which `field` grows for `per` more done: least squares, second half."""
    half = [s for s in samples if s.done >= samples[-1].done / 2]
    if len({s.done for s in half}) < 2:
        return float("nan")
    slope, _ = np.polyfit([s.done for s in half], [getattr(s, field) for s in half], 1)
    return float(slope) * per


def rate(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the rate, done a second, over the first and over the second half."""
    begun = [s for s in samples if s.done]
    middle = next(s for s in begun if s.done >= begun[-1].done / 2)
    return _rate(begun[0], middle), _rate(
        middle, next(s for s in begun if s.done == begun[-1].done)
    )


def _rate(one: Sample, other: Sample) -> float:
    seconds = other.seconds - one.seconds
    return (other.done - one.done) / seconds if seconds > 0 else float("nan")
