"""Pictures, masks and heat maps as the page shows them, and drawn masks on their way back.

Results are of the *stored* frame, in which a file's pixels lie. The page shows pictures *upright*,
turned by their EXIF orientation as every viewer does. Masks are drawn on a *sheet*: the upright
frame, scaled down where its longer side is above `SHEET_SIDE`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.images.jpeg import encode_jpeg
from prompt_iml.pipeline.report.pictures import FOUND
from prompt_iml.pipeline.run.masks import decode_mask

Mask = NDArray[np.bool_]
Array = TypeVar("Array", bound=NDArray[Any])
Row = Mapping[str, Any]
Size = tuple[int, int]  # width and height

SHEET_SIDE = 4096  # the largest canvas that phones take is 4096 by 4096
SHOWN_PIXELS = 40_000_000  # larger pictures are scaled down
QUALITY = 95
CELL = 4  # stored pixels of a heat map's cell
OPAQUE = 127  # pixels of a drawn mask above it are in the mask

# By EXIF orientation: whether rows and columns change places, and which axes are then reversed.
_TURNS: dict[int | None, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
    5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,)),
}  # fmt: skip
_BACK = {6: 8, 8: 6}


def upright(pixels: Array, orientation: int | None) -> Array:
    """Return stored pixels, (H, W) or (H, W, 3), as they are shown."""
    turned, reversed_axes = _TURNS.get(orientation, (False, ()))
    return np.flip(pixels.swapaxes(0, 1) if turned else pixels, reversed_axes)  # type: ignore


def as_stored(pixels: Array, orientation: int | None) -> Array:
    """Return pixels that are shown as they are stored; undoes `upright`."""
    return upright(pixels, _BACK.get(orientation or 1, orientation))


def upright_size(row: Row) -> Size:
    """Return width and height of a row's picture as it is shown."""
    turned, _ = _TURNS.get(row["exif_orientation"], (False, ()))
    return (row["height"], row["width"]) if turned else (row["width"], row["height"])


def sheet_size(row: Row) -> Size:
    """Return width and height of the sheet on which a row's mask is drawn."""
    width, height = upright_size(row)
    scale = min(1.0, SHEET_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def picture_jpeg(data: bytes, row: Row, limits: DecodeLimits) -> bytes:
    """Return a JPEG of a picture, upright. Raises `DecodeError`."""
    pixels = upright(decode(data, limits).image.pixels, row["exif_orientation"])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(1.0, (SHOWN_PIXELS / (image.width * image.height)) ** 0.5)
    if scale < 1:
        image = image.resize(tuple(max(1, round(side * scale)) for side in image.size))
    return encode_jpeg(image, QUALITY, subsampling=0)


def stored_mask(row: Row) -> Mask | None:
    """Return the mask that the scan found, (H, W) bool in the stored frame; None without one."""
    if row["mask_rle"] is None:
        return None
    return decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])


def mask_png(mask: Mask, row: Row) -> bytes:
    """Return a sheet as a PNG: opaque where a mask in the stored frame is, else transparent."""
    shown = np.ascontiguousarray(upright(mask, row["exif_orientation"]))
    sheet = Image.fromarray(shown).resize(sheet_size(row), Image.Resampling.NEAREST)
    values = Image.fromarray(np.asarray(sheet).astype(np.uint8))
    values.putpalette([0, 0, 0, *FOUND])
    sink = io.BytesIO()
    values.save(sink, "PNG", transparency=bytes([0, 255]), bits=1)
    return sink.getvalue()


def heat_png(row: Row) -> bytes:
    """Return a sheet as a grey PNG: the probability of each pixel, of which 255 is 1.0.

    Between the centres of cells it is interpolated. Where the network saw the picture at another
    scale, the cells cover all of it.
    """
    with Image.open(io.BytesIO(row["heatmap_png"])) as stored:
        cells = stored.convert("L")
    extent = row["width"] / CELL, row["height"] / CELL
    if not all(size - 1 < part <= size for part, size in zip(extent, cells.size, strict=True)):
        extent = cells.size
    turned = upright_size(row) != (row["width"], row["height"])
    size = sheet_size(row)[::-1] if turned else sheet_size(row)
    heat = cells.resize(size, Image.Resampling.BILINEAR, box=(0, 0, *extent))
    shown = upright(np.asarray(heat), row["exif_orientation"])
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def drawn_mask(png: bytes, row: Row) -> Mask:
    """Return the opaque pixels of a sheet that was drawn on, (H, W) bool in the stored frame.

    Raises:
        ValueError: it is no PNG of the sheet's size, or it is empty.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if picture.size != sheet_size(row):
                raise ValueError(f"the mask has {picture.size} pixels, not {sheet_size(row)}")
            sheet = picture.convert("RGBA").getchannel("A").point(lambda a: 255 * (a > OPAQUE))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the mask is not a PNG: {error}") from error
    shown = np.asarray(sheet.resize(upright_size(row), Image.Resampling.NEAREST)) > 0
    if not shown.any():
        raise ValueError("the mask is empty")
    return as_stored(shown, row["exif_orientation"])
