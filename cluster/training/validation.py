"""Fixed validation sets, from held-back photographs only.

    python -m prompt_iml.cluster.training.validation --photos DIR --output DIR [--seed 0]
        [--autoencoders DIR] [--full DIR]

    posted    JPEG files as on social media: every kind of forgery, half authentic
    png       copy-moves and splices saved as PNG, half authentic; half were JPEG files before
    small     as posted, with whole photographs scaled to the size of thumbnails
    resaved   authentic images only, after ordinary editing: saved again, resized, sharpened,
              filtered or shown in a screenshot
    once      as small, but saved only once, after the forgery
    album     as small, but a splice's donor has the history of its host, and half of the images
              have the same tables in the first and the last save
    generated    as posted, with regions whose new content went through a held-back autoencoder and
                 was pasted into the original; only with --autoencoders
    regenerated  the same, but the whole picture went through it, and its twin too
    full      with --full: whole photographs of that folder at their own size, forged in one
              window of 250 to 1500 pixels and saved once more

Images are at most 1024x768 pixels, but for `full`. In all sets but `resaved` every forged image has
a twin: the same photograph with the same history, crop, size and tables, and no forgery. Each set
is a folder with images, masks and a manifest.csv for `prompt-iml evaluate` and `calibrate`; the
same photographs and seed give the same files.

    photograph -> crop, scale -> first save -> forgery or none -> autoencoder or none -> last save
               = the file
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

from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders
from prompt_iml.pipeline.forgery.generated import Autoencoder, generated, regenerate
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
    read_tables,
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
# number of forged images, each with its twin
PAIRS = {"posted": 120, "png": 60, "small": 60, "once": 60, "album": 60}
GENERATED = {"generated": 60, "regenerated": 60}  # the same, of the sets by autoencoders
RESAVED = 200
# A name's place here is part of its seed: append names, and never reorder them.
STREAMS = ["posted", "png", "small", "resaved", "once", "album"]
STREAMS += ["generated", "regenerated", "full"]
COLUMNS = ["image", "mask", "kind", "treatment", "photo", "sha256"]

KINDS: dict[str, tuple[Kind, ...]] = {  # kinds of forgery, in turn
    "posted": ("splice", "copy-move") * 4 + ("removal", "retouch"),
    "png": ("copy-move", "splice"),
    "small": ("splice", "copy-move"),
    "once": ("splice", "copy-move"),
    "album": ("splice", "copy-move"),
    "generated": ("splice", "copy-move", "removal"),
    "regenerated": ("splice", "copy-move", "removal"),
    "full": ("splice", "copy-move", "removal"),
}
# What passed through an autoencoder: the treatment of both twins.
PASSED = {"generated": "generated-region", "regenerated": "generated-whole"}
WINDOW = 250, 1500  # pixels: sides of the part of a full-size photograph that is forged
WHOLE = ("small", "once", "album")  # sets of whole photographs, as small as a label allows


@dataclass(frozen=True, slots=True)
class SetImage:
    """Image of a set.

    Attributes:
        data: content of the file.
        extension: `jpg` or `png`.
        mask: (H, W) bool, True where forged; None when authentic.
        kind: kind of forgery, or `authentic`.
        treatment: name of the set, one of `TREATMENTS`, or of the values of `PASSED`.
        photo: name of the photograph that it was made from.
    """

    data: bytes
    extension: str
    mask: Mask | None
    kind: Kind
    treatment: str
    photo: str


@dataclass(frozen=True, slots=True)
class TwinHistory:
    """History that both twins share.

    Attributes:
        scale: factor of the photograph's size, at most 1; `PriorHistory` raises it if too small.
        on_grid: whether the crop keeps the photograph's 8x8 grid.
        first: save before the forgery, or None.
        last: save after the forgery; None to save as PNG.
    """

    scale: float
    on_grid: bool
    first: Save | None
    last: Save | None

    @property
    def prior(self) -> PriorHistory:
        """Part of the history before the manipulation, without the crop."""
        return PriorHistory(self.scale, self.first)


def pairs(
    generator: Generator, photos: Sequence[Photo], name: str, count: int, seed: int
) -> Iterator[SetImage]:
    """Yield `count` forged images of the set `name`, each followed by its twin.

    Args:
        generator: made from `photos`; source of donors, outlines, tables and autoencoders.
        photos: held-back photographs to forge, all large enough for the generator.
    """
    hosts = list(zip(photos, generator.scenes, strict=True))
    for index in range(count):
        rng = np.random.default_rng((seed, STREAMS.index(name), index))
        photo, scene = hosts[index % len(hosts)]
        history = sample_twin_history(name, rng, generator.tables)
        host = prepare_host(scene, history, rng)
        kind = KINDS[name][index % len(KINDS[name])]
        prior = history.prior if name == "album" else None
        pixels, mask = generator.generate_within(kind, host, rng, prior)
        authentic, treatment = host.pixels, PASSED.get(name, name)
        if name == "generated":
            edit = pixels, mask.astype(np.float64)
            pixels, opacity = generated(authentic, edit, generator.autoencoders, rng)
            mask = opacity >= 0.5
        elif name == "regenerated":
            pixels, authentic = _regenerate([pixels, authentic], generator.autoencoders, rng)
        yield _set_image(pixels, mask, kind, history, treatment, photo)
        yield _set_image(authentic, None, "authentic", history, treatment, photo)


def _regenerate(
    pictures: Sequence[Pixels], autoencoders: Sequence[Autoencoder], rng: np.random.Generator
) -> list[Pixels]:
    """Pass pictures of one size through the same autoencoder, with the same noise."""
    seed = int(rng.integers(2**32))
    return [regenerate(each, autoencoders, np.random.default_rng(seed)) for each in pictures]


def sample_twin_history(
    name: str, rng: np.random.Generator, tables: Sequence[Tables]
) -> TwinHistory:
    """Sample the history of twins of the set `name`; PNG files skip the first save more often."""
    first_saved = {"png": 0.5, "once": 0.0, "album": 1.0}.get(name, 0.9)
    scaled = float(rng.uniform(0.4, 1.0)) if rng.random() < 0.4 else 1.0
    history = TwinHistory(
        scale=0.0 if name in WHOLE else scaled,
        on_grid=bool(rng.random() < 0.8),
        first=sample_save(rng, (72, 95), tables) if rng.random() < first_saved else None,
        last=None if name == "png" else sample_save(rng, (70, 98), tables),
    )
    alike = name == "album" and rng.random() < 0.5
    return replace(history, last=history.first) if alike else history


def prepare_host(scene: Scene, history: TwinHistory, rng: np.random.Generator) -> Scene:
    """Return a photograph before its forgery: cropped to `LONG` x `SHORT`, scaled and saved."""
    height, width = scene.pixels.shape[:2]
    most = np.array([LONG, SHORT] if width >= height else [SHORT, LONG])
    size = np.minimum(most, [width, height])
    corner = np.array([rng.integers(room + 1) for room in (width, height) - size])
    if history.on_grid:
        corner -= corner % 8
    (x, y), (w, h) = corner, size
    crop = scene.pixels[y : y + h, x : x + w]
    scale = history.prior.scale_of(crop)
    target = max(1, round(int(w) * scale)), max(1, round(int(h) * scale))
    pixels = resave(resize(crop, target), history.first)
    return Scene(pixels, tuple((polygon - corner) * scale for polygon in scene.polygons))


def edited_images(
    photos: Sequence[Photo], tables: Sequence[Tables], count: int, seed: int
) -> Iterator[SetImage]:
    """Yield `count` authentic images of the set `resaved`, over all photographs and treatments."""
    names = list(TREATMENTS)
    for index in range(count):
        rng = np.random.default_rng((seed, STREAMS.index("resaved"), index))
        turn, place = divmod(index, len(photos))
        photo, treatment = photos[place], names[(place + turn) % len(names)]
        history = TwinHistory(1.0, bool(rng.random() < 0.8), None, None)
        host = prepare_host(Scene(load_pixels(photo), ()), history, rng).pixels
        pixels = TREATMENTS[treatment](host, tables, rng)
        last = None if treatment == "screenshot" else sample_save(rng, (60, 98), tables)
        history = replace(history, last=last)
        yield _set_image(pixels, None, "authentic", history, treatment, photo)


def full_size_pairs(generator: Generator, paths: Sequence[Path], seed: int) -> Iterator[SetImage]:
    """Yield each photograph with a forgery at its own size, followed by its twin.

    Args:
        generator: source of donors, outlines and tables.
        paths: JPEG files whose shorter side has at least 250 pixels.
    """
    for index, path in enumerate(paths):
        rng = np.random.default_rng((seed, STREAMS.index("full"), index))
        photo, kind = Photo(path, path.stem), KINDS["full"][index % len(KINDS["full"])]
        pixels = load_pixels(photo)
        history = TwinHistory(1.0, True, None, _last_save(path, generator.tables, rng))
        forged, mask = _forge_window(generator, kind, pixels, rng)
        yield _set_image(forged, mask, kind, history, "full", photo)
        yield _set_image(pixels, None, "authentic", history, "full", photo)


def _last_save(path: Path, tables: Sequence[Tables], rng: np.random.Generator) -> Save:
    """Sample a save of quality 85 to 97; two in five have the photograph's own tables."""
    save = sample_save(rng, (85, 97), tables)
    own = read_tables(path.read_bytes())
    return replace(save, tables=own) if own and rng.random() < 0.4 else save


def _forge_window(
    generator: Generator, kind: Kind, pixels: Pixels, rng: np.random.Generator
) -> tuple[Pixels, Mask]:
    """Return a photograph forged in a random square, and the mask (H, W)."""
    height, width = pixels.shape[:2]
    low, high = np.log(WINDOW)
    side = min(round(float(np.exp(rng.uniform(low, high)))), height, width)
    y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    window = slice(y, y + side), slice(x, x + side)
    edited, inside = generator.generate_within(kind, Scene(pixels[window], ()), rng)
    forged, mask = pixels.copy(), np.zeros((height, width), bool)
    forged[window], mask[window] = edited, inside
    return forged, mask


def _resave(pixels: Pixels, tables: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    """Save an image one to three times, before its last save."""
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
    """Change contrast, brightness, saturation and tint, as a filter of a phone app does."""
    values = pixels.astype(np.float64)
    grey = values.mean(2, keepdims=True)
    values = grey + rng.uniform(0.0, 1.6) * (values - grey)
    values = 128 + rng.uniform(0.8, 1.4) * (values - 128)
    return rounded(values + rng.uniform(-20, 20) + rng.normal(0, 8, 3))


def _screenshot(pixels: Pixels, _: Sequence[Tables], rng: np.random.Generator) -> Pixels:
    """Show the photograph on a flat page, with a bar above and lines of text behind it."""
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


def write_set(folder: Path, images: Iterable[SetImage], seed: int) -> Path:
    """Write images, masks and the manifest, shuffled so that names do not reveal the label.

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


def write_sets(
    photos: Sequence[Photo],
    output: Path,
    seed: int = 0,
    autoencoders: Sequence[Autoencoder] = (),
    full: Path | None = None,
) -> list[Path]:
    """Write all sets to folders in `output`; return the paths of their manifests.

    Args:
        photos: all photographs; only held-back ones are used.
        output: folder of the sets.
        seed: of all images.
        autoencoders: held-back ones; without them, two sets are not written.
        full: folder of JPEG files of full size, for the set `full`; None to leave that set out.

    Raises:
        ValueError: no held-back photograph is large enough, or none has outlines.
    """
    held_back = [photo for photo in split(photos)[1] if is_large(photo)]
    generator = Generator.read(held_back, autoencoders)
    counts = PAIRS | GENERATED if autoencoders else PAIRS
    manifests = [
        write_set(output / name, pairs(generator, held_back, name, count, seed), seed)
        for name, count in counts.items()
    ]
    resaved = edited_images(held_back, generator.tables, RESAVED, seed)
    manifests.append(write_set(output / "resaved", resaved, seed))
    if full:
        images = full_size_pairs(generator, sorted(full.glob("*.jpg")), seed)
        manifests.append(write_set(output / "full", images, seed))
    return manifests


def _set_image(
    pixels: Pixels,
    mask: Mask | None,
    kind: Kind,
    history: TwinHistory,
    treatment: str,
    photo: Photo,
) -> SetImage:
    data = _png(pixels) if history.last is None else encode(pixels, history.last)
    extension = "png" if history.last is None else "jpg"
    return SetImage(data, extension, mask, kind, treatment, photo.path.name)


def _write(folder: Path, stem: str, image: SetImage) -> list[str]:
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
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoders", help="folder of autoencoders; held-back ones are used")
    parser.add_argument("--full", type=Path, help="folder of full-size JPEG photographs")
    args = parser.parse_args()
    held_back = read_autoencoders(args.autoencoders, held_back=True)
    photos = list_photos(args.photos)
    for manifest in write_sets(photos, args.output, args.seed, held_back, args.full):
        print(manifest)


if __name__ == "__main__":
    main()
