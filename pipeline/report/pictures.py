"""Pictures of findings: thumbnails, masks over images, a sheet of examples.

Masks are bool, pixels uint8 RGB, both as stored, before any EXIF rotation. Detected masks have
the colour `FOUND`, true ones `TRUTH`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import scipy  # whose parts load when they are first used
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

FOUND: Colour = (255, 0, 153)
TRUTH: Colour = (0, 229, 160)
FILL_OPACITY = 0.42

_PAGE: Colour = (250, 250, 249)
_FRAME: Colour = (237, 235, 233)
_INK: Colour = (28, 25, 23)


def overlay(pixels: Pixels, mask: Mask, colour: Colour = FOUND) -> Pixels:
    """Return (H, W, 3) pixels with a mask over them: tinted, outlined in `colour`, edged white."""
    marked = pixels.copy()
    inside = marked[mask].astype(np.float64)
    marked[mask] = np.rint(inside + FILL_OPACITY * (np.array(colour) - inside))
    width = line_width(mask.shape)
    marked[outline(mask, width)] = colour
    marked[scipy.ndimage.binary_dilation(mask, iterations=max(1, width // 2)) & ~mask] = 255
    return marked


def outline(mask: Mask, width: int) -> Mask:
    """Return the `width` outermost pixels of a (H, W) mask; the image border is no edge."""
    inside: Mask = scipy.ndimage.binary_erosion(mask, iterations=width, border_value=1)
    return mask & ~inside


def line_width(shape: tuple[int, ...]) -> int:
    """Return the width in pixels of an outline that is visible in an image of (H, W)."""
    return max(1, round(max(shape[:2]) / 220))


def thumbnail(pixels: Pixels, side: int) -> bytes:
    """Return a JPEG of (H, W, 3) pixels whose longer side is at most `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=82, optimize=True)
    return file.getvalue()


def mask_layer(mask: Mask, side: int) -> bytes:
    """Return a PNG to lay over the thumbnail of `mask`'s image: tinted inside, with an outline."""
    image = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    image.thumbnail((side, side), Image.Resampling.BOX)
    small: Mask = np.asarray(image) >= 64  # a mask that covers a quarter of a pixel is visible
    layer = small.astype(np.uint8)
    layer[outline(small, line_width(small.shape))] = 2
    palette = Image.fromarray(layer)
    palette.putpalette([0, 0, 0, *FOUND, *FOUND])
    file = io.BytesIO()
    opacity = bytes([0, round(255 * FILL_OPACITY), 255])
    palette.save(file, "png", transparency=opacity, bits=2, optimize=True)
    return file.getvalue()


def contact_sheet(
    examples: Sequence[tuple[str, Pixels, Mask | None, Mask]], columns: int = 2, side: int = 300
) -> Pixels:
    """Return a grid of examples: the image, its true mask, the detected mask.

    Args:
        examples: caption, (H, W, 3) pixels, true mask (None when authentic), detected mask.
        columns: examples side by side.
        side: width of one picture in pixels; its height is three quarters of that.

    Returns:
        (H, W, 3) uint8.
    """
    gap, height = side // 20, side * 3 // 4
    rows = -(-len(examples) // columns)
    cell = (3 * side + 4 * gap, height + 3 * gap)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap // 2), _PAGE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=0.8 * gap)
    for number, (caption, pixels, truth, found) in enumerate(examples):
        x, y = gap + number % columns * cell[0], gap + number // columns * cell[1]
        pictures = (pixels, _with_truth(pixels, truth), overlay(pixels, found))
        names = (caption, "truth: " + ("forged" if truth is not None else "authentic"), "found")
        for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            left = x + i * (side + gap // 2)
            sheet.paste(_fit(picture, (side, height)), (left, y))
            pen.text((left, y + height + 0.4 * gap), name, _INK, font)
    return np.asarray(sheet)


def _with_truth(pixels: Pixels, truth: Mask | None) -> Pixels:
    return pixels if truth is None else overlay(pixels, truth, TRUTH)


def _fit(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Fit all of the pixels, centred, into (width, height)."""
    return ImageOps.pad(Image.fromarray(pixels), size, Image.Resampling.LANCZOS, _FRAME)
