"""JPEG files of pictures that people look at."""

from __future__ import annotations

import io

from PIL import Image

MOST_SIDE = 65_500  # pixels, of libjpeg


def encode_jpeg(picture: Image.Image, quality: int, subsampling: int = -1) -> bytes:
    """Return a picture as JPEG, scaled down if a side has more pixels than a JPEG can have.

    Args:
        picture: RGB or grey.
        quality: 1 to 95.
        subsampling: of the chroma, as Pillow numbers it; -1: its default.
    """
    scale = MOST_SIDE / max(picture.size)
    if scale < 1:
        width, height = (max(1, int(side * scale)) for side in picture.size)
        picture = picture.resize((width, height))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality, subsampling=subsampling)
    return file.getvalue()
