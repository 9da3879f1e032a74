"""The images of labels: their bytes, in streams, and what the labels say of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from prompt_iml.engine.errors import FetchError, ImageError, NotFound, UsageError
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth.labels import Faults, Label, Truth
from prompt_iml.pipeline.truth.masks import in_stored_frame, load_mask
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit

FETCH_THREADS = 16
ROWS = 1000  # rows of a Parquet shard that are read at a time
MAX_OBJECT_BYTES = 256 << 20


class Named(Protocol):
    """Image that is named as in the scan's results, with its digest, which may be empty."""

    @property
    def uri(self) -> str: ...

    @property
    def member(self) -> str | None: ...

    @property
    def sha256(self) -> str: ...


N = TypeVar("N", bound=Named)


def read_images(names: Sequence[N]) -> Iterator[tuple[N, Sample]]:
    """Yield each image with its bytes or an error: plain ones in order, then shard by shard.

    Each shard is read once. Some 32 images are held in memory at a time. An image that has other
    bytes than its name says is an error.
    """
    for name, sample in _read_all(names):
        data = sample.data
        if data is not None and name.sha256 not in ("", hashlib.sha256(data).hexdigest()):
            error = FetchError("its bytes have changed since they were scanned")
            sample = replace(sample, data=None, error=error)
        yield name, sample


def _read_all(names: Sequence[N]) -> Iterator[tuple[N, Sample]]:
    plain = [name for name in names if name.member is None]
    if plain:
        refs = tuple(ObjectRef(name.uri) for name in plain)
        unit = Unit("objects", refs[0].uri, -1, objects=refs)
        yield from zip(plain, _read([unit]), strict=True)
    shards = defaultdict[str, dict[str, list[N]]](lambda: defaultdict(list))
    for name in names:
        if name.member is not None:
            shards[name.uri][name.member].append(name)
    for uri, wanted in shards.items():
        yield from _read_shard(uri, wanted)


def _read_shard(uri: str, wanted: dict[str, list[N]]) -> Iterator[tuple[N, Sample]]:
    missing = "names the image {}, which " + storage.display_name(uri) + " does not contain"
    damage: ImageError | None = None
    try:
        for sample in _read(list_units([uri], images_per_unit=ROWS)):
            member = sample.member and storage.display_name(sample.member)
            if member in wanted:
                yield from ((name, sample) for name in wanted.pop(member))
            elif sample.error and member is None:  # the shard breaks off here
                damage = sample.error
            if not wanted:
                return
    except UsageError as error:
        damage = FetchError(str(error))
    for member, left in wanted.items():
        sample = Sample(uri, member, error=damage or NotFound(missing.format(member)))
        yield from ((name, sample) for name in left)


def _read(units: Iterable[Unit]) -> Iterator[Sample]:
    for unit in units:
        yield from read_unit(unit, max_object_bytes=MAX_OBJECT_BYTES, threads=FETCH_THREADS)


def truth_of(label: Label, size: tuple[int, int], orientation: int | None) -> Truth:
    """Return what a label says of its image, whose stored (height, width) and EXIF are given.

    A black mask marks an authentic image, unless the label says otherwise.

    Raises:
        ValueError: the mask cannot be read, has another size, or contradicts the label.
    """
    if label.mask is None:
        return Truth(label.label == "manipulated", None)
    try:
        mask = load_mask(label.mask)
    except ValueError as error:
        raise ValueError(f"has a mask that {error}") from error
    mask = in_stored_frame(mask, size, orientation)
    if mask.any() and label.label == "authentic":
        raise ValueError("labels an image with a mask authentic: correct one of the two")
    if not mask.any() and label.label == "manipulated":
        raise ValueError(
            "has a mask without a pixel above 127: mark what is manipulated, or leave the mask out"
        )
    return Truth(bool(mask.any()), mask if mask.any() else None)


def check_images(labels: Sequence[Label], faults: Faults) -> None:
    """Find every image that is not there, and every mask that does not fit its image.

    An image that cannot be decoded is no fault: it is counted as failed when it is evaluated.

    Raises:
        BadLabels: labels have faults; the message names all of them.
    """
    black = 0
    for label, sample in read_images(labels):
        with faults.of(label.row, label.name):
            if isinstance(sample.error, FetchError):
                raise ValueError(f"{sample.error.code}: {sample.error}")
            if label.mask is not None and sample.data:
                truth = _checked(label, sample.data)
                black += truth is not None and not truth.manipulated and label.label is None
    faults.check()
    if black:
        log(f"{faults.name}: images with a black mask, which count as authentic: {black}")


def _checked(label: Label, data: bytes) -> Truth | None:
    """Return the truth about an image; None for one that cannot be decoded."""
    try:
        decoded = decode(data, DecodeLimits())
    except ImageError:
        return None
    return truth_of(label, decoded.image.pixels.shape[:2], decoded.facts["exif_orientation"])
