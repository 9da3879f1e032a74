"""Fixed validation sets, from held-back photographs only.

    python -m prompt_iml.cluster.training.validation --photos DIR --output DIR [--seed 0]

    posted    JPEG files as people post them: every kind of forgery, half authentic
    png       copy-moves and splices saved as PNG, half authentic; half never saw a JPEG of ours
    small     as posted, but whole photographs as small as thumbnails and old web pages have them
    resaved   authentic only, after what harmless people do: save again, resize, sharpen, filter,
              take a screenshot
    once      as small, but saved for the first time when the forgery is done
    album     as small, but a splice's donor has its host's history, and half were saved last with
              the tables that they were saved with before

Photographs are whole, up to 1024x768. In all but `resaved` every forged image has a twin: the
same photograph with the same history, cut, size and tables, only not forged. Nothing but the
forgery tells them apart. Each set is a folder with images, masks and a manifest.csv that
`prompt-iml evaluate` and `calibrate` read; the same photographs and seed give the same files.

    photograph -> cut, scale -> first save -> forgery or none -> last save = the file
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prompt_iml.pipeline.forgery.generator import Generator, Kind, Mask
from prompt_iml.pipeline.forgery.history import (
    Degradation,
    Pixels,
    PriorHistory,
    Save,
    Tables,
    choose,
    degrade,
    encode,
    resave,
    resize,
    rounded,
    sample_save,
)
from prompt_iml.pipeline.forgery.photos import (
    Photo,
    Scene,
    is_large,
    list_photos,
    load_pixels,
    split,
)

LONG, SHORT = 1024, 768  # largest sides of an image
# forged images, each with its twin
PAIRS = {"posted": 120, "png": 60, "small": 60, "once": 60, "album": 60}
RESAVED = 200
# of random numbers; append, never reorder
STREAMS = ["posted", "png", "small", "resaved", "once", "album"]
COLUMNS = ["image", "mask", "kind", "treatment", "photo", "sha256"]

KINDS: dict[str, tuple[Kind, ...]] = {  # of the forged, in turn
    "posted": ("splice", "copy-move") * 4 + ("removal", "retouch"),
    "png": ("copy-move", "splice"),
    "small": ("splice", "copy-move"),
    "once": ("splice", "copy-move"),
    "album": ("splice", "copy-move"),
}
WHOLE = ("small", "once", "album")  # photographs as small as may be


@dataclass(frozen=True, slots=True)
class Published:
    """One image of a set.

    Attributes:
        data: the file, as its last save wrote it.
        extension: of the file's name, `jpg` or `png`.
        mask: (H, W) bool, True where forged; None when authentic.
        kind: how it was forged, or `authentic`.
        treatment: what else happened to it: the set's name, or one of `TREATMENTS`.
        photo: name of the photograph it began as.
    """

    data: bytes
    extension: str
    mask: Mask | None
    kind: Kind
    treatment: str
    photo: str


@dataclass(frozen=True, slots=True)
class Course:
    """What happens to both twins.

    Attributes:
        scale: of the photograph; 1 or less, and as little as `PriorHistory` allows.
        on_grid: the cut keeps the 8x8 grid of the photograph.
        first: save before the forgery, or None.
        last: save after it; None: as PNG.
    """

    scale: float
    on_grid: bool
    first: Save | None
    last: Save | None

    @property
    def prior(self) -> PriorHistory:
        """All but the cut, until the manipulation."""
        return PriorHistory(self.scale, self.first)


def pairs(
    generator: Generator, photos: Sequence[Photo], name: str, count: int, seed: int
) -> Iterator[Published]:
    """`count` forged images of the set `name`, each followed by its twin.

    Args:
        generator: over `photos`: donors, outlines and tables are theirs.
        photos: of hosts; held back, and all large enough for the generator.
    """
    hosts = list(zip(photos, generator.scenes, strict=True))
    for index in range(count):
        rng = np.random.default_rng((seed, STREAMS.index(name), index))
        photo, scene = hosts[index % len(hosts)]
        course = sample_course(name, rng, generator.tables)
        shown = show(scene, course, rng)
        kind = KINDS[name][index % len(KINDS[name])]
        prior = course.prior if name == "album" else None
        pixels, mask = generator.generate_within(kind, shown, rng, prior)
        yield _published(pixels, mask, kind, course, name, photo)
        yield _published(shown.pixels, None, "authentic", course, name, photo)


def sample_course(name: str, rng: np.random.Generator, tables: Sequence[Tables]) -> Course:
    """Sample the history of twins of the set `name`; PNG files skip the first save more often."""
    first_saved = {"png": 0.5, "once": 0.0, "album": 1.0}.get(name, 0.9)
    scaled = float(rng.uniform(0.4, 1.0)) if rng.random() < 0.4 else 1.0
    course = Course(
        scale=0.0 if name in WHOLE else scaled,
        on_grid=bool(rng.random() < 0.8),
        first=sample_save(rng, (72, 95), tables) if rng.random() < first_saved else None,
        last=None if name == "png" else sample_save(rng, (70, 98), tables),
    )
    alike = name == "album" and rng.random() < 0.5
    return replace(course, last=course.first) if alike else course


def show(scene: Scene, course: Course, rng: np.random.Generator) -> Scene:
    """The photograph before the forgery: cut to `LONG` x `SHORT`, scaled, saved."""
    height, width = scene.pixels.shape[:2]
    most = np.array([LONG, SHORT] if width >= height else [SHORT, LONG])
    size = np.minimum(most, [width, height])
    corner = np.array([rng.integers(room + 1) for room in (width, height) - size])
    if course.on_grid:
        corner -= corner % 8
    (x, y), (w, h) = corner, size
    cut = scene.pixels[y : y + h, x : x + w]
    scale = course.prior.scale_of(cut)
    target = max(1, round(int(w) * scale)), max(1, round(int(h) * scale))
    pixels = resave(resize(cut, target), course.first)
    return Scene(pixels, tuple((polygon - corner) * scale for polygon in scene.polygons))


def harmless(
    photos: Sequence[Photo], tables: Sequence[Tables], count: int, seed: int
) -> Iterator[Published]:
    """`count` authentic images, photograph by photograph, each treatment in turn."""
    names = list(TREATMENTS)
    for index in range(count):
        rng = np.random.default_rng((seed, STREAMS.index("resaved"), index))
        turn, place = divmod(index, len(photos))
        photo, treatment = photos[place], names[(place + turn) % len(names)]
        course = Course(1.0, bool(rng.random() < 0.8), None, None)
        shown = show(Scene(load_pixels(photo), ()), course, rng).pixels
        pixels = TREATMENTS[treatment](shown, tables, rng)
        last = None if treatment == "screenshot" else sample_save(rng, (60, 98), tables)
        course = Course(1.0, course.on_grid, None, last)
        yield _published(pixels, None, "authentic", course, treatment, photo)


def _resave(pixels: Pixels, tables: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    """Once, twice or three times before the last save."""
    for _ in range(int(rng.integers(1, 4))):
        pixels = resave(pixels, sample_save(rng, (50, 98), tables))
    return pixels


def _resize(pixels: Pixels, _: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    factor = float(np.exp(rng.uniform(np.log(0.5), np.log(1.5))))
    return resize(pixels, (round(width * factor), round(height * factor)))


def _sharpen(pixels: Pixels, _: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    return degrade(pixels, Degradation(sharpen=float(rng.uniform(0.3, 1.5))), rng)


def _filter(pixels: Pixels, _: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    """Contrast, brightness, saturation and tint, as one tap in an app does."""
    values = pixels.astype(np.float64)
    grey = values.mean(2, keepdims=True)
    values = grey + rng.uniform(0.0, 1.6) * (values - grey)
    values = 128 + rng.uniform(0.8, 1.4) * (values - 128)
    return rounded(values + rng.uniform(-20, 20) + rng.normal(0, 8, 3))


def _screenshot(pixels: Pixels, _: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    """The photograph on a flat page, between a bar and lines of text."""
    height, width = pixels.shape[:2]
    dark = bool(rng.random() < 0.4)
    paper, ink = ((24, 26, 30), (225, 225, 225)) if dark else ((250, 250, 250), (30, 30, 30))
    page = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, width, 36), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    for top in range(44, height - 12, 16):
        words = "".join(choose("abcdefghijklmnoprstuvw   ", rng) for _ in range(width // 7))
        draw.text((12, top), words, fill=ink)
    factor = float(rng.uniform(0.4, 0.8))
    photo = Image.fromarray(resize(pixels, (round(width * factor), round(height * factor))))
    place = int(rng.integers(width - photo.width)), int(rng.integers(36, height - photo.height))
    page.paste(photo, place)
    return np.asarray(page)


TREATMENTS: dict[str, Callable[[Pixels, Sequence[Tables], np.random.Generator], Pixels]] = {
    "resaved": _resave,
    "resized": _resize,
    "sharpened": _sharpen,
    "filtered": _filter,
    "screenshot": _screenshot,
}


def write_set(folder: Path, images: Iterable[Published], seed: int) -> Path:
    """Write images (shuffled, so that names say nothing), masks and the manifest.

    Returns:
        The path of manifest.csv: columns image, mask, kind, treatment, photo, sha256.
    """
    images = list(images)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(images))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, index in enumerate(order):
            writer.writerow(_write(folder, f"{number:04d}", images[index]))
    return folder / "manifest.csv"


def write_sets(photos: Sequence[Photo], output: Path, seed: int = 0) -> list[Path]:
    """Write the sets below `output`; returns their manifests.

    Args:
        photos: all there are; only those held back are looked at.

    Raises:
        ValueError: none of those held back is large enough, or none has outlines.
    """
    held_back = [photo for photo in split(photos)[1] if is_large(photo)]
    generator = Generator.read(held_back)
    manifests = [
        write_set(output / name, pairs(generator, held_back, name, count, seed), seed)
        for name, count in PAIRS.items()
    ]
    resaved = harmless(held_back, generator.tables, RESAVED, seed)
    return [*manifests, write_set(output / "resaved", resaved, seed)]


def _published(
    pixels: Pixels, mask: Mask | None, kind: Kind, course: Course, treatment: str, photo: Photo
) -> Published:
    data = _png(pixels) if course.last is None else encode(pixels, course.last)
    extension = "png" if course.last is None else "jpg"
    return Published(data, extension, mask, kind, treatment, photo.path.name)


def _write(folder: Path, stem: str, image: Published) -> list[str]:
    name, mask = f"images/{stem}.{image.extension}", ""
    (folder / name).write_bytes(image.data)
    if image.mask is not None:
        mask = f"masks/{stem}.png"
        Image.fromarray(image.mask).save(folder / mask)
    digest = hashlib.sha256(image.data).hexdigest()
    return [name, mask, image.kind, image.treatment, image.photo, digest]


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=3)
    return file.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for manifest in write_sets(list_photos(args.photos), args.output, args.seed):
        print(manifest)


if __name__ == "__main__":
    main()
