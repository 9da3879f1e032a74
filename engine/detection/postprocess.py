"""Turn a map of logits into a mask, its share of the image, and its regions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy  # whose parts load when they are first used
from numpy.typing import NDArray

from prompt_iml.engine.detection.views import LogitMap, Window, sigmoid, upsample

MAX_REGIONS = 16
CHUNK = 1 << 20  # pixels that are computed at a time

_EIGHT_CONNECTED = np.ones((3, 3), bool)


@dataclass(frozen=True, slots=True)
class Region:
    """Connected manipulated pixels (8-connected), in the stored frame.

    Attributes:
        x, y: left and top of the bounding box.
        width, height: size of the bounding box.
        area: number of manipulated pixels, at most width * height.
        mean_score, max_score: mean and maximum of these pixels' probabilities, 0..1.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    mean_score: float
    max_score: float


@dataclass(frozen=True, slots=True)
class Localization:
    """The manipulated pixels of an image.

    Attributes:
        mask: (H, W) bool at stored size; None when no pixel is manipulated.
        manipulated_fraction: share of the image's pixels in the mask, 0..1.
        regions: largest first, of equal ones the topmost; at most 16.
    """

    mask: NDArray[np.bool_] | None = None
    manipulated_fraction: float = 0.0
    regions: tuple[Region, ...] = ()


def localize(logits: LogitMap, mask_threshold: float) -> Localization:
    """Find the pixels with a probability above `mask_threshold`, in (0, 1).

    Only the window around cells above the threshold is computed at full size, since interpolation
    never exceeds the cells. Memory: 1 byte a pixel, and 4 a pixel inside that window.
    """
    level = math.log(mask_threshold / (1 - mask_threshold))
    window = _window_above(logits, level)
    if window is None:
        return Localization()
    mask = np.zeros(logits.shape, np.bool_)
    for strip in _strips(window):
        np.greater(upsample(logits, strip), level, out=mask[strip])
    area = np.count_nonzero(mask)
    if area == 0:
        return Localization()
    return Localization(mask, area / mask.size, _regions(mask[window], logits, window))


def _strips(window: Window) -> Iterator[Window]:
    """Yield the parts of a window that are computed at a time."""
    rows, columns = window
    step = max(1, CHUNK // (columns.stop - columns.start))
    for first in range(rows.start, rows.stop, step):
        yield slice(first, min(first + step, rows.stop)), columns


def _window_above(logits: LogitMap, level: float) -> Window | None:
    """Return the stored pixels that a cell above `level` can influence; None if there is none."""
    above = logits.cells > level
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    if rows.size == 0:
        return None
    return (
        _reach(int(rows[0]), int(rows[-1]), logits.extent[0], logits.shape[0]),
        _reach(int(columns[0]), int(columns[-1]), logits.extent[1], logits.shape[1]),
    )


def _reach(first: int, last: int, extent: float, size: int) -> slice:
    """Return the pixels of one axis whose interpolation uses any of the cells first..last."""
    support = max(1.0, extent / size)
    start = math.floor((first + 0.5 - support) * size / extent)
    stop = math.ceil((last + 0.5 + support) * size / extent)
    return slice(max(0, start), min(size, stop))


def _regions(mask: NDArray[np.bool_], logits: LogitMap, window: Window) -> tuple[Region, ...]:
    """Return the largest regions; `mask` is that of the window."""
    labels, count = scipy.ndimage.label(mask, _EIGHT_CONNECTED, output=np.int32)
    chunks = np.array_split(labels, -(-labels.size // CHUNK))  # bincount takes 8 bytes a pixel
    areas = np.sum([np.bincount(c.ravel(), minlength=count + 1) for c in chunks], axis=0)
    # Labels ascend in raster order, so a stable sort breaks ties by the topmost first pixel.
    largest = np.argsort(-areas[1:], kind="stable")[:MAX_REGIONS]
    boxes = scipy.ndimage.find_objects(labels)
    return tuple(_region(labels, int(k) + 1, boxes[k], logits, window) for k in largest)


def _region(
    labels: NDArray[np.int32], label: int, box: Window, logits: LogitMap, window: Window
) -> Region:
    """Measure a region of the window; its box is within the window."""
    rows, columns = (
        slice(outer.start + inner.start, outer.start + inner.stop)
        for outer, inner in zip(window, box, strict=True)
    )
    first, area, total, highest = 0, 0, 0.0, 0.0
    for strip in _strips((rows, columns)):
        values = upsample(logits, strip)
        scores = values[labels[box][first : first + len(values)] == label]
        first += len(values)
        sigmoid(scores, out=scores)
        area += scores.size
        total += float(scores.sum(dtype=np.float64))
        highest = max(highest, float(scores.max(initial=0)))
    return Region(
        x=columns.start,
        y=rows.start,
        width=columns.stop - columns.start,
        height=rows.stop - rows.start,
        area=area,
        mean_score=total / area,
        max_score=highest,
    )
