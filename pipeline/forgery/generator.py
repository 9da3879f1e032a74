"""Training examples: forgeries made on the fly from photographs, each from its own seed.

    python -m prompt_iml.pipeline.forgery.generator --photos DIR --output sheet.png

Photograph, history and kind are drawn in this order and independently, so that authentic and
forged examples pass the same saves with the same tables, sizes and formats:

    photograph -> view (crop, scale) -> first save -> forgery or none -> its save or none
               -> stress or none -> last save -> crop
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from prompt_iml.engine.detection.views import pad
from prompt_iml.pipeline.forgery.history import (
    FRAME,
    SIDE,
    Floats,
    History,
    Past,
    Pixels,
    Tables,
    choose,
    draw_history,
    draw_save,
    encode,
    read_tables,
    resave,
    resize,
    rounded,
    smooth,
    wear,
)
from prompt_iml.pipeline.forgery.photos import Photo, list_photos, load_pixels, split
from prompt_iml.pipeline.forgery.shapes import (
    aim,
    area,
    draw_area,
    fits,
    free_shape,
    opacity,
    placed,
    similarity,
)

Kind = Literal["authentic", "splice", "copy-move", "removal", "retouch", "labelled"]

KINDS: dict[Kind, float] = {
    "authentic": 0.5, "splice": 0.2, "copy-move": 0.25, "removal": 0.025, "retouch": 0.025,
}  # fmt: skip
NEAR = (0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.1, 1.2)  # scales of an object among its like
TRIES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        pixels: (256, 256, 3) uint8 RGB.
        qtable: (64,) float32 luma table in natural order; ones where there is none.
        mask: (256, 256) bool, True where forged.
        kind: what was done; `labelled` when only a reviewer's mask says where.
    """

    pixels: Pixels
    qtable: NDArray[np.float32]
    mask: NDArray[np.bool_]
    kind: Kind


@dataclass(frozen=True, slots=True)
class Scene:
    """A photograph, or a part of one: (H, W, 3) pixels, and outlines (n, 2) in pixels."""

    pixels: Pixels
    polygons: tuple[Floats, ...]


def can_donate(photo: Photo) -> bool:
    """Whether objects can be cut from it: a `Forger` needs one such photograph at least."""
    if not photo.polygons:
        return False
    with Image.open(photo.path) as image:
        return min(image.size) >= FRAME


class Forger:
    """Photographs in memory, and endless examples of them.

    Args:
        photos: what may be host or donor; shorter sides below 304 pixels are left out.

    Raises:
        ValueError: no photograph is large enough, or none has outlines.
    """

    def __init__(self, photos: Sequence[Photo]) -> None:
        scenes = [_read_scene(photo) for photo in photos]
        self.scenes = [scene for scene in scenes if min(scene.pixels.shape[:2]) >= FRAME]
        self.donors = [scene for scene in self.scenes if scene.polygons]
        if not self.donors:
            raise ValueError("no photograph of 304 pixels or more with outlines among the photos")
        self.tables = sorted({tables for photo in photos if (tables := _tables(photo.path))})

    def example(self, *seed: int) -> Example:
        """The example of this seed: the same photographs and seed give the same pixels."""
        rng = np.random.default_rng(seed)
        scene, history, kind = self.draw(rng)
        view = _view(scene, history, rng)
        past = Past(history.scale, history.first) if history.collected else None
        pixels, alpha = self.forge(kind, view, rng, past)
        return _publish(pixels, alpha >= 0.5, kind, history, rng)

    def draw(self, rng: np.random.Generator) -> tuple[Scene, History, Kind]:
        """A photograph, what happens to it, and how it is forged: each whatever the others are."""
        scene = choose(self.scenes, rng)
        history = draw_history(rng, self.tables)
        return scene, history, choose(list(KINDS), rng, list(KINDS.values()))

    def forge(
        self, kind: Kind, view: Scene, rng: np.random.Generator, past: Past | None = None
    ) -> tuple[Pixels, Floats]:
        """The view after a forgery of this kind, and its opacity (H, W), 0..1.

        Args:
            kind: what to do.
            view: a square part of a photograph.
            rng: all chance.
            past: what the view went through, if a splice's donor shares it.
        """
        if kind == "splice":
            if past and (donor := self._relative(past, len(view.pixels), rng)):
                return _splice(view, donor, choose(NEAR, rng), rng)
            return _splice(view, self._donor(rng), None, rng)
        if kind == "authentic":
            return view.pixels, np.zeros(view.pixels.shape[:2])
        outline = self._outline(view, rng)
        forge = {"copy-move": _copy_move, "removal": _remove, "retouch": _retouch}[kind]
        return forge(view, outline, rng)

    def _donor(self, rng: np.random.Generator) -> Scene:
        """An object with its surroundings, saved once more in most cases."""
        if rng.random() < 0.87:
            scene = choose(self.donors, rng)
            outline = choose(scene.polygons, rng)
        else:
            scene = choose(self.scenes, rng)
            outline = placed(free_shape(rng), min(scene.pixels.shape[:2]), rng)
        patch = _around(scene, outline, 1.0)
        if rng.random() >= 0.85:
            return patch
        return Scene(resave(patch.pixels, draw_save(rng, (72, 95), self.tables)), patch.polygons)

    def _relative(self, past: Past, side: int, rng: np.random.Generator) -> Scene | None:
        """An object of another photograph with this past, as large as it is there; None where
        `TRIES` objects were too large or too small for the view."""
        for _ in range(TRIES):
            scene = choose(self.donors, rng)
            outline = choose(scene.polygons, rng)
            scale = past.scale_of(scene.pixels)
            if fits((outline - outline.min(0)) * scale, side):
                patch = _around(scene, outline, scale)
                return Scene(resave(patch.pixels, past.save), patch.polygons)
        return None

    def _outline(self, view: Scene, rng: np.random.Generator) -> Floats:
        """Of an object in the view, or an object's shape, or a free one, anywhere in it."""
        if view.polygons and rng.random() < 0.6:
            return choose(view.polygons, rng)
        free = rng.random() < 0.13
        shape = free_shape(rng) if free else choose(choose(self.donors, rng).polygons, rng)
        return placed(shape, len(view.pixels), rng)


def _view(scene: Scene, history: History, rng: np.random.Generator) -> Scene:
    """The square of the photograph that will fill the frame, after the first save."""
    shortest = min(scene.pixels.shape[:2])
    side = min(round(history.frame / history.stress.scale), shortest)
    box = min(round(side / history.scale), shortest)
    corner = np.array([rng.integers(size - box + 1) for size in scene.pixels.shape[1::-1]])
    if history.on_grid:
        corner -= corner % 8
    x, y = corner
    pixels = resize(scene.pixels[y : y + box, x : x + box], (side, side))
    pixels = resave(pixels, history.first)
    moved = ((polygon - corner) * (side / box) for polygon in scene.polygons)
    return Scene(pixels, tuple(polygon for polygon in moved if fits(polygon, side)))


def _publish(
    pixels: Pixels,
    mask: NDArray[np.bool_],
    kind: Kind,
    history: History,
    rng: np.random.Generator,
) -> Example:
    """The save of the one who made it, stress, the save of the one who posts it, crop; what is
    smaller than a tile then is mirrored up to one, as a scan does it."""
    pixels = resave(pixels, history.edited)
    frame = history.frame, history.frame
    pixels = wear(resize(pixels, frame), history.stress, rng)
    mask = np.asarray(Image.fromarray(mask).resize(frame, Image.Resampling.NEAREST))
    qtable = np.ones(64, np.float32)
    if history.last is not None:
        data = encode(pixels, history.last)
        with Image.open(io.BytesIO(data)) as saved:
            pixels = np.asarray(saved.convert("RGB"))
        if history.has_table:
            qtable = np.array(read_tables(data)[0], np.float32)
    (row, column), (height, width) = history.corner, history.shape
    window = slice(row, row + height), slice(column, column + width)
    return Example(pad(pixels[window], SIDE, SIDE), qtable, pad(mask[window], SIDE, SIDE), kind)


def _around(scene: Scene, outline: Floats, scale: float) -> Scene:
    """An object and 16 pixels around it, after scaling."""
    margin = round(16 / scale)
    low = np.maximum(outline.min(0).astype(int) - margin, 0)
    high = outline.max(0).astype(int) + margin
    pixels = scene.pixels[low[1] : high[1], low[0] : high[0]]
    height, width = pixels.shape[:2]
    size = round(width * scale), round(height * scale)
    return Scene(resize(pixels, size), ((outline - low) * scale,))


def _splice(
    view: Scene, donor: Scene, scale: float | None, rng: np.random.Generator
) -> tuple[Pixels, Floats]:
    """Another photograph's object, scaled (None: to an area worth forging), turned, perhaps
    mirrored and matched in colour."""
    side = len(view.pixels)
    (outline,) = donor.polygons
    if scale is None:
        wanted = draw_area(rng) * (side * SIDE / FRAME) ** 2
        scale = float(np.clip((wanted / max(area(outline), 1.0)) ** 0.5, 0.25, 1.5))
    angle = rng.normal(0, 0.25) if rng.random() < (0.4 if scale == 1 else 0.7) else 0.0
    matrix = similarity(scale, angle, mirrored=bool(rng.random() < 0.3))
    move = aim(outline, matrix, side, rng)
    if scale == 1 and not angle:
        move = move.whole()
    patch = move.warp(donor.pixels, side).astype(np.float64)
    alpha = opacity(move.points(outline), side, rng)
    if rng.random() < 0.5:
        patch = _match_colour(patch, view.pixels, alpha, rng)
    return _blend(view.pixels, patch, alpha), alpha


def _copy_move(view: Scene, outline: Floats, rng: np.random.Generator) -> tuple[Pixels, Floats]:
    """A part of the view once more elsewhere in it; most often just shifted."""
    side = len(view.pixels)
    scaled, turned, mirrored = rng.random(3) < (0.3, 0.3, 0.15)
    scale = float(rng.uniform(0.8, 1.25)) if scaled else 1.0
    matrix = similarity(scale, rng.normal(0, 0.3) if turned else 0.0, bool(mirrored))
    moves = [aim(outline, matrix, side, rng) for _ in range(8)]
    move = max(moves, key=lambda move: min(np.abs(move.end - move.start).max(), side / 3))
    if not (scaled or turned or mirrored):
        move = move.whole()
    alpha = opacity(move.points(outline), side, rng)
    alpha[(move.warp(np.full_like(view.pixels, 255), side) < 255).any(2)] = 0  # no black corners
    return _blend(view.pixels, move.warp(view.pixels, side).astype(np.float64), alpha), alpha


def _remove(view: Scene, outline: Floats, rng: np.random.Generator) -> tuple[Pixels, Floats]:
    """Tones drawn in from around the hole, under detail from elsewhere or none but noise."""
    alpha = opacity(outline, len(view.pixels), rng)
    known = (ndimage.maximum_filter(alpha, 5) < 0.1)[..., None].astype(np.float64)
    sigma = area(outline) ** 0.5 / 4 + 2
    tones = _tones(view.pixels * known, sigma) / np.maximum(_tones(known, sigma), 1e-4)
    if rng.random() < 0.7:
        dy, dx = (int(s) for s in rng.integers(len(view.pixels) // 4, len(view.pixels) // 2, 2))
        texture = np.roll(view.pixels, (dy, dx), (0, 1)).astype(np.float64)
        tones = tones + texture - _tones(texture, sigma)
    else:
        tones = tones + rng.normal(0, rng.uniform(0, 4), tones.shape)
    return _blend(view.pixels, tones, alpha), alpha


def _tones(pixels: Floats, sigma: float) -> Floats:
    """`smooth` for a large sigma: at a fraction of the size, where it costs little."""
    height, width = pixels.shape[:2]
    fraction = max(1, int(sigma / 2))
    small = _scaled(pixels, (-(-width // fraction), -(-height // fraction)))
    return _scaled(smooth(small, sigma / fraction), (width, height))


def _scaled(pixels: Floats, size: tuple[int, int]) -> Floats:
    """To (width, height), unrounded."""
    channels = [
        Image.fromarray(channel.astype(np.float32)) for channel in pixels.transpose(2, 0, 1)
    ]
    scaled = [np.asarray(c.resize(size, Image.Resampling.BILINEAR), np.float64) for c in channels]
    return np.stack(scaled, 2)


def _retouch(view: Scene, outline: Floats, rng: np.random.Generator) -> tuple[Pixels, Floats]:
    """Blur, sharpen, add noise to, or change the tone and colour of, one place."""
    alpha = opacity(outline, len(view.pixels), rng)
    patch = view.pixels.astype(np.float64)
    how = rng.integers(4)
    if how == 0:
        patch = smooth(patch, rng.uniform(1, 3))
    elif how == 1:
        patch += rng.uniform(1, 3) * (patch - smooth(patch, 1.5))
    elif how == 2:
        patch += rng.normal(0, rng.uniform(5, 15), patch.shape)
    else:
        patch = patch * rng.uniform(0.6, 1.4) + rng.normal(0, 25, 3)
    return _blend(view.pixels, patch, alpha), alpha


def _match_colour(patch: Floats, host: Pixels, alpha: Floats, rng: np.random.Generator) -> Floats:
    """Draw the mean colour towards that of the host around the place."""
    around = (ndimage.maximum_filter(alpha, 15) > 0.5) & (alpha < 0.5)
    if not around.any() or not (alpha >= 0.5).any():
        return patch
    shift = host[around].mean(0) - patch[alpha >= 0.5].mean(0)
    matched: Floats = patch + rng.uniform(0.3, 1) * shift
    return matched


def _blend(host: Pixels, patch: Floats, alpha: Floats) -> Pixels:
    return rounded(host + (patch - host) * alpha[..., None])


def _read_scene(photo: Photo) -> Scene:
    pixels = load_pixels(photo)
    size = np.array(pixels.shape[1::-1])
    outlines = (polygon * size for polygon in photo.polygons)
    large = tuple(o for o in outlines if area(o) >= 0.005 * size.prod())
    return Scene(pixels, large)


def _tables(path: Path) -> Tables:
    return read_tables(path.read_bytes())


def contact_sheet(forger: Forger, rows: int = 8, columns: int = 6, seed: int = 0) -> Image.Image:
    """Examples beside themselves with the mask's outline, to look at."""
    sheet = Image.new("RGB", (columns * 2 * SIDE, rows * SIDE))
    for index in range(rows * columns):
        example = forger.example(seed, index)
        marked = example.pixels.copy()
        edge = ndimage.binary_dilation(example.mask, iterations=2) & ~example.mask
        marked[edge] = (255, 0, 0)
        pair = Image.fromarray(np.hstack([example.pixels, marked]))
        ImageDraw.Draw(pair).text((SIDE + 4, 4), example.kind, fill=(255, 255, 0))
        sheet.paste(pair, (index % columns * 2 * SIDE, index // columns * SIDE))
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    contact_sheet(Forger(split(list_photos(args.photos))[0])).save(args.output)


if __name__ == "__main__":
    main()
