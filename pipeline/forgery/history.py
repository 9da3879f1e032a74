"""What happens to an image besides the forgery: saves, tables, resizes, wear.

One distribution for authentic and forged images, drawn before anyone knows which it will be:
neither table nor size nor format may give the label away.
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
FRAME = SIDE + 48  # what is saved last: the crop may begin anywhere in it
SMALLEST = 128  # pixels: the shortest side that gets a label
GRID = 8  # pixels: JPEG's blocks
SHRUNK_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Save:
    """One JPEG compression: `tables` of a camera, or the standard ones at `quality`."""

    quality: int
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"]
    tables: Tables | None = None


@dataclass(frozen=True, slots=True)
class Stress:
    """What wears traces away, on the whole image before the last save."""

    scale: float = 1.0
    blur: float = 0.0  # sigma, pixels
    sharpen: float = 0.0  # gain of the unsharp mask
    noise: float = 0.0  # sigma, grey levels
    contrast: float = 1.0  # factor of the distance from middle grey
    brightness: float = 1.0  # factor of all grey levels


@dataclass(frozen=True, slots=True)
class Past:
    """What a photograph went through before it was forged.

    Attributes:
        scale: 1 or less; as little as leaves the shorter side `FRAME` pixels.
        save: the one save, or None.
    """

    scale: float
    save: Save | None

    def scale_of(self, pixels: Pixels) -> float:
        """Of a whole photograph (H, W, 3), or as much of one as is shown, in this past."""
        height, width = pixels.shape[:2]
        shorter: int = min(height, width)
        return min(1.0, max(self.scale, FRAME / shorter))


@dataclass(frozen=True, slots=True)
class History:
    """Everything that happens to an image but the forgery itself.

    Attributes:
        scale: of the photograph before anything else; it is 1 or less, and the least shows whole
            photographs, as small pictures do.
        on_grid: the view keeps the 8x8 grid of the photograph (at scale 1).
        first: save before the forgery, or None.
        collected: whether a splice's donor has the same past as its host, as in an album, a shop
            or an agency: then neither noise nor sharpness tells them apart.
        edited: save right after it, by whoever made it, or None when lossless.
        stress: after that.
        last: save by whoever posts it, or None when lossless.
        shape: (height, width) of the picture, `SMALLEST` to `SIDE`, multiples of `GRID`.
        corner: (row, column) of the picture in the saved frame; on the grid where `has_table`.
        has_table: whether the example comes with its table.
    """

    scale: float
    on_grid: bool
    first: Save | None
    collected: bool
    edited: Save | None
    stress: Stress
    last: Save | None
    shape: tuple[int, int]
    corner: tuple[int, int]
    has_table: bool

    @property
    def frame(self) -> int:
        """Side of the square that is saved last."""
        return frame_of(self.shape)


def draw_history(rng: np.random.Generator, cameras: Sequence[Tables]) -> History:
    """Draw what happens to an image, forged or not; `cameras` are tables seen in cameras."""
    # Most pictures are shown smaller than they were made, and many of those as they then are:
    # nothing of the forger's save is left in them.
    shrunk = rng.random() < SHRUNK_SHARE
    stressed = shrunk or rng.random() < 0.3
    stress = _draw_stress(rng, shrunk) if stressed else Stress()
    last = draw_save(rng, (50, 100) if stressed else (70, 98), cameras)
    lossless_share = 0.6 if shrunk else 0.3 if stressed else 0.17
    lossless, off_grid, dropped = rng.random(3) < (lossless_share, 0.1, 0.25)
    shape = _draw_shape(rng) if rng.random() < (0.4 if shrunk else 0.1) else (SIDE, SIDE)
    corner = rng.integers(0, frame_of(shape) - np.array(shape) + 1)
    if not off_grid:
        corner -= corner % GRID
    scale = float(rng.uniform(0.25, 1.0)) if rng.random() < 0.5 else 1.0
    # What was scaled down has lost the camera's compression, and most of it is saved but once
    # from then on: a picture of one compression is nothing strange.
    unsaved = rng.random() < (0.4 if scale < 1 else 0.1)
    first = None if unsaved else draw_save(rng, (72, 95), cameras)
    # Software offers the quality that the file came in; nothing is harder to see than that.
    if first is not None and not stressed and rng.random() < 0.3:
        last = first
    return History(
        scale=scale,
        on_grid=bool(rng.random() < 0.8),
        first=first,
        collected=bool(rng.random() < 0.5),
        edited=draw_save(rng, (80, 98), cameras) if rng.random() < 0.3 else None,
        stress=stress,
        last=None if lossless else last,
        shape=shape,
        corner=(int(corner[0]), int(corner[1])),
        has_table=not (lossless or off_grid or dropped),
    )


def draw_save(
    rng: np.random.Generator, quality: tuple[int, int], cameras: Sequence[Tables]
) -> Save:
    """Half of the saves are a camera's, or of software that has tables of its own."""
    return Save(
        quality=int(rng.integers(quality[0], quality[1] + 1)),
        subsampling=choose(("4:4:4", "4:2:2", "4:2:0"), rng, (0.25, 0.15, 0.6)),
        tables=choose(cameras, rng) if rng.random() < 0.5 else None,
    )


def frame_of(shape: tuple[int, int]) -> int:
    """As much larger than the picture as `FRAME` is than `SIDE`."""
    return max(shape) * FRAME // SIDE


def _draw_shape(rng: np.random.Generator) -> tuple[int, int]:
    longer = int(rng.integers(SMALLEST // GRID, SIDE // GRID + 1))
    shorter = int(rng.integers(max(2 * longer // 3, SMALLEST // GRID), longer + 1))
    height, width = rng.permutation([longer, shorter]) * GRID
    return int(height), int(width)


def _draw_stress(rng: np.random.Generator, shrunk: bool) -> Stress:
    if shrunk:
        return Stress(scale=float(np.exp(rng.uniform(np.log(0.35), 0))))
    resized, blurred, sharpened, noisy, toned = rng.random(5) < (0.5, 0.3, 0.2, 0.3, 0.3)
    return Stress(
        scale=float(np.exp(rng.uniform(np.log(0.5), np.log(2)))) if resized else 1.0,
        blur=float(np.exp(rng.uniform(np.log(0.3), np.log(3)))) if blurred else 0.0,
        sharpen=float(rng.uniform(0.3, 1.0)) if sharpened else 0.0,
        noise=float(rng.uniform(1, 6)) if noisy else 0.0,
        contrast=float(rng.uniform(0.7, 1.4)) if toned else 1.0,
        brightness=float(rng.uniform(0.7, 1.4)) if toned else 1.0,
    )


def wear(pixels: Pixels, stress: Stress, rng: np.random.Generator) -> Pixels:
    """Stress but its scale."""
    if stress == Stress(scale=stress.scale):
        return pixels
    worn = pixels.astype(np.float64)
    if stress.blur:
        worn = smooth(worn, stress.blur)
    if stress.sharpen:
        worn += stress.sharpen * (worn - smooth(worn, 1.0))
    if stress.noise:
        worn += rng.normal(0, stress.noise, worn.shape)
    if (stress.contrast, stress.brightness) != (1.0, 1.0):
        worn = (128 + stress.contrast * (worn - 128)) * stress.brightness
    return rounded(worn)


def smooth(pixels: Floats, sigma: float) -> Floats:
    """(H, W, C) blurred by a Gaussian of `sigma` pixels."""
    blurred: Floats = ndimage.gaussian_filter(pixels, (sigma, sigma, 0))
    return blurred


def rounded(pixels: Floats) -> Pixels:
    """To the nearest of 0..255."""
    nearest: Pixels = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return nearest


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """To (width, height)."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def encode(pixels: Pixels, save: Save) -> bytes:
    """As the bytes of a JPEG file."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if save.tables is None:
        image.save(file, "jpeg", quality=save.quality, subsampling=save.subsampling)
    else:
        tables = [list(table) for table in save.tables]
        image.save(file, "jpeg", qtables=tables, subsampling=save.subsampling)
    return file.getvalue()


def resave(pixels: Pixels, save: Save | None) -> Pixels:
    """Encoded and decoded; as they are where there is no save, or a lossless one."""
    if save is None:
        return pixels
    with Image.open(io.BytesIO(encode(pixels, save))) as image:
        return np.asarray(image.convert("RGB"))


def read_tables(data: bytes) -> Tables:
    """Luma and chroma tables of a JPEG file, natural order."""
    with Image.open(io.BytesIO(data)) as image:
        found = image.quantization  # type: ignore[attr-defined]
        tables = [tuple(map(int, found[layer[3]])) for layer in image.layer[:2]]  # type: ignore
    return tuple(tables)


def choose(
    choices: Sequence[Choice], rng: np.random.Generator, p: Sequence[float] | None = None
) -> Choice:
    """One of them, each alike or with probabilities `p`."""
    return choices[int(rng.choice(len(choices), p=p))]
