"""Findings as pictures: each mask as a PNG, or over its image as a JPEG.

The folder has an `index.csv` of all selected images, which is a truth that `evaluate` and `retrain`
read: so masks can be corrected in any editor, and go back.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import ImageError
from prompt_iml.pipeline.export.files import put, written
from prompt_iml.pipeline.export.names import picture_name
from prompt_iml.pipeline.export.rows import Row, Selection
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.images.jpeg import encode_jpeg
from prompt_iml.pipeline.report.pictures import overlay
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.truth import read_images

COLUMNS = (
    "image_id", "uri", "member", "sha256", "score", "label", "mask_rle", "mask_height",
    "mask_width",
)  # fmt: skip
INDEX = "index.csv"
GROUP = 256  # plain images that are read together
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Found:
    """Row of an image with a mask, named for `read_images`."""

    uri: str
    member: str | None
    sha256: str
    row: Row


def write_masks(selection: Selection, folder: str) -> Json:
    """Write the masks to a folder (its URI); return the number of `images` and of `masks`."""
    images = masks = 0
    with written(f"{folder}/{INDEX}") as file:
        add = _index(file, "mask")
        for row in selection.scanned(COLUMNS):
            images += 1
            name = ""
            if row["mask_rle"] is not None:
                masks += 1
                name = picture_name(row, "png")
                put(f"{folder}/{name}", _png(_mask(row)))
            add(row, name)
    return {"images": images, "masks": masks}


def write_overlays(selection: Selection, folder: str) -> Json:
    """Write the images with their masks over them to a folder (its URI).

    Returns:
        The number of `images` with a mask, and of those among them that are `missing`: no longer
        where they were, or changed.
    """
    images = missing = 0
    limits = DecodeLimits(max_pixels=selection.config["max_pixels"])
    with written(f"{folder}/{INDEX}") as file:
        add = _index(file, "overlay")
        masked = (row for row in selection.scanned(COLUMNS) if row["mask_rle"] is not None)
        for row, data in with_images(masked):
            images += 1
            drawn = _drawn(row, data, limits)
            if drawn is None:
                missing += 1
                continue
            name = picture_name(row, "jpg")
            put(f"{folder}/{name}", drawn)
            add(row, name)
    return {"images": images, "missing": missing}


def with_images(rows: Iterable[Row]) -> Iterator[tuple[Row, bytes | None]]:
    """Yield each row with the bytes of its image; None if that is gone or has changed.

    Images of one shard are read together, and plain ones by `GROUP`.
    """
    for shard, group in groupby(rows, lambda row: row["uri"] if row["member"] else None):
        found = (Found(row["uri"], row["member"], row["sha256"], row) for row in group)
        while part := list(islice(found, None if shard else GROUP)):
            yield from ((each.row, sample.data) for each, sample in read_images(part))


def _drawn(row: Row, data: bytes | None, limits: DecodeLimits) -> bytes | None:
    """Return an image with its mask as a JPEG; None where it is not the one that was scanned."""
    if data is None:
        return None
    try:
        pixels = decode(data, limits).image.pixels
    except ImageError:  # the scan had another version of the decoder
        return None
    return encode_jpeg(Image.fromarray(overlay(pixels, _mask(row))), JPEG_QUALITY)


def _index(file: BinaryIO, picture: str) -> Callable[[Row, str], object]:
    """Write the header of an index; return the function that adds an image and its picture."""
    table = csv.writer(io.TextIOWrapper(file, "utf-8", newline="", write_through=True))
    table.writerow(["image", "member", picture, "label", "score"])
    return lambda row, name: table.writerow(
        [row["uri"], row["member"], name, row["label"], row["score"]]
    )


def _mask(row: Row) -> NDArray[np.bool_]:
    return decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])


def _png(pixels: NDArray[np.bool_]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()
