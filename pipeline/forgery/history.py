"""Manipulation histories: saves, quantisation tables, resizes and degradations.

A history is everything that happens to an image except the manipulation. Authentic and manipulated
images have one distribution of histories, sampled before the label, so that neither table nor size
nor format reveals the label.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Choice = TypeVar("Choice")
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Tables = tuple[tuple[int, ...], ...]  # luma and chroma, 64 each, natural order

SIDE = 256
FRAME = SIDE + 48  # side of the last save, in which the crop may begin anywhere
SMALLEST = 128  # pixels: the shortest side that gets a label
GRID = 8  # pixels: JPEG's blocks
SHRUNK_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Save:
    """JPEG compression: `tables` of a camera, or the standard ones at `quality`."""

    quality: int
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"]
    tables: Tables | None = None


@dataclass(frozen=True, slots=True)
class Degradation:
    """Processing of the whole image before the last save, which weakens traces."""

    scale: float = 1.0
    blur: float = 0.0  # sigma, pixels
    sharpen: float = 0.0  # gain of the unsharp mask
    noise: float = 0.0  # sigma, grey levels
    contrast: float = 1.0  # factor of the distance from middle grey
    brightness: float = 1.0  # factor of all grey levels


@dataclass(frozen=True, slots=True)
class PriorHistory:
    """Part of a history before the manipulation.

    Attributes:
        scale: scale of the photograph; 1 or less.
        save: its only save, or None.
    """

    scale: float
    save: Save | None

    def scale_of(self, pixels: Pixels) -> float:
        """Return the scale for a photograph (H, W, 3), or the part of it that is used: `scale`,
        or as much more as keeps the shorter side at `FRAME` pixels; 1 or less."""
        height, width = pixels.shape[:2]
        shorter: int = min(height, width)
        return min(1.0, max(self.scale, FRAME / shorter))


@dataclass(frozen=True, slots=True)
class History:
    """History of an image: all processing except the manipulation.

    Attributes:
        scale: first scale of the photograph, 1 or less; the lowest shows whole photographs, as
            small pictures do.
        on_grid: the view keeps the 8x8 grid of the photograph (at scale 1).
        first: save before the manipulation, or None.
        donor_shares_it: whether a splice's donor has the same `PriorHistory` as its host, as in an
            album, a shop or an agency, where neither noise nor sharpness distinguishes them.
        edited: save right after the manipulation, by its author, or None when lossless.
        degradation: processing after `edited`.
        last: save by the person who posts it, or None when lossless.
        shape: (height, width) of the picture, `SMALLEST` to `SIDE`, multiples of `GRID`.
        corner: (row, column) of the picture in the saved frame; on the grid where `has_table`.
        has_table: whether the example comes with its table.
    """

    scale: float
    on_grid: bool
    first: Save | None
    donor_shares_it: bool
    edited: Save | None
    degradation: Degradation
    last: Save | None
    shape: tuple[int, int]
    corner: tuple[int, int]
    has_table: bool

    @property
    def frame(self) -> int:
        """Side of the square that is saved last."""
        return frame_of(self.shape)


def sample_history(rng: np.random.Generator, cameras: Sequence[Tables]) -> History:
    """Sample the history of an image, manipulated or not; `cameras` are cameras' tables."""
    # Most pictures are shown smaller than they were made, many without further changes, so that no
    # trace of the editor's save is left in them.
    shrunk = rng.random() < SHRUNK_SHARE
    degraded = shrunk or rng.random() < 0.3
    degradation = _sample_degradation(rng, shrunk) if degraded else Degradation()
    last = sample_save(rng, (50, 100) if degraded else (70, 98), cameras)
    lossless_share = 0.6 if shrunk else 0.3 if degraded else 0.17
    lossless, off_grid, dropped = rng.random(3) < (lossless_share, 0.1, 0.25)
    shape = _sample_shape(rng) if rng.random() < (0.4 if shrunk else 0.1) else (SIDE, SIDE)
    corner = rng.integers(0, frame_of(shape) - np.array(shape) + 1)
    if not off_grid:
        corner -= corner % GRID
    scale = float(rng.uniform(0.25, 1.0)) if rng.random() < 0.5 else 1.0
    # Scaling down removes the camera's compression, and most such pictures are saved only once
    # later, so that a single compression is common.
    unsaved = rng.random() < (0.4 if scale < 1 else 0.1)
    first = None if unsaved else sample_save(rng, (72, 95), cameras)
    # Software offers the quality of the opened file, which hides the second save best.
    if first is not None and not degraded and rng.random() < 0.3:
        last = first
    return History(
        scale=scale,
        on_grid=bool(rng.random() < 0.8),
        first=first,
        donor_shares_it=bool(rng.random() < 0.5),
        edited=sample_save(rng, (80, 98), cameras) if rng.random() < 0.3 else None,
        degradation=degradation,
        last=None if lossless else last,
        shape=shape,
        corner=(int(corner[0]), int(corner[1])),
        has_table=not (lossless or off_grid or dropped),
    )


def sample_save(
    rng: np.random.Generator, quality: tuple[int, int], cameras: Sequence[Tables]
) -> Save:
    """Sample a save of a quality from `quality[0]` to `quality[1]`; half of the saves have tables
    of a camera or of software with tables of its own."""
    return Save(
        quality=int(rng.integers(quality[0], quality[1] + 1)),
        subsampling=choose(("4:4:4", "4:2:2", "4:2:0"), rng, (0.25, 0.15, 0.6)),
        tables=choose(cameras, rng) if rng.random() < 0.5 else None,
    )


def frame_of(shape: tuple[int, int]) -> int:
    """Return the side of the frame: larger than the picture as `FRAME` is larger than `SIDE`."""
    return max(shape) * FRAME // SIDE


def _sample_shape(rng: np.random.Generator) -> tuple[int, int]:
    longer = int(rng.integers(SMALLEST // GRID, SIDE // GRID + 1))
    shorter = int(rng.integers(max(2 * longer // 3, SMALLEST // GRID), longer + 1))
    height, width = rng.permutation([longer, shorter]) * GRID
    return int(height), int(width)


def _sample_degradation(rng: np.random.Generator, shrunk: bool) -> Degradation:
    if shrunk:
        return Degradation(scale=float(np.exp(rng.uniform(np.log(0.35), 0))))
    resized, blurred, sharpened, noisy, toned = rng.random(5) < (0.5, 0.3, 0.2, 0.3, 0.3)
    return Degradation(
        scale=float(np.exp(rng.uniform(np.log(0.5), np.log(2)))) if resized else 1.0,
        blur=float(np.exp(rng.uniform(np.log(0.3), np.log(3)))) if blurred else 0.0,
        sharpen=float(rng.uniform(0.3, 1.0)) if sharpened else 0.0,
        noise=float(rng.uniform(1, 6)) if noisy else 0.0,
        contrast=float(rng.uniform(0.7, 1.4)) if toned else 1.0,
        brightness=float(rng.uniform(0.7, 1.4)) if toned else 1.0,
    )


def degrade(pixels: Pixels, how: Degradation, rng: np.random.Generator) -> Pixels:
    """Apply a degradation, except its scale."""
    if how == Degradation(scale=how.scale):
        return pixels
    values = pixels.astype(np.float64)
    if how.blur:
        values = smooth(values, how.blur)
    if how.sharpen:
        values += how.sharpen * (values - smooth(values, 1.0))
    if how.noise:
        values += rng.normal(0, how.noise, values.shape)
    if (how.contrast, how.brightness) != (1.0, 1.0):
        values = (128 + how.contrast * (values - 128)) * how.brightness
    return rounded(values)


def smooth(pixels: Floats, sigma: float) -> Floats:
    """Blur (H, W, C) by a Gaussian of `sigma` pixels."""
    blurred: Floats = ndimage.gaussian_filter(pixels, (sigma, sigma, 0))
    return blurred


def rounded(pixels: Floats) -> Pixels:
    """Round to the nearest integer in 0..255."""
    nearest: Pixels = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return nearest


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to `size` (width, height)."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def encode(pixels: Pixels, save: Save) -> bytes:
    """Return the bytes of a JPEG file."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if save.tables is None:
        image.save(file, "jpeg", quality=save.quality, subsampling=save.subsampling)
    else:
        tables = [list(table) for table in save.tables]
        image.save(file, "jpeg", qtables=tables, subsampling=save.subsampling)
    return file.getvalue()


def resave(pixels: Pixels, save: Save | None) -> Pixels:
    """Encode and decode; without a save, return the pixels as they are."""
    if save is None:
        return pixels
    with Image.open(io.BytesIO(encode(pixels, save))) as image:
        return np.asarray(image.convert("RGB"))


def read_tables(data: bytes) -> Tables:
    """Return the luma and chroma tables of a JPEG file, natural order; none of other files."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format != "JPEG":
            return ()
        found = image.quantization  # type: ignore[attr-defined]
        tables = [tuple(map(int, found[layer[3]])) for layer in image.layer[:2]]  # type: ignore
    return tuple(tables)


def choose(
    choices: Sequence[Choice], rng: np.random.Generator, p: Sequence[float] | None = None
) -> Choice:
    """Sample one of `choices`, uniformly or with probabilities `p`."""
    return choices[int(rng.choice(len(choices), p=p))]
