"""Pictures, masks and heat maps between the stored frame and the sheet of the page."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image, ImageOps

from prompt_iml.pipeline.images.decode import DecodeLimits
from prompt_iml.pipeline.images.jpeg import MOST_SIDE
from prompt_iml.pipeline.review.pictures import (
    as_stored,
    drawn_mask,
    heat_png,
    mask_png,
    picture_jpeg,
    sheet_size,
    upright,
)
from prompt_iml.pipeline.scan.rows import HEATMAP_LEVELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_with_their_pictures(orientation: int) -> None:
    rng = np.random.default_rng(orientation)
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(image))
    assert (upright(pixels, orientation) == shown).all()
    assert (as_stored(upright(pixels, orientation), orientation) == pixels).all()
    mask = rng.random((5, 7)) > 0.5
    row = {"width": 7, "height": 5, "exif_orientation": orientation}
    assert sheet_size(row) == shown.shape[1::-1]
    assert (drawn_mask(mask_png(mask, row), row) == mask).all()


def test_a_large_picture_has_a_smaller_sheet() -> None:
    mask = np.zeros((100, 9000), bool)
    mask[20:80, 3000:6000] = True
    row = {"width": 9000, "height": 100, "exif_orientation": 8}
    assert sheet_size(row) == (46, 4096)
    back = drawn_mask(mask_png(mask, row), row)
    assert (back & mask).sum() > 0.97 * (back | mask).sum()


@pytest.mark.parametrize("size", [(70_000, 16), (1, 20_000_000)])
def test_a_side_that_no_jpeg_can_have_is_scaled(size: tuple[int, int]) -> None:
    sink = io.BytesIO()
    Image.new("RGB", size).save(sink, "PNG")
    shown = picture_jpeg(sink.getvalue(), {"exif_orientation": None}, DecodeLimits())
    with Image.open(io.BytesIO(shown)) as picture:
        assert max(picture.size) <= MOST_SIDE


def test_a_heat_map_is_of_the_size_of_its_sheet() -> None:
    cells = np.zeros((6, 8), np.uint8)
    cells[:, 4:] = HEATMAP_LEVELS - 1
    picture = Image.fromarray(cells * 17)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    row = {"width": 30, "height": 23, "exif_orientation": 6, "heatmap_png": sink.getvalue()}
    with Image.open(io.BytesIO(heat_png(row))) as heat:
        shown = np.asarray(heat)
    assert shown.shape == (30, 23)
    assert (shown[:14] == 0).all()
    assert (shown[18:] == 255).all()


def test_a_picture_is_shown_upright(photographs: Mapping[str, bytes]) -> None:
    sink, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6
    with Image.open(io.BytesIO(photographs["rocket.jpg"])) as image:
        image.save(sink, "JPEG", exif=exif, quality=95)
        width, height = image.size
        expected = np.asarray(image.rotate(-90, expand=True)).astype(int)
    row = {"width": width, "height": height, "exif_orientation": 6}
    with Image.open(io.BytesIO(picture_jpeg(sink.getvalue(), row, DecodeLimits()))) as shown:
        assert abs(np.asarray(shown).astype(int) - expected).mean() < 3
