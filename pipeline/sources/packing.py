"""Packing of the files that the inputs name into units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from math import ceil
from typing import Protocol

from prompt_iml.engine.errors import EmptySource
from prompt_iml.pipeline.sources.changes import Listed
from prompt_iml.pipeline.sources.inputs import Entry, entries_of, resolve
from prompt_iml.pipeline.sources.names import Format
from prompt_iml.pipeline.sources.parquet import plan_parquet
from prompt_iml.pipeline.sources.reading import read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.ordered import in_order, reading_threads
from prompt_iml.pipeline.units import ObjectRef, Unit

PLANNING_THREADS = 16

SCANNED_PER_UNIT = 10_000  # objects that are not read, and only get a row
FEW_UNITS = 32  # a job of fewer units is divided into about so many
LEAST_IMAGES = 8  # in a unit, which costs a task and a file
LOOKUP_BATCH = 1000


class Scanned(Protocol):
    """Objects and shards of which another run has rows."""

    @property
    def run_id(self) -> str: ...

    def has(self, refs: Sequence[ObjectRef]) -> Sequence[bool]:
        """Return, for each object or shard as it is listed now, whether the run has its rows."""


PlanParquet = Callable[[ObjectRef], list[Unit] | None]


def list_units(
    inputs: Sequence[str],
    *,
    images_per_unit: int,
    format: Format = "auto",  # noqa: A002  (the name of the flag)
    image_column: str | None = None,
    limit: int | None = None,
    scanned: Scanned | None = None,
    trust_lists: bool = False,
    listed: list[Listed] | None = None,
) -> Iterator[Unit]:
    """Yield the images of the inputs as units, while they are listed.

    An input is a folder or prefix, a glob, or a file. Below a folder and in a list, tar and Parquet
    shards are recognised by their extension; all else is a plain object, an image or not. A file
    that is an input itself is recognised by its content: a shard, an image, or a list of URIs.

    Args:
        inputs: paths and URIs.
        images_per_unit: objects in a unit, and the approximate number of rows in a Parquet unit;
            a tar shard is one unit.
        format: kind of every file; `auto` detects it from names and contents.
        image_column: the Parquet column with the images.
        limit: number of images to plan, None for all. Tar shards are read, up to the limit, to
            count their images.
        scanned: objects and shards of which another run has rows; they become units with
            `scanned_in`, and do not count towards the limit.
        trust_lists: see `read_list`.
        listed: gets the digest of each input, which is final when all units were taken.

    Raises:
        MissingInput: an input does not exist, or no name matches it.
        EmptySource: the inputs hold nothing to scan.
        CredentialsFailed: the store refuses to list or read an input.
        UsageError: an input cannot be read for another reason.
    """
    sources = [resolve(name) for name in inputs]
    digests = [Listed() for _ in sources]
    if listed is not None:
        listed.extend(digests)
    entries = (
        entry
        for source, digest in zip(sources, digests, strict=True)
        for entry in digest.watch(entries_of(source, format, image_column, trust_lists))
    )
    per_unit = images_per_unit if limit is None else min(images_per_unit, limit)
    plan = partial(
        plan_parquet,
        images_per_unit=per_unit,
        image_column=image_column,
        required=format == "parquet",
    )
    units = _pack(entries, per_unit, plan, scanned)
    empty = True
    for unit in units if limit is None else limited(units, limit):
        empty = False
        yield unit
    if empty:
        names = ", ".join(map(storage.display_name, inputs[:3])) + ", ..." * (len(inputs) > 3)
        raise EmptySource(f"nothing to scan in {names}")


def _pack(
    entries: Iterator[Entry],
    images_per_unit: int,
    plan_parquet: PlanParquet,
    scanned: Scanned | None,
) -> Iterator[Unit]:
    imageless: list[ObjectRef] = []  # Parquet files, which become plain objects like other files
    with reading_threads(PLANNING_THREADS) as pool:
        groups = _groups(_marked(entries, scanned), images_per_unit, scanned)
        plan = partial(_plan, plan_parquet=plan_parquet)
        for units, left in in_order(pool, plan, groups, 2 * PLANNING_THREADS):
            yield from units
            imageless.extend(left)
    for at in range(0, len(imageless), images_per_unit):
        yield objects_unit(imageless[at : at + images_per_unit])


def _marked(entries: Iterator[Entry], scanned: Scanned | None) -> Iterator[tuple[Entry, bool]]:
    """Yield each entry with whether another run has rows of it."""
    if scanned is None:
        yield from ((entry, False) for entry in entries)
        return
    while batch := list(islice(entries, LOOKUP_BATCH)):
        yield from zip(batch, scanned.has([entry.ref for entry in batch]), strict=True)


def _groups(
    entries: Iterator[tuple[Entry, bool]], images_per_unit: int, scanned: Scanned | None
) -> Iterator[Entry | Unit]:
    """Yield each shard, and the plain objects between them in full units."""
    objects: list[ObjectRef] = []
    skipped: list[ObjectRef] = []
    in_run = scanned.run_id if scanned else ""
    for entry, is_scanned in entries:
        if is_scanned:
            skipped.append(entry.ref)
        elif entry.kind == "objects":
            objects.append(entry.ref)
        else:
            yield entry
        if len(objects) == images_per_unit:
            yield objects_unit(objects)
            objects = []
        if len(skipped) == SCANNED_PER_UNIT:
            yield objects_unit(skipped, scanned_in=in_run)
            skipped = []
    if objects:
        yield objects_unit(objects)
    if skipped:
        yield objects_unit(skipped, scanned_in=in_run)


def _plan(group: Entry | Unit, plan_parquet: PlanParquet) -> tuple[list[Unit], list[ObjectRef]]:
    """Return the units of a group, and its files that are not shards."""
    if isinstance(group, Unit):
        return [group], []
    ref = group.ref
    if group.kind == "tar":
        return [Unit("tar", ref.uri, ref.size_bytes, ref.etag)], []
    units = plan_parquet(ref)
    return ([], [ref]) if units is None else (units, [])


def objects_unit(objects: Sequence[ObjectRef], scanned_in: str = "") -> Unit:
    """Return the unit of some objects; see `Unit`."""
    sizes = [0 if scanned_in else ref.size_bytes for ref in objects]
    return Unit(
        "objects",
        objects[0].uri,
        size_bytes=-1 if min(sizes) < 0 else sum(sizes),
        objects=tuple(objects),
        images=len(objects),
        scanned_in=scanned_in,
    )


def limited(units: Iterator[Unit], limit: int) -> Iterator[Unit]:
    """Yield the first units, with exactly `limit` images to read, or all if there are fewer."""
    for unit in units:
        if unit.scanned_in:
            yield unit
            continue
        cut = _cut(unit, limit)
        limit -= cut.images
        if cut.images:
            yield cut
        if not limit:
            return


def divided(units: Iterable[Unit]) -> Iterator[Unit]:
    """Yield the units, and those of a small job in smaller ones, so that every actor has several.

    Shards stay whole. Results do not depend on how images are divided into units.
    """
    rest = iter(units)
    first = list(islice(rest, FEW_UNITS))
    if len(first) < FEW_UNITS:
        images = sum(len(unit.objects) for unit in first if not unit.scanned_in)
        most = max(LEAST_IMAGES, ceil(images / FEW_UNITS))
        first = [part for unit in first for part in _parts(unit, most)]
    return chain(first, rest)


def _parts(unit: Unit, most: int) -> Iterator[Unit]:
    if unit.scanned_in or len(unit.objects) <= most:
        yield unit
        return
    for at in range(0, len(unit.objects), most):
        yield objects_unit(unit.objects[at : at + most])


def _cut(unit: Unit, limit: int) -> Unit:
    if unit.objects:
        return objects_unit(unit.objects[:limit])
    images = unit.images
    if images < 0:  # with no byte allowed, counting skips every image
        images = sum(1 for _ in islice(read_unit(unit, max_object_bytes=0, threads=1), limit))
    return replace(unit, images=min(images, limit), limit=limit if images >= limit else -1)
