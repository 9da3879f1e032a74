"""Real photographs with known manipulations, which `prompt-iml demo` scans.

The photographs are the free ones (public domain or CC0 by their own notes) inside the installed
scikit-image package; nothing is downloaded. Half of the set is manipulated, and both halves pass
the same histories, so that neither format, file size nor JPEG tables reveal the answer.

    photograph -> crop, flip -> first save -> manipulation or none -> last save
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.pipeline.forgery.generator import Generator, Kind, Mask
from prompt_iml.pipeline.forgery.history import (
    Pixels,
    Save,
    Tables,
    choose,
    encode,
    read_tables,
    resave,
    sample_save,
)
from prompt_iml.pipeline.forgery.photos import Scene

MANIPULATIONS: tuple[Kind, ...] = (
    *("splice",) * 4, *("copy-move",) * 4, *("removal", "retouch") * 2,
)  # fmt: skip
LONGEST_SIDE = 800  # pixels: larger photographs are shrunk

# Outlines of objects to copy or hide: ellipses (x, y, rx, ry) in parts of the width and height.
PHOTOGRAPHS = {
    "coffee.png": ((0.48, 0.33, 0.12, 0.15), (0.61, 0.71, 0.08, 0.12)),
    "rocket.jpg": ((0.504, 0.60, 0.05, 0.31), (0.57, 0.92, 0.07, 0.07)),
    "hubble_deep_field.jpg": ((0.727, 0.54, 0.08, 0.09), (0.40, 0.59, 0.10, 0.09)),
    "astronaut.png": ((0.33, 0.755, 0.085, 0.09), (0.585, 0.70, 0.07, 0.06)),
    "chelsea.png": ((0.38, 0.40, 0.10, 0.13), (0.56, 0.79, 0.10, 0.11)),
    "ihc.png": ((0.62, 0.79, 0.13, 0.18), (0.35, 0.25, 0.13, 0.14)),
    "retina.jpg": ((0.15, 0.45, 0.10, 0.12), (0.48, 0.49, 0.10, 0.10)),
}


@dataclass(frozen=True, slots=True)
class DemoImage:
    """Image of the set.

    Attributes:
        name: file name, without a hint at the answer.
        data: the encoded file.
        mask: (H, W) bool, the manipulated pixels; None when authentic.
        kind: kind of manipulation.
    """

    name: str
    data: bytes
    mask: Mask | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class Saves:
    """Saves of an image before and after the manipulation.

    Attributes:
        first: save before the manipulation, or None.
        last: save after it; tables and subsampling apply to JPEG, the quality not to PNG.
        format: file format of the last save.
    """

    first: Save | None
    last: Save
    format: Literal["jpeg", "png", "webp"]


def generate_set(seed: int = 0, kinds: Sequence[Kind] = MANIPULATIONS) -> Iterator[DemoImage]:
    """Generate an image of each of `kinds` and as many authentic ones, shuffled.

    The same seed and library versions give the same bytes.

    Raises:
        MissingDependency: scikit-image is not installed, or lacks the photographs.
    """
    rng = np.random.default_rng(seed)
    scenes = {name: _read_scene(name) for name in PHOTOGRAPHS}
    tables = [read_tables(_read(name)) for name in PHOTOGRAPHS if name.endswith(".jpg")]
    saves = [_sample_saves(rng, tables) for _ in kinds]
    authentic: list[Kind] = ["authentic"] * len(kinds)
    planned = [*enumerate(kinds), *enumerate(authentic)]
    for number, turn in enumerate(rng.permutation(len(planned))):
        index, kind = planned[turn]
        name = list(scenes)[index % len(scenes)]
        view = _view(scenes[name], saves[index].first, rng)
        pixels, mask = view.pixels, None
        if kind != "authentic":
            donors = [scene for other, scene in scenes.items() if other != name]
            pixels, mask = Generator(donors, tables).generate_within(kind, view, rng)
        extension = {"jpeg": "jpg"}.get(saves[index].format, saves[index].format)
        file = f"{Path(name).stem}-{number:02d}.{extension}"
        yield DemoImage(file, _encode(pixels, saves[index]), mask, kind)


def write_shards(images: Iterable[DemoImage], folder: Path, shards: int = 3) -> Path:
    """Pack images into tar shards, with the truth outside the folder that is scanned.

    Writes `folder/shards/demo-*.tar`, `folder/masks/*.png` (255 is manipulated) and
    `folder/truth.csv` with the columns image (shard#member), mask (empty when authentic), kind
    and sha256. Equal images give equal bytes.

    Returns:
        The path of `truth.csv`.
    """
    for name in ("shards", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images = list(images)
    with (folder / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mask", "kind", "sha256"])
        for number, part in enumerate(np.array_split(np.arange(len(images)), shards)):
            shard = f"shards/demo-{number:05d}.tar"
            members = [images[i] for i in part]
            _write_tar(folder / shard, members)
            writer.writerows(_truth_row(image, shard, folder) for image in members)
    return folder / "truth.csv"


def photograph(name: str) -> Image.Image:
    """Return a photograph of scikit-image, RGB.

    Raises:
        MissingDependency: scikit-image is not installed, or lacks it.
    """
    with Image.open(io.BytesIO(_read(name))) as source:
        return source.convert("RGB")


def _read(name: str) -> bytes:
    if find_spec("skimage") is None:
        raise MissingDependency(
            "the photographs come with scikit-image: pip install 'prompt-iml[demo]'"
        )
    file = files("skimage") / "data" / name
    if not file.is_file():
        raise MissingDependency(
            f"the installed scikit-image lacks {name}: pip install --force-reinstall scikit-image"
        )
    return file.read_bytes()


def _read_scene(name: str) -> Scene:
    """Read a photograph and its subjects, at most `LONGEST_SIDE` pixels long."""
    photo = photograph(name)
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    ellipses = (np.array([x, y]) + circle * (rx, ry) for x, y, rx, ry in PHOTOGRAPHS[name])
    return Scene(np.asarray(photo), tuple(ellipse * photo.size for ellipse in ellipses))


def _sample_saves(rng: np.random.Generator, tables: Sequence[Tables]) -> Saves:
    """Sample a history: most files are JPEG saved twice, as cameras and editors do."""
    return Saves(
        first=None if rng.random() < 0.1 else sample_save(rng, (75, 95), tables),
        last=sample_save(rng, (72, 96), tables),
        format=choose(("jpeg", "png", "webp"), rng, (0.75, 0.15, 0.1)),
    )


def _view(scene: Scene, first: Save | None, rng: np.random.Generator) -> Scene:
    """Crop up to 8 % off every side, perhaps flip, save as a camera would."""
    size = np.array(scene.pixels.shape[1::-1])
    low, beyond = (rng.uniform(0, 0.08, (2, 2)) * size).astype(int)
    (left, top), (right, bottom) = low, size - beyond
    pixels, polygons = scene.pixels[top:bottom, left:right], [p - low for p in scene.polygons]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        polygons = [(pixels.shape[1], 0) + p * (-1, 1) for p in polygons]
    return Scene(resave(pixels, first), tuple(polygons))


def _encode(pixels: Pixels, saves: Saves) -> bytes:
    if saves.format == "jpeg":
        return encode(pixels, saves.last)
    options = {"quality": saves.last.quality} if saves.format == "webp" else {"compress_level": 3}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, saves.format, **options)
    return file.getvalue()


def _write_tar(path: Path, images: Sequence[DemoImage]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            member = tarfile.TarInfo(image.name)
            member.size = len(image.data)
            tar.addfile(member, io.BytesIO(image.data))


def _truth_row(image: DemoImage, shard: str, folder: Path) -> list[str]:
    mask = ""
    if image.mask is not None:
        mask = f"masks/{Path(image.name).stem}.png"
        Image.fromarray(image.mask).save(folder / mask)
    return [f"{shard}#{image.name}", mask, image.kind, hashlib.sha256(image.data).hexdigest()]
