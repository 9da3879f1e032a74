"""A process that plans and nothing else: `python -m tests.scale.planner SOURCE OUTPUT`.

A line of JSON every 100,000 keys and at the end: `Sample`s of its own memory. SOURCE is what a scan
takes, or `simulated:KEYS`: references made on the spot, for what no listing here can give.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.plan import make_plan
from prompt_iml.pipeline.sources import list_units
from prompt_iml.pipeline.sources.packing import objects_unit
from prompt_iml.pipeline.units import ObjectRef, Unit
from tests.scale.keys import key
from tests.scale.recorder import Sample, resident

IMAGES_PER_UNIT = 256
EVERY = 100_000


def simulated(keys: int) -> Iterator[Unit]:
    """Units of keys that nobody listed."""
    for start in range(0, keys, IMAGES_PER_UNIT):
        numbers = range(start, min(start + IMAGES_PER_UNIT, keys))
        refs = [ObjectRef(f"s3://bucket/{key(i)}", 150_000, f"{i:032x}") for i in numbers]
        yield objects_unit(refs)


def told(units: Iterable[Unit]) -> Iterator[Unit]:
    """The units, and a line now and then."""
    started, done, told_at = time.monotonic(), 0, 0
    for unit in units:
        yield unit
        done += unit.images
        if done - told_at >= EVERY:
            _tell(started, done)
            told_at = done
    _tell(started, done)


def _tell(started: float, done: int) -> None:
    sample = Sample(time.monotonic() - started, done, resident(os.getpid()))
    print(json.dumps(asdict(sample)), flush=True)


def main() -> None:
    """Plan."""
    source, output = sys.argv[1:]
    kind, _, keys = source.partition(":")
    if kind == "simulated":
        units = simulated(int(keys))
    else:
        units = list_units([source], images_per_unit=IMAGES_PER_UNIT)
    make_plan(Run(f"file://{output}", "r"), told(units))


if __name__ == "__main__":
    main()
