"""Authentic photographs with their objects, and their split into training and validation."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from prompt_iml.pipeline.forgery.history import FRAME, Floats, Pixels
from prompt_iml.pipeline.forgery.shapes import area

Collection = Literal["camera", "coco", "web", "negative"]

VALIDATION_SHARE = 0.15
# Sources that are held back whole, beside the share of the cameras: photographs that people posted,
# and screenshots, renders and scans. No photograph of them may train.
HELD_BACK_SOURCES = frozenset(
    {
        "Azure-Samples/cognitive-services-REST-api-samples",
        "Cecilapp/photo-stream",
        "SurajNamburi/v2-balloon-detection-dataset",
        "allisonhorst/stats-illustrations",
        "android/compose-samples",
        "android/nowinandroid",
        "dusty-nv/jetson-inference",
        "has2k1/plotnine",
        "immich-app/test-assets",
        "pop-os/wallpapers",
    }
)
# Share of each collection in a training; those that are missing leave theirs to the others.
SHARES: dict[Collection, float] = {"camera": 0.25, "coco": 0.3, "web": 0.38, "negative": 0.07}
LEAST_OUTLINE = 0.005  # area of an object worth copying, in parts of the photograph


@dataclass(frozen=True, slots=True)
class Photo:
    """Photograph, not read yet.

    Attributes:
        path: path of the JPEG file.
        source: group that must not be on both sides of a split: the camera where it is known,
            else the photograph's own name.
        polygons: outlines of the objects in it, (n, 2) float64 (x, y), 0..1; none if unknown.
        kind: collection that it belongs to; a negative is a screenshot, render or scan.
    """

    path: Path
    source: str
    polygons: tuple[Floats, ...] = ()
    kind: Collection = "camera"

    @property
    def held_back(self) -> bool:
        """True if it is for validation, which is equal for all photographs of one source."""
        if self.source in HELD_BACK_SOURCES:
            return True
        digest = hashlib.sha256(self.source.encode()).digest()
        return int.from_bytes(digest[:4]) < VALIDATION_SHARE * 2**32


@dataclass(frozen=True, slots=True)
class Scene:
    """Photograph, or a part of one.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        polygons: outlines of objects, (n, 2) in pixels.
        negative: whether it is a screenshot, render or scan.
    """

    pixels: Pixels
    polygons: tuple[Floats, ...]
    negative: bool = False


def list_photos(folder: Path, negatives: Path | None = None) -> list[Photo]:
    """List photographs of `folder/camera`, `folder/coco` and, where it is, `folder/web`, by path.

    `camera` and `web` each have a CSV beside them with the columns `path`, `camera` and `source`.

    Args:
        folder: the photographs.
        negatives: folder of authentic pictures that are no photographs, with such a CSV beside it.

    Raises:
        FileNotFoundError: a folder's CSV is not there.
    """
    photos = _listed(folder / "camera", "camera")
    photos += [
        Photo(path, path.stem, read_polygons(path.with_suffix(".txt")), "coco")
        for path in sorted((folder / "coco").rglob("*.jpg"))
    ]
    if (folder / "web").exists():
        photos += _listed(folder / "web", "web")
    return photos + (_listed(negatives, "negative") if negatives else [])


def _listed(folder: Path, kind: Collection) -> list[Photo]:
    """List the pictures of a folder's CSV; their source is the camera, or else where they are of.

    A photograph's camera is known from its file, so it is a better group than a repository.
    """
    with folder.with_name(f"{folder.name}.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    return [
        Photo(folder / row["path"], row.get("camera") or row["source"], kind=kind) for row in rows
    ]


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
    large = tuple(o for o in outlines if area(o) >= LEAST_OUTLINE * size.prod())
    return Scene(pixels, large, photo.kind == "negative")


def sampling_weights(photos: Sequence[Photo]) -> Floats:
    """Return the probability (n,) of each photograph, so that no collection or source dominates.

    A collection has its share of `SHARES`, and in it a source of n photographs the square root of n
    parts.
    """
    sizes = Counter((photo.kind, photo.source) for photo in photos)
    weight = np.array([sizes[photo.kind, photo.source] ** -0.5 for photo in photos])
    for kind, share in SHARES.items():
        members = np.array([photo.kind == kind for photo in photos], bool)
        if members.any():
            weight[members] *= share / weight[members].sum()
    probability: Floats = weight / weight.sum()
    return probability


def can_donate(photo: Photo) -> bool:
    """True if objects can be cut from it; a `Generator` needs at least one such photograph."""
    return bool(photo.polygons) and is_large(photo)


def is_large(photo: Photo) -> bool:
    """True if its shorter side is large enough for a `Generator`."""
    with Image.open(photo.path) as image:
        return min(image.size) >= FRAME
