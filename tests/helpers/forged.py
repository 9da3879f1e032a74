"""A forged picture, of which the packaged model is certain."""

from __future__ import annotations

import io

import numpy as np
import skimage.data
from PIL import ExifTags, Image


def forged(encoding: str, orientation: int = 1, size: tuple[int, int] = (512, 384)) -> bytes:
    """Return a photograph with a part of another one in it, encoded as JPEG or PNG.

    Args:
        encoding: Pillow's name of the format.
        orientation: EXIF orientation.
        size: width and height.
    """
    picture = Image.fromarray(skimage.data.astronaut()).resize(size)
    other = Image.fromarray(skimage.data.retina()).resize((400, 300))
    sink = io.BytesIO()
    other.save(sink, "JPEG", quality=50)
    part = Image.open(sink).crop((100, 80, 260, 220))
    yy, xx = np.mgrid[:140, :160]
    inside = ((yy - 70) / 70) ** 2 + ((xx - 80) / 80) ** 2 <= 1
    picture.paste(part, (size[0] // 2 - 60, size[1] // 2 - 50), Image.fromarray(inside))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    picture.save(file, encoding, quality=90, exif=exif)
    return file.getvalue()
