"""Reading of the samples of a unit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from prompt_iml.engine.errors import (
    AlreadyScanned,
    DamagedShard,
    Denied,
    FetchError,
    ImageError,
    NotFound,
    OutOfMemory,
    Unsupported,
    UsageError,
)
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.names import (
    UNREAD_ARCHIVE,
    claims_to_be_image,
    is_unread_archive,
)
from prompt_iml.pipeline.sources.parquet import read_parquet
from prompt_iml.pipeline.sources.tar import read_tar
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.ordered import in_order, reading_threads
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit, too_large


def read_unit(unit: Unit, *, max_object_bytes: int, threads: int) -> Iterator[Sample]:
    """Yield one sample per image of a unit, in order, with its exact bytes or an error.

    Each of the `members` that a unit names gives one sample, even if it no longer exists.

    Args:
        unit: unit of `list_units`.
        max_object_bytes: limit of an image; larger ones fail as `TooLarge` and are not read.
        threads: plain objects fetched at once; at most twice as many are held in memory.
    """
    if unit.scanned_in:
        return _already_scanned(unit)
    if unit.kind == "tar":
        samples = _to_error(unit, read_tar(unit.uri, max_object_bytes=max_object_bytes))
    elif unit.kind == "parquet":
        samples = _to_error(unit, read_parquet(unit, max_object_bytes=max_object_bytes))
    else:
        samples = _read_objects(unit.objects, max_object_bytes, threads)
    if unit.members:
        samples = _only_members(samples, unit)
    return samples if unit.limit < 0 else islice(samples, unit.limit)


def _to_error(unit: Unit, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Yield samples of a shard; whatever its reader raises becomes the last, which names it."""
    count = 0
    try:
        for sample in samples:
            yield sample
            count += 1
    except Exception as error:  # broad, because no shard may end the job
        row = unit.first_row + count
        member = str(row) if unit.kind == "parquet" and row else None
        yield Sample(unit.uri, member, error=_unforeseen(unit.uri, error))


def _unforeseen(uri: str, error: Exception) -> ImageError:
    name = storage.display_name(uri)
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{name}: reading it needs more memory than the process has", "fetch")
    return DamagedShard(f"{name}: {type(error).__name__}: {one_line(error)}")


def _already_scanned(unit: Unit) -> Iterator[Sample]:
    for ref in unit.objects:
        error = AlreadyScanned(f"unchanged since run {unit.scanned_in}, which has its row")
        yield Sample(ref.uri, content_id=ref.content_id, error=error)


def _only_members(samples: Iterator[Sample], unit: Unit) -> Iterator[Sample]:
    left = dict.fromkeys(unit.members)  # in order
    missing = f"{storage.display_name(unit.uri)} has no member {{}} any more"
    damage: ImageError | None = None
    for sample in samples:
        name = None if sample.member is None else storage.display_name(sample.member)
        if name in left:
            del left[name]
            yield sample
        elif isinstance(sample.error, FetchError | OutOfMemory):
            damage = sample.error  # nothing after it can be read
        if not left:
            return
    for name in left:
        yield Sample(unit.uri, name, error=damage or NotFound(missing.format(name)))


def _read_objects(
    objects: tuple[ObjectRef, ...], max_object_bytes: int, threads: int
) -> Iterator[Sample]:
    fetch = partial(_fetch, max_object_bytes=max_object_bytes)
    with reading_threads(threads) as pool:
        yield from in_order(pool, fetch, objects, 2 * threads)


def _fetch(ref: ObjectRef, max_object_bytes: int) -> Sample:
    try:
        if ref.refused:
            raise Denied(ref.refused)
        if is_unread_archive(ref.uri):
            raise Unsupported(f"{storage.display_name(ref.uri)} is {UNREAD_ARCHIVE}")
        size = ref.size_bytes if ref.size_bytes >= 0 else _size_bytes(ref.uri)
        error: ImageError | None = too_large(size, max_object_bytes)
        data = None if error else storage.read_bytes(ref.uri, size, max_object_bytes)
    except ImageError as failure:
        data, error = None, failure
    except MemoryError as failure:
        data, error = None, _unforeseen(ref.uri, failure)
    claims_image = claims_to_be_image(ref.uri)
    return Sample(ref.uri, None, ref.content_id, data, error, claims_image)


def _size_bytes(uri: str) -> int:
    """Return the size of a file; -1 for one on a web server, which says it with the file."""
    try:
        uri = storage.canonical(uri)
        found = ObjectRef(uri) if storage.is_web(uri) else storage.look_up(uri)
    except UsageError as error:
        raise Unsupported(str(error)) from error
    if found is None:
        raise NotFound(f"{storage.display_name(uri)}: a folder, not an image")
    return found.size_bytes
