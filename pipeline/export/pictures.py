"""Findings as pictures: each mask as a PNG, or over its image as a JPEG.

The folder has an `index.csv` of all selected images, which is a truth that `evaluate` and `retrain`
read: so masks can be corrected in any editor, and go back.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import ImageError
from prompt_iml.pipeline.export.files import put, written
from prompt_iml.pipeline.export.rows import Row, Selection
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.report.pictures import overlay
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.truth import read_images
from prompt_iml.pipeline.units import Sample

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
                put(f"{folder}/{name}", _encoded(_mask(row), "PNG"))
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
        for found in _groups(selection):
            for each, sample in read_images(found):
                images += 1
                drawn = _drawn(each.row, sample, limits)
                if drawn is None:
                    missing += 1
                    continue
                name = picture_name(each.row, "jpg")
                put(f"{folder}/{name}", drawn)
                add(each.row, name)
    return {"images": images, "missing": missing}


def _groups(selection: Selection) -> Iterator[list[Found]]:
    """Yield the rows with a mask: those of one shard together, plain ones by `GROUP`."""
    rows = (row for row in selection.scanned(COLUMNS) if row["mask_rle"] is not None)
    for shard, group in groupby(rows, lambda row: row["uri"] if row["member"] else None):
        found = (Found(row["uri"], row["member"], row["sha256"], row) for row in group)
        while part := list(islice(found, None if shard else GROUP)):
            yield part


def _drawn(row: Row, sample: Sample, limits: DecodeLimits) -> bytes | None:
    """Return an image with its mask as a JPEG; None where it is not the one that was scanned."""
    if sample.data is None:
        return None
    try:
        pixels = decode(sample.data, limits).image.pixels
    except ImageError:  # the scan had another version of the decoder
        return None
    return _encoded(overlay(pixels, _mask(row)), "JPEG")


def picture_name(row: Row, extension: str) -> str:
    """Return a file name that says whose mask it is, belongs to this image alone, and is safe."""
    name = (row["member"] or row["uri"]).rpartition("/")[2].rpartition(".")[0] or "image"
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:80]}-{row['image_id'][:12]}.{extension}"


def _index(file: BinaryIO, picture: str) -> Callable[[Row, str], object]:
    """Write the header of an index; return the function that adds an image and its picture."""
    table = csv.writer(io.TextIOWrapper(file, "utf-8", newline="", write_through=True))
    table.writerow(["image", "member", picture, "label", "score"])
    return lambda row, name: table.writerow(
        [row["uri"], row["member"], name, row["label"], row["score"]]
    )


def _mask(row: Row) -> NDArray[np.bool_]:
    return decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])


def _encoded(pixels: NDArray[np.bool_] | NDArray[np.uint8], kind: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, quality=JPEG_QUALITY)
    return sink.getvalue()
