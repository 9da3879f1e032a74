"""Plan and do nothing else: `python -m tests.bench.scale.planner SOURCE OUTPUT`.

Prints a `Sample` of its own memory as JSON every 100,000 keys and at the end. SOURCE is an input of
a scan, or `simulated:KEYS`: generated references, more than a listing here could give.
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
from tests.bench.scale.keys import key
from tests.bench.scale.recorder import Sample, resident

IMAGES_PER_UNIT = 256
EVERY = 100_000


def simulated(keys: int) -> Iterator[Unit]:
    """Yield units of generated keys."""
    for start in range(0, keys, IMAGES_PER_UNIT):
        numbers = range(start, min(start + IMAGES_PER_UNIT, keys))
        refs = [ObjectRef(f"s3://bucket/{key(i)}", 150_000, f"{i:032x}") for i in numbers]
        yield objects_unit(refs)


def reported(units: Iterable[Unit]) -> Iterator[Unit]:
    """Yield the units, and print a sample every `EVERY` images."""
    started, done, reported_at = time.monotonic(), 0, 0
    for unit in units:
        yield unit
        done += unit.images
        if done - reported_at >= EVERY:
            _report(started, done)
            reported_at = done
    _report(started, done)


def _report(started: float, done: int) -> None:
    sample = Sample(time.monotonic() - started, done, resident(os.getpid()))
    print(json.dumps(asdict(sample)), flush=True)


def main() -> None:
    """Plan the units of SOURCE."""
    source, output = sys.argv[1:]
    kind, _, keys = source.partition(":")
    if kind == "simulated":
        units = simulated(int(keys))
    else:
        units = list_units([source], images_per_unit=IMAGES_PER_UNIT)
    make_plan(Run(f"file://{output}", "r"), reported(units))


if __name__ == "__main__":
    main()
