"""A folder of photographs in training's layout, made from those of scikit-image."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from prompt_iml.pipeline.forgery.photos import Photo

OUTLINE = "15 .3 .3 .6 .25 .7 .6 .4 .7\n"


def write_photos(folder: Path) -> Path:
    """Write six pictures with outlines, four to train on and two held back, none from a camera."""
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()]
    pictures += [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    (folder / "camera").mkdir(parents=True)
    (folder / "coco").mkdir()
    (folder / "camera.csv").write_text("path,camera\n")
    for index, pixels in enumerate(pictures):
        path = folder / "coco" / f"{_name(held_back=index >= 4, stem=str(index))}.jpg"
        Image.fromarray(pixels).save(path, quality=80 + 3 * index)
        path.with_suffix(".txt").write_text(OUTLINE)
    return folder


def _name(held_back: bool, stem: str) -> str:
    """Return a name that falls on the wanted side of the split, which is by a hash of the name."""
    names = (f"{stem}-{number}" for number in count())
    return next(name for name in names if Photo(Path(name), name).held_back == held_back)
