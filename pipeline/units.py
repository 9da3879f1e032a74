"""Plain data that passes between the stages of a scan: units of the plan, samples read."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Literal

from prompt_iml.engine.errors import ImageError, TooLarge

UnitKind = Literal["objects", "tar", "parquet"]


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Reference to one plain object to scan.

    Attributes:
        uri: `file:///abs/path` or `s3://bucket/key`; a list may also name other URIs.
        size_bytes: as listed; -1 when unknown (a list of URIs).
        etag: version of the object; empty when unknown. Local files: size and mtime in ns.
        content_id: the caller's own id, when a list carries one.
        refused: reason why it must not be read; empty when it may be.
    """

    uri: str
    size_bytes: int = -1
    etag: str = ""
    content_id: str | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """Images that one actor scans at a time and commits as one file.

    Attributes:
        kind: how to read it.
        uri: the shard; for `objects` the first object.
        size_bytes: bytes to read, for progress; -1 when unknown.
        etag: version of the shard; empty for `objects`.
        first, last: Parquet row groups [first, last); 0, 0 otherwise.
        column: the Parquet column with the image bytes; empty otherwise.
        objects: the objects of an `objects` unit; empty otherwise.
        images: number of images when known, else -1 (tar).
        limit: maximum number of images to read; -1 for all.
        first_row: number of the first row of `first` in the Parquet file; 0 otherwise.
        members: the only members of a tar, or rows of a Parquet file, to read, named as in
            results; empty for all.
        scanned_in: id of a run that already has rows of these objects, so that they are not read;
            empty otherwise. Shards count as objects here.
    """

    kind: UnitKind
    uri: str
    size_bytes: int
    etag: str = ""
    first: int = 0
    last: int = 0
    column: str = ""
    objects: tuple[ObjectRef, ...] = ()
    images: int = -1
    limit: int = -1
    first_row: int = 0
    members: tuple[str, ...] = ()
    scanned_in: str = ""

    @property
    def expected(self) -> int:
        """Number of images that are read if none is lost; -1 when unknown."""
        return min(self.images, self.limit) if self.limit >= 0 else self.images


_UNIT = [field.name for field in fields(Unit)]
_REF = [field.name for field in fields(ObjectRef)]
_unit_values = attrgetter(*_UNIT)
_ref_values = attrgetter(*_REF)


def unit_to_json(unit: Unit) -> str:
    """Serialize as ASCII, so that names that are not UTF-8 pass; an object is a list of fields."""
    values = dict(zip(_UNIT, _unit_values(unit), strict=True))
    values["objects"] = [_ref_values(ref) for ref in unit.objects]
    return json.dumps(values)


def unit_from_json(text: str) -> Unit:
    """Parse the JSON of `unit_to_json`."""
    values = json.loads(text)
    values["objects"] = tuple(ObjectRef(*ref) for ref in values["objects"])
    values["members"] = tuple(values["members"])
    return Unit(**values)


@dataclass(frozen=True, slots=True)
class Sample:
    """Image as stored in its source: exact bytes, or the error that prevented reading them.

    Attributes:
        uri: the object, or the shard it lies in.
        member: name inside a tar, row number inside a Parquet file; None for an object.
        content_id: the caller's own id, when the source carries one.
        data: the exact bytes; None exactly when `error` is set.
        error: a `FetchError`, or a refusal by the source (`TooLarge`, `Unsupported`, `Empty`).
        claims_image: whether the name has an image's extension.
        media_type: type detected from the first bytes; None: not detected yet.
    """

    uri: str
    member: str | None = None
    content_id: str | None = None
    data: bytes | None = None
    error: ImageError | None = None
    claims_image: bool = True
    media_type: str | None = None


def too_large(size_bytes: int, max_object_bytes: int) -> TooLarge | None:
    """Return the error of an image of that size, or None if it is within the limit."""
    if size_bytes <= max_object_bytes:
        return None
    return TooLarge(
        f"{size_bytes} bytes, more than the limit of {max_object_bytes}",
        {"size_bytes": size_bytes},
    )
