"""Manipulation histories: saves, quantisation tables, resizes and degradations.

A history is everything that happens to an image except the manipulation. Authentic and manipulated
images have one distribution of histories, sampled before the label, so that neither table nor size
nor format reveals the label.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from scipy import ndimage

from prompt_iml.pipeline.forgery.software import (
    DEFAULT_QUALITIES,
    PLATFORMS,
    PRESET_SHARES,
    PRESETS,
    Subsampling,
)

Choice = TypeVar("Choice")
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Tables = tuple[tuple[int, ...], ...]  # luma and chroma, 64 each, natural order

SIDE = 256
FRAME = SIDE + 48  # side of the last save, in which the crop may begin anywhere
SMALLEST = 128  # pixels: the shortest side that gets a label
GRID = 8  # pixels: JPEG's blocks
# What happens between the manipulation and the last save. Most pictures are shown smaller than they
# were made, many without further changes, so that no trace of the editor's save is left in them.
TREATMENTS = {"none": 0.37, "shrunk": 0.28, "platform": 0.15, "degraded": 0.2}
LOSSLESS_SHARES = {"none": 0.17, "shrunk": 0.6, "platform": 0.0, "degraded": 0.3}
SMALL_SHARES = {"none": 0.1, "shrunk": 0.45, "platform": 0.1, "degraded": 0.1}
LAST_QUALITIES = {"none": (70, 98), "shrunk": (70, 100), "degraded": (50, 100)}
# Filters of libraries and programs that scale pictures.
FILTERS = {
    Resampling.BICUBIC: 0.35, Resampling.LANCZOS: 0.25, Resampling.BILINEAR: 0.2,
    Resampling.BOX: 0.1, Resampling.HAMMING: 0.1,
}  # fmt: skip
ORIGINAL_SIDES = (1000, 4500)  # longer sides of photographs that people post, pixels
LEAST_SCALE = 0.4  # of a platform; the photographs here are not large enough for less


@dataclass(frozen=True, slots=True)
class Save:
    """JPEG compression: `tables` of a camera or program, or the standard ones at `quality`."""

    quality: int
    subsampling: Subsampling
    tables: Tables | None = None
    progressive: bool = False  # a property of the file, which changes no pixel


@dataclass(frozen=True, slots=True)
class Degradation:
    """Processing of the whole image before the last save, which weakens traces."""

    scale: float = 1.0
    resampling: Resampling = Resampling.BICUBIC
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
        resampling: filter of the scaling.
    """

    scale: float
    save: Save | None
    resampling: Resampling = Resampling.BICUBIC

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
        resampling: filter of that scaling.
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
    resampling: Resampling
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

    @property
    def prior(self) -> PriorHistory:
        """Part of the history before the manipulation, without the crop."""
        return PriorHistory(self.scale, self.first, self.resampling)


def sample_history(rng: np.random.Generator, cameras: Sequence[Tables]) -> History:
    """Sample the history of an image, manipulated or not; `cameras` are cameras' tables."""
    treatment = choose(tuple(TREATMENTS), rng, tuple(TREATMENTS.values()))
    degradation, last = _sample_publication(treatment, rng, cameras)
    lossless, off_grid, dropped = rng.random(3) < (LOSSLESS_SHARES[treatment], 0.1, 0.25)
    shape = _sample_shape(rng) if rng.random() < SMALL_SHARES[treatment] else (SIDE, SIDE)
    corner = rng.integers(0, frame_of(shape) - np.array(shape) + 1)
    if not off_grid:
        corner -= corner % GRID
    scale = float(rng.uniform(0.25, 1.0)) if rng.random() < 0.5 else 1.0
    # Scaling down removes the camera's compression, and most such pictures are saved only once
    # later, so that a single compression is common.
    unsaved = rng.random() < (0.4 if scale < 1 else 0.1)
    first = None if unsaved else sample_save(rng, (72, 95), cameras)
    # Software offers the quality of the opened file, which hides the second save best.
    if first is not None and treatment == "none" and rng.random() < 0.3:
        last = first
    return History(
        scale=scale,
        resampling=_sample_filter(scale, rng),
        on_grid=bool(rng.random() < 0.8),
        first=first,
        donor_shares_it=bool(rng.random() < 0.5),
        edited=sample_save(rng, (80, 98), ()) if rng.random() < 0.3 else None,
        degradation=degradation,
        last=None if lossless else last,
        shape=shape,
        corner=(int(corner[0]), int(corner[1])),
        has_table=not (lossless or off_grid or dropped),
    )


def sample_save(
    rng: np.random.Generator, quality: tuple[int, int], cameras: Sequence[Tables]
) -> Save:
    """Sample a save by a camera, Photoshop or other software.

    Args:
        rng: source of randomness.
        quality: lowest and highest quality, where the standard tables are used.
        cameras: cameras' tables; none for the save of a program.
    """
    camera, photoshop, default, progressive = rng.random(4) < (0.4, 0.35, 0.4, 0.15)
    value = int(rng.integers(quality[0], quality[1] + 1))
    subsampling: Subsampling = choose(("4:4:4", "4:2:2", "4:2:0"), rng, (0.25, 0.15, 0.6))
    if camera and cameras:
        return Save(value, subsampling, choose(cameras, rng))
    if photoshop:
        preset = choose(PRESETS, rng, tuple(PRESET_SHARES.values()))
        return Save(value, preset.subsampling, preset.tables, bool(progressive))
    if default:
        usual = [q for q in DEFAULT_QUALITIES if quality[0] <= q <= quality[1]]
        value = choose(usual or [value], rng)
    return Save(value, subsampling, None, bool(progressive))


def _sample_publication(
    treatment: str, rng: np.random.Generator, cameras: Sequence[Tables]
) -> tuple[Degradation, Save]:
    """Sample what happens to an image after its editor's save, and its last save."""
    if treatment == "platform":
        return _sample_platform(rng)
    degradation = _sample_degradation(treatment, rng)
    return degradation, sample_save(rng, LAST_QUALITIES[treatment], cameras)


def _sample_platform(rng: np.random.Generator) -> tuple[Degradation, Save]:
    """Sample the scale, sharpening and save of a messenger or network."""
    platform = choose(PLATFORMS, rng)
    side = np.exp(rng.uniform(*np.log(ORIGINAL_SIDES)))
    scale = float(np.clip(platform.longest / side, LEAST_SCALE, 1))
    sharpen = float(rng.uniform(0.1, 0.5)) if rng.random() < 0.3 else 0.0
    quality = int(rng.integers(platform.quality[0], platform.quality[1] + 1))
    degradation = Degradation(scale, _sample_filter(scale, rng), sharpen=sharpen)
    return degradation, Save(quality, "4:2:0", None, platform.progressive)


def _sample_filter(scale: float, rng: np.random.Generator) -> Resampling:
    """Sample a filter; two of them would enlarge with visible blocks."""
    resampling = choose(tuple(FILTERS), rng, tuple(FILTERS.values()))
    blocky = scale > 1 and resampling in (Resampling.BOX, Resampling.HAMMING)
    return Resampling.BICUBIC if blocky else resampling


def frame_of(shape: tuple[int, int]) -> int:
    """Return the side of the frame: larger than the picture as `FRAME` is larger than `SIDE`."""
    return max(shape) * FRAME // SIDE


def _sample_shape(rng: np.random.Generator) -> tuple[int, int]:
    longer = int(rng.integers(SMALLEST // GRID, SIDE // GRID + 1))
    shorter = int(rng.integers(max(2 * longer // 3, SMALLEST // GRID), longer + 1))
    height, width = rng.permutation([longer, shorter]) * GRID
    return int(height), int(width)


def _sample_degradation(treatment: str, rng: np.random.Generator) -> Degradation:
    if treatment == "none":
        return Degradation()
    if treatment == "shrunk":
        scale = float(np.exp(rng.uniform(np.log(0.35), 0)))
        return Degradation(scale, _sample_filter(scale, rng))
    resized, blurred, sharpened, noisy, toned = rng.random(5) < (0.5, 0.3, 0.2, 0.3, 0.3)
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(2)))) if resized else 1.0
    return Degradation(
        scale=scale,
        resampling=_sample_filter(scale, rng),
        blur=float(np.exp(rng.uniform(np.log(0.3), np.log(3)))) if blurred else 0.0,
        sharpen=float(rng.uniform(0.3, 1.0)) if sharpened else 0.0,
        noise=float(rng.uniform(1, 6)) if noisy else 0.0,
        contrast=float(rng.uniform(0.7, 1.4)) if toned else 1.0,
        brightness=float(rng.uniform(0.7, 1.4)) if toned else 1.0,
    )


def degrade(pixels: Pixels, how: Degradation, rng: np.random.Generator) -> Pixels:
    """Apply a degradation, except its scale."""
    if how == Degradation(how.scale, how.resampling):
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


def resize(
    pixels: Pixels, size: tuple[int, int], resampling: Resampling = Resampling.BICUBIC
) -> Pixels:
    """Resize to `size` (width, height)."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, resampling))


def encode(pixels: Pixels, save: Save) -> bytes:
    """Return the bytes of a JPEG file."""
    file = io.BytesIO()
    tables = {"quality": save.quality} if save.tables is None else {"qtables": save.tables}
    Image.fromarray(pixels).save(
        file, "jpeg", subsampling=save.subsampling, progressive=save.progressive, **tables
    )
    return file.getvalue()


def resave(pixels: Pixels, save: Save | None) -> Pixels:
    """Encode and decode; without a save, return the pixels as they are."""
    if save is None:
        return pixels
    baseline = replace(save, progressive=False)  # the same pixels, several times as fast
    with Image.open(io.BytesIO(encode(pixels, baseline))) as image:
        return np.asarray(image.convert("RGB"))


def luma_table(save: Save) -> tuple[int, ...]:
    """Return the luma table of a save, 64 in natural order."""
    if save.tables is not None:
        return save.tables[0]
    return read_tables(encode(np.zeros((8, 8, 3), np.uint8), save))[0]


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
