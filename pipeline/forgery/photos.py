"""Authentic photographs to train on, and which of them are held back for validation."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VALIDATION_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph.

    Attributes:
        path: of the JPEG.
        source: whatever must not lie on both sides of a split: the camera where it is known,
            else the photograph's own name.
        polygons: outlines of the objects in it, (n, 2) float64 (x, y), 0..1; none if unknown.
    """

    path: Path
    source: str
    polygons: tuple[NDArray[np.float64], ...] = ()

    @property
    def held_back(self) -> bool:
        """Whether it is for validation: the same answer for all photographs of one camera."""
        digest = hashlib.sha256(self.source.encode()).digest()
        return int.from_bytes(digest[:4]) < VALIDATION_SHARE * 2**32


def list_photos(folder: Path) -> list[Photo]:
    """Photographs of `folder/camera` (with `folder/camera.csv`) and `folder/coco`, by path.

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


def read_polygons(path: Path) -> tuple[NDArray[np.float64], ...]:
    """Object outlines of a YOLO segmentation file: a class, then x y pairs, a line; () if none."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="ascii").splitlines()
    return tuple(np.array(line.split()[1:], np.float64).reshape(-1, 2) for line in lines)


def split(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """To train on, and held back: no camera, and no photograph, is in both."""
    return [p for p in photos if not p.held_back], [p for p in photos if p.held_back]


def load_pixels(photo: Photo) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, in the stored frame."""
    with Image.open(photo.path) as image:
        return np.asarray(image.convert("RGB"))
