"""Authentic photographs with their objects, and their split into training and validation."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prompt_iml.pipeline.forgery.history import FRAME, Floats, Pixels
from prompt_iml.pipeline.forgery.shapes import area

VALIDATION_SHARE = 0.15
LEAST_OUTLINE = 0.005  # area of an object worth copying, in parts of the photograph


@dataclass(frozen=True, slots=True)
class Photo:
    """Photograph, not read yet.

    Attributes:
        path: path of the JPEG file.
        source: group that must not be on both sides of a split: the camera where it is known,
            else the photograph's own name.
        polygons: outlines of the objects in it, (n, 2) float64 (x, y), 0..1; none if unknown.
    """

    path: Path
    source: str
    polygons: tuple[Floats, ...] = ()

    @property
    def held_back(self) -> bool:
        """True if it is for validation, which is equal for all photographs of one source."""
        digest = hashlib.sha256(self.source.encode()).digest()
        return int.from_bytes(digest[:4]) < VALIDATION_SHARE * 2**32


@dataclass(frozen=True, slots=True)
class Scene:
    """Photograph, or a part of one: (H, W, 3) pixels, and outlines (n, 2) in pixels."""

    pixels: Pixels
    polygons: tuple[Floats, ...]


def list_photos(folder: Path) -> list[Photo]:
    """List photographs of `folder/camera` (with `folder/camera.csv`) and `folder/coco`, by path.

    Raises:
        FileNotFoundError: `camera.csv` is not there.
    """
    with (folder / "camera.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    camera = [Photo(folder / "camera" / row["path"], row["camera"]) for row in rows]
    coco = [
        Photo(path, path.stem, read_polygons(path.with_suffix(".txt")))
        for path in sorted((folder / "coco").rglob("*.jpg"))
    ]
    return camera + coco


def read_polygons(path: Path) -> tuple[Floats, ...]:
    """Read object outlines of a YOLO segmentation file (class, x y pairs); () if there is none."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="ascii").splitlines()
    return tuple(np.array(line.split()[1:], np.float64).reshape(-1, 2) for line in lines)


def split(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Split into photographs to train on and to validate on: no camera is in both."""
    return [p for p in photos if not p.held_back], [p for p in photos if p.held_back]


def load_pixels(photo: Photo) -> Pixels:
    """Return (H, W, 3) uint8 RGB, in the stored frame."""
    with Image.open(photo.path) as image:
        return np.asarray(image.convert("RGB"))


def read_scene(photo: Photo) -> Scene:
    """Read a photograph, and scale its outlines to pixels; tiny ones are left out."""
    pixels = load_pixels(photo)
    size = np.array(pixels.shape[1::-1])
    outlines = (polygon * size for polygon in photo.polygons)
    return Scene(pixels, tuple(o for o in outlines if area(o) >= LEAST_OUTLINE * size.prod()))


def can_donate(photo: Photo) -> bool:
    """True if objects can be cut from it; a `Generator` needs at least one such photograph."""
    return bool(photo.polygons) and is_large(photo)


def is_large(photo: Photo) -> bool:
    """True if its shorter side is large enough for a `Generator`."""
    with Image.open(photo.path) as image:
        return min(image.size) >= FRAME
