"""A closer look: show a picture that was scaled down again, as it is, where it is most suspicious.

scaled picture -> map, tile scores -> most suspicious tiles of the stored pixels -> their logits
-> map and scores in which they replace what the scaled picture gave there

Scaling loses the JPEG grid and the finest traces. Of the tiles on the stored pixels, which have
both, a bounded number runs, so that a picture of any size has a bounded cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.views import (
    STRIDE,
    LogitMap,
    Tiling,
    View,
    Window,
    blend,
    cut_stored,
    resampled,
)

COVERED = 0.5  # share of a tile from which the closer look replaces its score
MOST_TILES = (
    4096  # on the stored pixels; 210 megapixels have some 1,100, unless they are a thin strip
)


def can_look_closer(image: Image, view: View) -> bool:
    """Return whether so few tiles cover the stored pixels that the choice among them is cheap."""
    return len(cut_stored(image, view)) <= MOST_TILES


def suspicious(coarse: LogitMap, tiling: Tiling, most: int) -> list[int]:
    """Return the numbers of at most `most` tiles in which a map is highest, ascending.

    The tile with the highest logit is taken first, and its cells then count as the map's lowest, so
    that a neighbour is taken only for what it adds. Of tiles that share their highest cell, the one
    with the highest mean is taken, then the first.

    Args:
        coarse: logits of the scaled picture.
        tiling: tiles on the stored pixels of the picture.
        most: at least 1.
    """
    cells, lowest, chosen = coarse.cells.copy(), coarse.cells.min(), list[int]()
    left = {number: _window(coarse, tiling, number) for number in range(len(tiling))}
    while left and len(chosen) < most:
        number = max(left, key=lambda each: (cells[left[each]].max(), cells[left[each]].mean()))
        cells[left.pop(number)] = lowest
        chosen.append(number)
    return sorted(chosen)


def merged(
    coarse: LogitMap,
    tiling: Tiling,
    numbers: Sequence[int],
    tile_logits: Sequence[NDArray[np.float32]],
) -> tuple[LogitMap, NDArray[np.bool_]]:
    """Replace a map where tiles on the stored pixels were shown.

    Args:
        coarse: logits of the scaled picture.
        tiling: tiles on the stored pixels.
        numbers: tiles that were shown.
        tile_logits: their logits, as for `views.assemble`.

    Returns:
        The map on the cells of `coarse`, and the cells that were replaced, (h, w).
    """
    height, width = tiling.pixels.shape[:2]
    ones = np.ones_like(tile_logits[0])
    total, weight = (
        resampled(
            blend(tiling, logits, numbers)[: -(-height // STRIDE), : -(-width // STRIDE)],
            (height / STRIDE, width / STRIDE),
            coarse,
            PIL.Image.Resampling.BOX,
        )
        for logits in (tile_logits, [ones] * len(numbers))
    )
    shown = weight > 0
    cells = np.divide(total, weight, out=coarse.cells.copy(), where=shown)
    return replace(coarse, cells=cells), shown


def remaining(tiling: Tiling, scores: Sequence[float], shown: NDArray[np.bool_]) -> list[float]:
    """Return the scores of the scaled picture's tiles of which less than `COVERED` was shown."""
    height, width = (side // STRIDE for side in tiling.tile_shape)
    places = (tiling.place(number) for number in range(len(tiling)))
    corners = ((top // STRIDE, left // STRIDE) for top, left in places)
    shares = (shown[y : y + height, x : x + width].mean() for y, x in corners)
    return [score for score, share in zip(scores, shares, strict=True) if share < COVERED]


def _window(coarse: LogitMap, tiling: Tiling, number: int) -> Window:
    """Return the cells of a map that a tile on the stored pixels touches."""
    rows, columns = (
        slice(int(place * scale), int(np.ceil((place + side) * scale)))
        for place, side, scale in zip(
            tiling.place(number),
            tiling.tile_shape,
            (extent / stored for extent, stored in zip(coarse.extent, coarse.shape, strict=True)),
            strict=True,
        )
    )
    return rows, columns
