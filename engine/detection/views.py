"""Cut an image into tiles of network input, and assemble tile outputs into one map.

There are two views. `fit` scales the image to one square, as the paper does (arXiv 2401.00653).
`native` keeps the pixels: it cuts tiles on the JPEG 8x8 grid, so that the JPEG view sees the file's
own blocks. A picture smaller than a tile and without a JPEG table also gets an enlarged view. The
only assumption about the network is one mask cell for 4x4 pixels.

*Stored* pixels are the file's. *Working* pixels are those that are cut into tiles: the stored ones,
or a scaled copy. A *cell* is a square of 4x4 working pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from prompt_iml.engine.detection.image import Image

BLOCK = 8  # side of a JPEG block: every tile offset is a multiple of it
STRIDE = 4  # working pixels per cell
OVERLAP = 8  # two neighbouring tiles share at least 1/8 of their side
PADDING = 16  # an axis is padded to a side if it lacks at most 1/16 of it
ENLARGED = 2  # scale of the second view of a small picture
STRIP_PIXELS = 1 << 19  # pixels of one strip of `upsample`, so that it fits the cache

Shape: TypeAlias = tuple[int, int]
Window: TypeAlias = tuple[slice, slice]
Pixel = TypeVar("Pixel", np.uint8, np.bool_)

_NO_TABLE = np.ones(64, np.float32)
_NO_TABLE.flags.writeable = False


@dataclass(frozen=True, slots=True)
class View:
    """The way in which an image is prepared for the network.

    Attributes:
        name: `fit` scales the image to one square; `native` keeps its pixels.
        sides: tile sides in pixels that the network takes, ascending, each twice the one before,
            multiples of 32. `native` covers each axis with tiles of the largest side that it
            fills, or nearly fills; `fit` scales to the largest.
        max_tiles: most tiles of the largest side for one image, or as many pixels in smaller
            ones (64 of 512 cover 12 megapixels); a larger image is first scaled down to fit,
            unless some more tiles are allowed, as `cut` describes.
        context: whether the network takes the context of the picture.
    """

    name: Literal["fit", "native"]
    sides: tuple[int, ...] = (256, 512)
    max_tiles: int = 64
    context: bool = True


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of one image; `tile` cuts them on demand.

    Attributes:
        pixels: (h, w, 3) uint8, the working frame.
        qtable: (64,) float32, the luma table; ones where there is none or its grid is gone.
        tops, lefts: offsets of the tiles along each axis, multiples of 8; every pair is a tile.
        tile_shape: height and width of every tile, in pixels.
        stored_shape: height and width of the image as stored.
        preprocess: id of the view in the results: `native-256-512`, or with `-scaled`,
            `-scaled-closer` or `-enlarged`.
    """

    pixels: NDArray[np.uint8]
    qtable: NDArray[np.float32]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    tile_shape: Shape
    stored_shape: Shape
    preprocess: str

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def place(self, index: int) -> tuple[int, int]:
        """Return the offset (top, left) of one tile; tiles are numbered row by row."""
        row, column = divmod(index, len(self.lefts))
        return self.tops[row], self.lefts[column]


@dataclass(frozen=True, slots=True)
class LogitMap:
    """Mask logits of one image at network resolution.

    Attributes:
        cells: (h, w) float32; above 0 means manipulated.
        extent: cells that the image covers along each axis; quarters, h - 1 < extent <= h.
        shape: height and width of the image as stored.
    """

    cells: NDArray[np.float32]
    extent: tuple[float, float]
    shape: Shape

    @property
    def peak(self) -> float:
        """The highest probability of the cells; no pixel between them has a higher one."""
        highest = self.cells.max(keepdims=True)
        return float(sigmoid(highest, out=highest)[0, 0])


def cut(image: Image, view: View, further: int = 0) -> Tiling:
    """Place the tiles of an image; copies no pixels unless it must scale.

    An image of at most `view.max_tiles + further` tiles is not scaled: at that cost all of it can
    be shown as it is. A larger one is scaled to `view.max_tiles`, whatever `further` is.

    Scaling is Pillow's BILINEAR, whose support grows with the factor (antialiased); it loses
    the JPEG grid, so the luma table is dropped. Memory: nothing for `native`; to scale, 4
    bytes a stored pixel for the moment (48 megapixels: 190 MB) and the scaled copy.
    """
    stored = image.pixels.shape[0], image.pixels.shape[1]
    side = view.sides[-1]
    if view.name == "fit":
        pixels = _resize(image.pixels, (side, side))
        return Tiling(pixels, _NO_TABLE, (0,), (0,), (side, side), stored, f"fit-{side}")
    if _tile_count(stored, side) <= view.max_tiles + further:
        return cut_stored(image, view)
    pixels = _resize(image.pixels, _shape_within(stored, side, view.max_tiles))
    return _place(pixels, _NO_TABLE, view, stored, f"{_name(view)}-scaled")


def cut_stored(image: Image, view: View) -> Tiling:
    """Place the tiles of an image of any size on its stored pixels; copies none."""
    table = _NO_TABLE if image.luma_table is None else image.luma_table
    return _place(image.pixels, table, view, image.pixels.shape[:2], _name(view))


def cut_enlarged(image: Image, view: View) -> Tiling | None:
    """Place the tiles of the second view of a small picture, `ENLARGED` times as large.

    A picture gets one if `native` must pad it by more than 1/`PADDING` and it has no JPEG table.
    Such a picture was most likely scaled down: the finest traces are lost, and the others have
    another scale than the network expects. On held-back photographs at half size, the mean of both
    views was better than either. Where traces at the scale of the pixels remain, as a JPEG table
    indicates, the second view costs a little accuracy.

    Scaling is Pillow's BICUBIC. Memory: the enlarged copy, below 2 x 240 pixels on the shorter
    axis.

    Returns:
        The tiling; None for all other pictures.
    """
    height, width = image.pixels.shape[:2]
    smallest = view.sides[0] - view.sides[0] // PADDING
    if view.name == "fit" or min(height, width) >= smallest or image.luma_table is not None:
        return None
    shape = ENLARGED * height, ENLARGED * width
    if _tile_count(shape, view.sides[-1]) > view.max_tiles:
        return None
    pixels = _resize(image.pixels, shape, PIL.Image.Resampling.BICUBIC)
    return _place(pixels, _NO_TABLE, view, (height, width), f"{_name(view)}-enlarged")


def tile(tiling: Tiling, index: int) -> NDArray[np.uint8]:
    """Return the pixels of one tile, (*tile_shape, 3) uint8; tiles are numbered row by row.

    Beyond the image the last row and column repeat to the end of their 8x8 block, as a JPEG
    encoder pads, and from there whole blocks are mirrored: a mirrored block has the block-DCT
    coefficients of its original up to their sign.
    """
    height, width = tiling.tile_shape
    top, left = tiling.place(index)
    inside = tiling.pixels[top : top + height, left : left + width]
    return inside if inside.shape[:2] == tiling.tile_shape else pad(inside, height, width)


def pad(pixels: NDArray[Pixel], height: int, width: int) -> NDArray[Pixel]:
    """Grow (h, w, ...) to (height, width, ...) at the bottom and right, as `tile` describes."""
    h, w = pixels.shape[:2]
    padded = np.empty((height, width, *pixels.shape[2:]), pixels.dtype)
    padded[:h, :w] = pixels
    padded[:h, w:] = pixels.take(_sources(w, width)[w:], axis=1)
    padded[h:] = padded.take(_sources(h, height)[h:], axis=0)
    return padded


def assemble(tiling: Tiling, tile_logits: Sequence[NDArray[np.float32]]) -> LogitMap:
    """Blend the logits of all tiles into one map; cells in the padding are dropped.

    Args:
        tiling: tiles of the image.
        tile_logits: logits of each tile in order, (tile height / 4, tile width / 4) float32.
    """
    height, width = tiling.pixels.shape[:2]
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    extent = height / STRIDE, width / STRIDE
    canvas = tile_logits[0] if len(tile_logits) == 1 else blend(tiling, tile_logits)
    return LogitMap(canvas[:rows, :columns], extent, tiling.stored_shape)


def blend(
    tiling: Tiling,
    tile_logits: Sequence[NDArray[np.float32]],
    numbers: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Return the weighted sum of tiles on the cells of the tiling, padding included.

    Args:
        tiling: tiles of the image.
        tile_logits: logits of tiles, as for `assemble`.
        numbers: the number of each tile; None: all tiles in order, whose weights sum to 1.
    """
    height, width = tiling.tile_shape[0] // STRIDE, tiling.tile_shape[1] // STRIDE
    tops = [top // STRIDE for top in tiling.tops]
    lefts = [left // STRIDE for left in tiling.lefts]
    y_weights, x_weights = _weights(tops, height), _weights(lefts, width)
    canvas = np.zeros((tops[-1] + height, lefts[-1] + width), np.float32)
    for index, logits in zip(numbers or range(len(tiling)), tile_logits, strict=True):
        row, column = divmod(index, len(lefts))
        y, x = tops[row], lefts[column]
        weight = y_weights[row][:, None] * x_weights[column]
        canvas[y : y + height, x : x + width] += weight * logits
    return canvas


def mean(coarse: LogitMap, fine: LogitMap) -> LogitMap:
    """Return the mean of two maps of one image, on the cells of the finer one."""
    cells = resampled(coarse.cells, coarse.extent, fine, PIL.Image.Resampling.BILINEAR)
    cells += fine.cells
    cells *= 0.5
    return LogitMap(cells, fine.extent, fine.shape)


def resampled(
    cells: NDArray[np.float32],
    extent: tuple[float, float],
    target: LogitMap,
    how: PIL.Image.Resampling,
) -> NDArray[np.float32]:
    """Return a map of the same image, with this extent, on the cells of another."""
    y_scale, x_scale = (e / t for e, t in zip(extent, target.extent, strict=True))
    height, width = target.cells.shape
    most_y, most_x = cells.shape
    box = 0, 0, min(width * x_scale, most_x), min(height * y_scale, most_y)
    return np.array(PIL.Image.fromarray(cells).resize((width, height), how, box), np.float32)


def upsample(logits: LogitMap, window: Window) -> NDArray[np.float32]:
    """Return logits at the stored pixels of a window, (height, width) float32.

    Bilinear between cell centres, which lie half a cell inside their cell's border
    (`align_corners=False`), constant beyond the outermost centres. Where a stored pixel is
    larger than a cell (`fit` on a small image) the cells under it are averaged.

    Args:
        logits: the map.
        window: rows and columns of the stored frame, both with start and stop.
    """
    rows, columns = window
    y_scale, x_scale = logits.extent[0] / logits.shape[0], logits.extent[1] / logits.shape[1]
    source = PIL.Image.fromarray(logits.cells)
    left, right = columns.start * x_scale, columns.stop * x_scale
    result = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    step = max(1, STRIP_PIXELS // result.shape[1])
    for first in range(0, len(result), step):
        strip = result[first : first + step]
        top = rows.start + first
        box = left, top * y_scale, right, (top + len(strip)) * y_scale
        strip[:] = source.resize(strip.shape[::-1], PIL.Image.Resampling.BILINEAR, box)
    return result


def probability_map(logits: LogitMap) -> NDArray[np.float32]:
    """Return the probability of manipulation at every stored pixel, (H, W) float32 in [0, 1]."""
    values = upsample(logits, (slice(0, logits.shape[0]), slice(0, logits.shape[1])))
    return sigmoid(values, out=values)


def sigmoid(values: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Write probabilities of logits to `out`, which may be `values`; tanh cannot overflow."""
    np.multiply(values, 0.5, out=out)
    np.tanh(out, out=out)
    out += 1
    out *= 0.5
    return out


def _place(
    pixels: NDArray[np.uint8],
    qtable: NDArray[np.float32],
    view: View,
    stored: Shape,
    preprocess: str,
) -> Tiling:
    height, width = pixels.shape[:2]
    shape = _side(height, view.sides), _side(width, view.sides)
    tops, lefts = _offsets(height, shape[0]), _offsets(width, shape[1])
    return Tiling(pixels, qtable, tops, lefts, shape, stored, preprocess)


def _name(view: View) -> str:
    return "-".join(["native", *map(str, view.sides)])


def _side(length: int, sides: tuple[int, ...]) -> int:
    """Return the largest side of which an axis lacks at most 1/`PADDING`, or else the smallest.

    Networks learn from whole crops, and a mirrored half looks like a copy. Two overlapping tiles
    cover as much as one tile of twice their side less 1/`PADDING`, so this costs no more pixels
    than padding would.
    """
    return max((side for side in sides if length >= side - side // PADDING), default=sides[0])


def _count(length: int, side: int) -> int:
    """Return the fewest tiles that cover an axis with the least overlap."""
    overlap = side // OVERLAP
    return max(1, math.ceil((length - overlap) / (side - overlap)))


def _tile_count(shape: Shape, side: int) -> int:
    return _count(shape[0], side) * _count(shape[1], side)


@lru_cache(maxsize=4096)
def _offsets(length: int, side: int) -> tuple[int, ...]:
    """Return the offsets of the tiles along one axis: whole blocks, spread evenly."""
    count = _count(length, side)
    if count == 1:
        return (0,)
    blocks = -(-length // BLOCK) - side // BLOCK
    return tuple(i * blocks // (count - 1) * BLOCK for i in range(count))


def _shape_within(shape: Shape, side: int, max_tiles: int) -> Shape:
    """Return the largest shape of these proportions that needs at most `max_tiles` tiles."""
    height, width = shape
    overlap = side // OVERLAP
    full = [overlap + (side - overlap) * count for count in range(1, max_tiles + 1)]
    tall = [(length, max(1, width * length // height)) for length in full if length < height]
    wide = [(max(1, height * length // width), length) for length in full if length < width]
    fitting = (s for s in tall + wide if _tile_count(s, side) <= max_tiles)
    return max(fitting, key=lambda s: s[0] * s[1])


def _resize(
    pixels: NDArray[np.uint8],
    shape: Shape,
    how: PIL.Image.Resampling = PIL.Image.Resampling.BILINEAR,
) -> NDArray[np.uint8]:
    return np.asarray(PIL.Image.fromarray(pixels).resize((shape[1], shape[0]), how))


@lru_cache(maxsize=1024)
def _sources(length: int, size: int) -> NDArray[np.intp]:
    """Return, for each position of a padded axis, the position of the image that it repeats."""
    return np.minimum(mirrored(size, -(-length // BLOCK) * BLOCK), length - 1)


def mirrored(size: int, length: int) -> NDArray[np.intp]:
    """Return, for each of `size` positions of an axis, the one of the first `length` positions that
    it repeats, mirrored at the border."""
    position = np.arange(size) % (2 * length)
    return np.minimum(position, 2 * length - 1 - position)


def _weights(offsets: Sequence[int], size: int) -> list[NDArray[np.float32]]:
    """Return the blending weights of the tiles along one axis; at every cell they sum to 1.

    A tile's weight rises linearly over the least overlap from each border it shares with a
    neighbour, and stays full towards the borders of the image.
    """
    ramp = np.minimum((np.arange(size) + 0.5) / (size // OVERLAP), 1)
    total = np.zeros(offsets[-1] + size)
    weights = []
    for offset in offsets:
        weight = np.ones(size)
        if offset > 0:
            weight *= ramp
        if offset < offsets[-1]:
            weight *= ramp[::-1]
        total[offset : offset + size] += weight
        weights.append(weight)
    return [
        (weight / total[offset : offset + size]).astype(np.float32)
        for offset, weight in zip(offsets, weights, strict=True)
    ]
