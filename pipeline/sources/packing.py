"""From the files that the inputs name to units of a good size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice

from engine.errors import EmptySource
from pipeline import storage
from pipeline.sources.inputs import Entry, entries_of, resolve
from pipeline.sources.names import Format
from pipeline.sources.ordered import in_order
from pipeline.sources.parquet import plan_parquet
from pipeline.sources.reading import read_unit
from pipeline.units import ObjectRef, Unit

PLANNING_THREADS = 16

PlanParquet = Callable[[ObjectRef], list[Unit] | None]


def list_units(
    inputs: Sequence[str],
    *,
    images_per_unit: int,
    format: Format = "auto",  # noqa: A002  (the name of the flag)
    image_column: str | None = None,
    limit: int | None = None,
) -> Iterator[Unit]:
    """What the inputs hold, as units, while it is listed.

    An input is a folder or prefix, a glob, or a file. Below a folder and in a list the extension
    tells tar and Parquet shards; all else is a plain object, an image or not. A file that is an
    input itself is told by its content: a shard, an image, or a list of URIs.

    Args:
        inputs: paths and URIs.
        images_per_unit: objects in a unit, and about the rows in a Parquet unit; a tar shard is
            one unit.
        format: what every file is, in place of what names and contents tell.
        image_column: the Parquet column with the images.
        limit: plan exactly so many images, or all there are. Counts the images of tar shards,
            which reads them up to the limit.

    Raises:
        MissingInput: an input names nothing.
        EmptySource: there is nothing to scan in any input.
        CredentialsFailed: the store refuses to list or read an input.
        UsageError: anything else that makes an input unreadable as a whole.
    """
    sources = [resolve(name) for name in inputs]
    entries = (entry for source in sources for entry in entries_of(source, format, image_column))
    per_unit = images_per_unit if limit is None else min(images_per_unit, limit)
    plan = partial(
        plan_parquet,
        images_per_unit=per_unit,
        image_column=image_column,
        required=format == "parquet",
    )
    units = _pack(entries, per_unit, plan)
    empty = True
    for unit in units if limit is None else _limited(units, limit):
        empty = False
        yield unit
    if empty:
        names = ", ".join(map(storage.display_name, inputs[:3])) + ", ..." * (len(inputs) > 3)
        raise EmptySource(f"nothing to scan in {names}")


def _pack(
    entries: Iterator[Entry], images_per_unit: int, plan_parquet: PlanParquet
) -> Iterator[Unit]:
    imageless: list[ObjectRef] = []  # Parquet files: plain objects, like any other sidecar
    with ThreadPoolExecutor(PLANNING_THREADS) as pool:
        groups = _groups(entries, images_per_unit)
        plan = partial(_plan, plan_parquet=plan_parquet)
        for units, left in in_order(pool, plan, groups, 2 * PLANNING_THREADS):
            yield from units
            imageless.extend(left)
    for at in range(0, len(imageless), images_per_unit):
        yield _objects_unit(imageless[at : at + images_per_unit])


def _groups(entries: Iterator[Entry], images_per_unit: int) -> Iterator[Entry | list[ObjectRef]]:
    """Each shard, and the plain objects between them in full groups."""
    objects: list[ObjectRef] = []
    for entry in entries:
        if entry.kind != "objects":
            yield entry
            continue
        objects.append(entry.ref)
        if len(objects) == images_per_unit:
            yield objects
            objects = []
    if objects:
        yield objects


def _plan(
    group: Entry | list[ObjectRef], plan_parquet: PlanParquet
) -> tuple[list[Unit], list[ObjectRef]]:
    """A group's units, and what turned out to be no shard."""
    if isinstance(group, list):
        return [_objects_unit(group)], []
    ref = group.ref
    if group.kind == "tar":
        return [Unit("tar", ref.uri, ref.size_bytes, ref.etag)], []
    units = plan_parquet(ref)
    return ([], [ref]) if units is None else (units, [])


def _objects_unit(objects: Sequence[ObjectRef]) -> Unit:
    sizes = [ref.size_bytes for ref in objects]
    return Unit(
        "objects",
        objects[0].uri,
        size_bytes=-1 if min(sizes) < 0 else sum(sizes),
        objects=tuple(objects),
        images=len(objects),
    )


def _limited(units: Iterator[Unit], limit: int) -> Iterator[Unit]:
    for unit in units:
        cut = _cut(unit, limit)
        limit -= cut.images
        if cut.images:
            yield cut
        if not limit:
            return


def _cut(unit: Unit, limit: int) -> Unit:
    if unit.objects:
        return _objects_unit(unit.objects[:limit])
    images = unit.images
    if images < 0:  # with no byte allowed, counting skips every image
        images = sum(1 for _ in islice(read_unit(unit, max_object_bytes=0, threads=1), limit))
    return replace(unit, images=min(images, limit), limit=limit if images >= limit else -1)
