"""Originals of the pictures to show: read again from their source, and only if unchanged."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress

from prompt_iml.engine.errors import DecodeError, PromptImlError
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.report.pictures import thumbnail
from prompt_iml.pipeline.report.reasons import Row
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.schema import image_id
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit

READ_THREADS = 8

Key = tuple[str, str]  # image_id and sha256


def thumbnails(rows: list[Row], config: Json, side: int) -> dict[Key, bytes]:
    """Return JPEGs of the rows' images, at most `side` pixels long, by `key`.

    Images whose source is missing, has changed since the scan or can no longer be decoded are
    left out.

    Args:
        config: of the run: how its sources are read.
    """
    groups: defaultdict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        groups[None if row["member"] is None else row["uri"]].append(row)
    limits = DecodeLimits(max_pixels=config["max_pixels"])
    jpegs: dict[Key, bytes] = {}
    for shard, of_shard in groups.items():
        samples = read_shard(shard, config) if shard else read_objects(of_shard, config)
        with suppress(PromptImlError):  # the shard was removed
            for name, data in find(samples, {key(row) for row in of_shard}):
                with suppress(DecodeError):  # the scan had another version of the decoder
                    jpegs[name] = thumbnail(decode(data, limits).image.pixels, side)
    return jpegs


def key(row: Row) -> Key:
    """Return what identifies a row's image and its bytes."""
    return row["image_id"], row["sha256"]


def id_of(sample: Sample) -> str:
    """Return the image_id of a sample, as the results have it."""
    member = None if sample.member is None else storage.display_name(sample.member)
    return image_id(storage.display_name(sample.uri), member)


def find(samples: Iterable[Sample], keys: set[Key]) -> Iterator[tuple[Key, bytes]]:
    """Yield the samples that `keys` name, by name and content; stop reading after the last."""
    left, names = set(keys), {name for name, _ in keys}
    for sample in samples:
        name = id_of(sample)
        if name in names and sample.data is not None:
            found = name, hashlib.sha256(sample.data).hexdigest()
            if found in left:
                left.remove(found)
                yield found, sample.data
        if not left:
            return


def read_objects(rows: list[Row], config: Json) -> Iterator[Sample]:
    """Yield the rows' images, each with its bytes or an error; they lie in no shard."""
    objects = tuple(ObjectRef(row["uri"]) for row in rows)
    return _read([Unit("objects", objects[0].uri, -1, objects=objects)], config)


def read_shard(uri: str, config: Json) -> Iterator[Sample]:
    """Yield the images of a shard (its URI), as a run with this configuration read them."""
    units = list_units(
        [uri],
        images_per_unit=config["images_per_unit"],
        format="auto",
        image_column=config["image_column"],
        limit=None,
    )
    return _read(units, config)


def _read(units: Iterable[Unit], config: Json) -> Iterator[Sample]:
    for unit in units:
        most = config["max_object_bytes"]
        yield from read_unit(unit, max_object_bytes=most, threads=READ_THREADS)
