"""Plan of a run: the inputs, listed once as units, in Parquet files under the run's folder.

Units stream from the listing into files and from the files into waves, so that neither planning
nor scanning holds more than one file's units in the driver.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_iml.pipeline.run.folder import Json, Run, encode, read_json
from prompt_iml.pipeline.sources.changes import Listed
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Unit, unit_to_json

OBJECTS_PER_FILE = 100_000
UNITS_PER_FILE = 2_000

SCHEMA = pa.schema(
    {
        "unit_id": pa.string(),
        "kind": pa.string(),
        "uri": pa.string(),
        "size_bytes": pa.int64(),
        "images": pa.int64(),
        "unit": pa.string(),  # the unit as JSON; the other columns are for people
    }
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Content of plan.json.

    Attributes:
        files: URIs of the Parquet files, in order.
        units: number of units.
        size_bytes: sum of the units' sizes, where known.
        images: number of images that the listing could count (tar shards are not counted).
        inputs: digest of what was listed of each INPUT (`sources.changes`); empty for plans of
            earlier versions, and of what failed in another run.
    """

    files: tuple[str, ...]
    units: int
    size_bytes: int
    images: int
    inputs: tuple[Json, ...] = ()


class PlannedUnit(NamedTuple):
    """Unit of a plan: its id in the run, and the unit as JSON."""

    unit_id: str
    unit: str


def make_plan(run: Run, units: Iterable[Unit], listed: Sequence[Listed] = ()) -> Plan:
    """Write the units as the run's plan; return the plan, which may be another driver's.

    A driver that dies leaves files that no plan.json names; the next one starts over with another
    prefix. Of two drivers, the first that writes plan.json wins.

    Args:
        run: run to plan.
        units: its units.
        listed: filled with the digests of the inputs while the units are taken.
    """
    prefix = f"{run.folder}/plan/{secrets.token_hex(4)}"
    files: list[str] = []
    count = size_bytes = images = 0
    for number, chunk in enumerate(_chunks(units)):
        uri = f"{prefix}-{number:06d}.parquet"
        storage.create_once(uri, _to_parquet(run, chunk, count))
        files.append(uri.removeprefix(f"{run.folder}/"))
        count += len(chunk)
        size_bytes += sum(max(unit.size_bytes, 0) for unit in chunk)
        images += sum(max(unit.images, 0) for unit in chunk)
    plan: Json = {"files": files, "units": count, "size_bytes": size_bytes, "images": images}
    plan["inputs"] = [each.to_json() for each in listed]
    storage.create_once(run.plan_uri, encode(plan))
    return read_plan(run)


def read_plan(run: Run) -> Plan:
    """Read the run's plan; it exists if `run.plan_uri` does."""
    plan = read_json(run.plan_uri)
    files = tuple(f"{run.folder}/{name}" for name in plan["files"])
    inputs = tuple(plan.get("inputs", ()))
    return Plan(files, plan["units"], plan["size_bytes"], plan["images"], inputs)


def read_plan_file(uri: str) -> pa.Table:
    """Read one file of a plan: columns `unit_id`, `kind`, `uri`, `images`, one row per unit."""
    columns = ["unit_id", "kind", "uri", "images"]
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)), columns=columns)


def waves(plan: Plan, units_per_wave: int) -> Iterator[list[PlannedUnit]]:
    """Yield the plan's units in lists of at most `units_per_wave`."""
    for file in plan.files:
        rows = pq.ParquetFile(io.BytesIO(storage.read_bytes(file)))
        for batch in rows.iter_batches(units_per_wave, columns=["unit_id", "unit"]):
            yield [PlannedUnit(row["unit_id"], row["unit"]) for row in batch.to_pylist()]


def _chunks(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    chunk: list[Unit] = []
    objects = 0
    for unit in units:
        chunk.append(unit)
        objects += len(unit.objects)
        if objects >= OBJECTS_PER_FILE or len(chunk) >= UNITS_PER_FILE:
            yield chunk
            chunk, objects = [], 0
    if chunk:
        yield chunk


def _to_parquet(run: Run, units: list[Unit], first: int) -> bytes:
    """Return the units as Parquet; `first` is the number of units before them in the plan."""
    texts = [unit_to_json(unit) for unit in units]
    columns = {
        "unit_id": [run.unit_id(first + place, text) for place, text in enumerate(texts)],
        "kind": [unit.kind for unit in units],
        "uri": [storage.display_name(unit.uri) for unit in units],
        "size_bytes": [unit.size_bytes for unit in units],
        "images": [unit.images for unit in units],
        "unit": texts,
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, SCHEMA), sink, compression="zstd")
    return sink.getvalue()
