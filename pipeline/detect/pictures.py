"""Pictures as a `Detector` takes them, opened for a `RowMaker`, and their results in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.errors import DecodeError, ImageError, UsageError
from prompt_iml.pipeline.images.decode import Decoded, DecodeLimits, decode, decode_picture
from prompt_iml.pipeline.images.provenance import perceptual_hash
from prompt_iml.pipeline.scan.rows import Row, failure, result
from prompt_iml.pipeline.scan.scanner import Opened, RowMaker, RowSpec
from prompt_iml.pipeline.sources import read_unit
from prompt_iml.pipeline.sources.packing import objects_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, Sample

Picture: TypeAlias = str | os.PathLike[str] | bytes | PilImage.Image | NDArray[np.uint8]
"""Path or URI, the bytes of a file, a picture of Pillow, or (H, W, 3) uint8 RGB."""


class Result(NamedTuple):
    """Result of one picture.

    Attributes:
        picture: as it was given.
        row: columns of docs/table.md by name, without those of a run.
        error: reason for which it could not be scanned; None if it was.
    """

    picture: Picture | Sample
    row: Row
    error: ImageError | None


def results(maker: RowMaker, pictures: Iterable[Picture | Sample]) -> Iterator[Result]:
    """Yield the result of each picture, in order; raises `UsageError` for what is no picture."""
    given: dict[int, Picture | Sample] = {}

    def opened(numbered: tuple[int, Picture | Sample]) -> Opened:
        number, picture = numbered
        given[number] = picture
        row, outcome = open_picture(picture, maker)
        return row | {"number": number}, outcome

    done: dict[int, Result] = {}  # those that overtook others: full batches complete first
    following = 0
    for row, outcome in maker.outcomes(enumerate(pictures), opened):
        number = row.pop("number")
        row |= {**maker.provenance, "scanned_at": datetime.now(UTC)}
        if isinstance(outcome, ImageError):
            done[number] = Result(given.pop(number), row | failure(outcome), outcome)
        else:
            done[number] = Result(given.pop(number), row | result(outcome, heatmap=False), None)
        while following in done:
            yield done.pop(following)
            following += 1


def open_picture(picture: Picture | Sample, maker: RowMaker) -> Opened:
    """Decode a picture, as `RowMaker.open` does; raises `UsageError` for what is no picture."""
    sample = _sample(picture, maker.spec)
    if sample:
        return maker.open(sample)
    try:
        return {}, _in_memory(picture, maker.spec)
    except DecodeError as error:
        return {}, error


def pixels_of(picture: Picture | Sample, spec: RowSpec, sha256: str | None) -> NDArray[np.uint8]:
    """Decode a picture again and return its pixels, (H, W, 3) RGB as stored.

    Args:
        picture: the picture.
        spec: limits of reading and decoding.
        sha256: digest of the bytes that were scanned; None where it had none.

    Raises:
        ImageError: it cannot be read any more.
        UsageError: it has other bytes now.
    """
    sample = _sample(picture, spec)
    if sample is None:
        return _in_memory(picture, spec).image.pixels
    if sample.error:
        raise sample.error
    data = sample.data or b""
    if hashlib.sha256(data).hexdigest() != sha256:
        name = storage.display_name(sample.uri)
        raise UsageError(f"{name} has changed since it was scanned: scan it again")
    return decode(data, _limits(spec)).image.pixels


def _limits(spec: RowSpec) -> DecodeLimits:
    return DecodeLimits(max_pixels=spec.max_pixels)


def _sample(picture: Picture | Sample, spec: RowSpec) -> Sample | None:
    """Return a picture's bytes, or the error of reading them; None if it is in memory, decoded."""
    match picture:
        case Sample():
            return picture
        case bytes():
            return Sample("", data=picture)
        case str() | os.PathLike():
            unit = objects_unit([ObjectRef(storage.canonical(os.fspath(picture)))])
            (sample,) = read_unit(unit, max_object_bytes=spec.max_object_bytes, threads=1)
            return sample
    return None


def _in_memory(picture: object, spec: RowSpec) -> Decoded:
    """Return a picture of Pillow or an array as if it were decoded."""
    if isinstance(picture, PilImage.Image):
        return decode_picture(picture, _limits(spec))
    if not isinstance(picture, np.ndarray):
        kind = type(picture).__name__
        raise UsageError(
            f"an object of type {kind} is no picture: give a path, bytes, a PIL image or an array"
        )
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        found = f"{picture.shape} {picture.dtype}"
        raise UsageError(f"an array of {found} is no picture: give (height, width, 3) uint8 RGB")
    height, width = picture.shape[:2]
    facts = {"width": width, "height": height, "perceptual_hash": perceptual_hash(picture, None)}
    return Decoded(Image(np.ascontiguousarray(picture)), facts)
