"""Context: what a tile is told of its whole picture, once for all of its tiles.

Two statistics say what is normal in this picture. The *histogram* counts the sizes of its DCT
coefficients, in which a second save leaves gaps. The *matches* say where the picture repeats
itself: each place is compared with all places that are not near it, and in a copy, unlike in chance
matches, neighbouring places have the same displacement to their matches.

The search of matches is that of copy-move detectors (Cozzolino, Poggi and Verdoliva, "Efficient
dense-field copy-move forgery detection", 2015): dense, with a vote of the neighbourhood. Nothing of
it is learned, so it runs outside the network: in NumPy, with a kernel for the comparison itself.

Letters: h w rows and columns of cells, S cells, Q queries, P cells of a descriptor, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from prompt_iml.engine.detection.views import mirrored
from prompt_iml.engine.network.beyond.dct import BLOCK, LUMA, dct_basis, zigzag
from prompt_iml.engine.network.config import MATCH_FEATURES, JpegViewConfig
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.runtimes.protocol import Batch

_VIEW = JpegViewConfig()
COEFFICIENTS, BINS = _VIEW.coefficients, _VIEW.bins  # of the histogram
STRIP = 64  # rows of blocks that are transformed at a time: 12 MB of a picture of 4,000 columns
SCALED_STRIP = 256  # rows of pixels that Pillow copies at a time to make them narrower
LUMA_STRIP = 32  # rows of pixels that are weighted at a time, so that they fit the cache
MOST_PIXELS = 512 * 384  # a larger picture is scaled down for the search, whose cost is quadratic
CELL = 4  # pixels between cells; queries are a JPEG block apart
BLUR, BLUR_SIZE = 2.0, 13  # sigma and taps: a match may be half a cell off the grid of cells
PATCH = 5  # cells of a descriptor along each axis
NEAR = 8  # cells along each axis within which matches are excluded: a place resembles itself
AGREE = 1  # cells by which displacements of neighbours may differ: a copy may be scaled or turned
RINGS = 3  # rings of queries around a query whose displacements are compared with its own
FLAT = 0.1  # grey levels of contrast up to which a query has no match
NOISE = 0.05  # grey levels added to the contrast, so that noise is not normalised to a pattern
NO_MATCH = 1e4  # cells: displacement of a query without a match

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Context:
    """Statistics of a whole picture, as inputs of the network.

    Attributes:
        histogram: (coefficients, bins) float32, the share of the blocks in which the absolute
            coefficient, in units of the quantisation table, rounds to 0, 1, ...; the last bin is
            open. Coefficients are the lowest AC ones in zig-zag order.
        matches: (F, rows, columns) float32 for each block of 8x8 pixels; partial ones count.
    """

    histogram: Floats
    matches: Floats


NO_CONTEXT = Context(np.zeros((0, 0), np.float32), np.zeros((0, 1, 1), np.float32))


def picture_context(pixels: NDArray[np.uint8], qtable: Floats) -> Context:
    """Return the context of a picture.

    Args:
        pixels: (H, W, 3) RGB on the grid of the table.
        qtable: (64,) luma quantisation table in natural order; ones where there is none.
    """
    luma = luma_of(pixels)
    return Context(dct_histogram(luma, qtable), find_matches(luma))


def whole_pictures(image: NDArray[np.uint8], qtable: Floats) -> Batch:
    """Return a batch of pictures that are one tile each.

    Args:
        image: (N, H, W, 3); H and W are multiples of 8.
        qtable: (N, 64).
    """
    contexts = [picture_context(*each) for each in zip(image, qtable, strict=True)]
    return Batch(
        image,
        qtable,
        np.stack([context.histogram for context in contexts]),
        np.stack([context.matches for context in contexts]),
    )


def dct_histogram(luma: Floats, qtable: Floats) -> Floats:
    """Return the histogram of `Context`, from the luma (H, W); of a picture without a whole block,
    that of one of zeros.

    The luma is rounded, which undoes most of the decoder's rounding of RGB.
    """
    order = zigzag()[1 : COEFFICIENTS + 1]
    basis = dct_basis()[order].reshape(COEFFICIENTS, 64)
    scaled = (basis / qtable[order, None]).astype(np.float32)
    rows, columns = luma.shape[0] // BLOCK, luma.shape[1] // BLOCK
    counts = np.zeros((COEFFICIENTS, BINS), np.int64)
    for first in range(0, rows if columns else 0, STRIP):
        strip = luma[first * BLOCK : min(first + STRIP, rows) * BLOCK, : columns * BLOCK]
        blocks = np.rint(strip).reshape(-1, BLOCK, columns, BLOCK).swapaxes(1, 2)
        sizes = np.abs(scaled @ blocks.reshape(-1, 64).T)
        bin_of = np.minimum(np.rint(sizes), BINS - 1).astype(np.int64)
        bin_of += BINS * np.arange(COEFFICIENTS)[:, None]
        counts += np.bincount(bin_of.ravel(), minlength=counts.size).reshape(counts.shape)
    if not counts.any():
        counts[:, 0] = 1
    shares: Floats = (counts / counts.sum(1, keepdims=True)).astype(np.float32)
    return shares


def luma_of(pixels: NDArray[np.uint8]) -> Floats:
    """Return the luma (H, W), 0..255, not rounded."""
    red, *others = np.array(LUMA, np.float32)
    luma = np.empty(pixels.shape[:2], np.float32)
    for first in range(0, len(luma), LUMA_STRIP):
        strip, channels = luma[first : first + LUMA_STRIP], pixels[first : first + LUMA_STRIP]
        np.multiply(channels[..., 0], red, out=strip)
        for channel, weight in enumerate(others, 1):
            strip += channels[..., channel] * weight
    return luma


def find_matches(luma: Floats) -> Floats:
    """Return the matches of `Context`, from the luma (H, W).

    The features of a block are the correlation with its match, the shares of its neighbours (3x3,
    5x5, 7x7) with the same displacement, the product of the correlation and the second share, and
    the logarithm of its contrast.
    """
    blocks = -(-luma.shape[0] // BLOCK), -(-luma.shape[1] // BLOCK)
    cells = _cells(luma)
    if min(cells.shape) < 2:
        return np.zeros((MATCH_FEATURES, *blocks), np.float32)
    found = _features(*_descriptors(cells))
    rows, columns = (
        (np.arange(count) * 2 + 1) * have // (2 * count)
        for count, have in zip(blocks, found.shape[1:], strict=True)
    )
    return found[:, rows[:, None], columns]


def tile_matches(context: Context, top: int, left: int, shape: tuple[int, int]) -> Floats:
    """Return the matches of a tile, (F, height / 8, width / 8); beyond the picture they are
    mirrored, as its pixels are.

    Args:
        context: that of the picture.
        top, left: the tile's place in pixels, multiples of 8.
        shape: height and width of the tile in pixels.
    """
    rows, columns = (
        mirrored(size // BLOCK, min(have - place // BLOCK, size // BLOCK)) + place // BLOCK
        for size, place, have in zip(shape, (top, left), context.matches.shape[1:], strict=True)
    )
    return context.matches[:, rows[:, None], columns]


def _cells(luma: Floats) -> Floats:
    """Return the blurred luma at every fourth pixel of the picture, which is scaled to
    `MOST_PIXELS` first."""
    height, width = luma.shape
    scale = (MOST_PIXELS / (height * width)) ** 0.5
    if scale < 1:
        columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
        strips = [luma[first : first + SCALED_STRIP] for first in range(0, height, SCALED_STRIP)]
        narrow = np.concatenate([_box(strip, columns, len(strip)) for strip in strips])
        luma = _box(narrow, columns, rows)
    return _blurred_cells(np.ascontiguousarray(_blurred_cells(luma).T)).T


def _box(luma: Floats, columns: int, rows: int) -> Floats:
    """Return the luma at another size: means over the pixels of each new one."""
    image = PIL.Image.fromarray(luma)
    return np.asarray(image.resize((columns, rows), PIL.Image.Resampling.BOX))


def _blurred_cells(luma: Floats) -> Floats:
    """Return every fourth row of the luma, blurred across rows."""
    middle, height = BLUR_SIZE // 2, len(luma)
    taps = np.exp(-(np.arange(-middle, middle + 1) ** 2) / (2 * BLUR**2))
    taps = (taps / taps.sum()).astype(np.float32)
    padded = np.pad(luma, ((middle, middle), (0, 0)), mode="reflect")
    rows = [padded[first : first + height : CELL] for first in range(BLUR_SIZE)]
    blurred: Floats = taps[middle] * rows[middle]
    for before, after, tap in zip(rows[:middle], rows[:middle:-1], taps[:middle], strict=True):
        blurred += tap * (before + after)
    return blurred


def _descriptors(cells: Floats) -> tuple[Floats, Floats]:
    """Return the 5x5 cells around each cell with mean 0 and length 1 (less where contrast is very
    low), (h, w, P), and the contrast (h, w) in grey levels."""
    around = sliding_window_view(np.pad(cells, PATCH // 2, mode="reflect"), (PATCH, PATCH))
    patches_SP = around.reshape(cells.size, PATCH**2)
    patches_SP -= np.einsum("SP->S", patches_SP)[:, None] / PATCH**2
    contrast_S = np.sqrt(np.einsum("SP,SP->S", patches_SP, patches_SP) / PATCH**2)
    patches_SP /= (PATCH * (contrast_S + NOISE))[:, None]
    return patches_SP.reshape(*cells.shape, -1), contrast_S.reshape(cells.shape)


def _features(descriptors_hwP: Floats, contrast_hw: Floats) -> Floats:
    """Return the features (F, h/2, w/2) of all queries: every second cell along both axes."""
    correlation, displacement = _best_matches(descriptors_hwP)
    contrast = contrast_hw[1::2, 1::2]
    textured = (contrast > FLAT) & (correlation > -1)
    correlation = correlation * textured
    shares = _agreement(np.where(textured, displacement, NO_MATCH)) * textured
    log_contrast = np.log1p(contrast)
    found = [correlation, *shares, correlation * shares[1], log_contrast]
    return np.array(found, np.float32)


def _best_matches(descriptors_hwP: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Find for each query the cell with the highest correlation that is not near.

    Returns:
        Correlations (h/2, w/2), -2 where all cells are near, and displacements in rows and columns
        from the query to its match, (2, h/2, w/2).
    """
    search = cpu.best_matches if cpu.available() else search_matches
    best, place = search(np.ascontiguousarray(descriptors_hwP, np.float32), NEAR)
    there = np.stack(np.divmod(place, descriptors_hwP.shape[1]))
    return best, there - (2 * np.indices(best.shape) + 1)


def search_matches(descriptors_hwP: Floats, near: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return what `engine.operator.cpu.best_matches` does, in five times the time."""
    height, width, _ = descriptors_hwP.shape
    queries = descriptors_hwP[1::2, 1::2]
    flat_PS = np.ascontiguousarray(descriptors_hwP.reshape(height * width, -1).T)
    column_near = np.abs(2 * np.arange(queries.shape[1])[:, None] + 1 - np.arange(width)) < near
    best, place = (np.empty(queries.shape[:2], kind) for kind in (np.float32, np.int64))
    for row, query_QP in enumerate(queries):
        correlation = (query_QP @ flat_PS).reshape(-1, height, width)
        rows = slice(max(0, 2 * row + 2 - near), 2 * row + 1 + near)
        np.copyto(correlation[:, rows], -2, where=column_near[:, None])
        found = correlation.reshape(len(query_QP), -1)
        place[row] = found.argmax(1)
        best[row] = np.take_along_axis(found, place[row][:, None], 1)[:, 0]
    return best, place


def _agreement(displacement: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return for each ring the share (h/2, w/2) of neighbours with the same displacement."""
    height, width = displacement.shape[1:]
    padded = np.pad(displacement, ((0, 0), (RINGS,) * 2, (RINGS,) * 2), constant_values=-NO_MATCH)
    counts = np.zeros((RINGS + 1, height, width))
    for down in range(2 * RINGS + 1):
        for right in range(2 * RINGS + 1):
            theirs = padded[:, down : down + height, right : right + width]
            ring = max(abs(down - RINGS), abs(right - RINGS))
            counts[ring] += (np.abs(theirs - displacement) <= AGREE).all(0)
    inside = np.cumsum(counts[1:], axis=0)
    return [inside[ring - 1] / ((2 * ring + 1) ** 2 - 1) for ring in range(1, RINGS + 1)]
