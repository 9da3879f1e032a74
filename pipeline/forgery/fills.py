"""Fills of a hole, where something is removed from a picture, and strokes of a clone stamp.

S: side of the view. A hole is (S, S) bool; the fills return (S, S, 3) float64 and leave to the
caller what is outside the hole.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from prompt_iml.pipeline.forgery.blending import Mask, Values, membrane, scaled
from prompt_iml.pipeline.forgery.history import Floats, Pixels, smooth

CANDIDATES = 16  # places that a patch-based fill compares
STRIDE = 3  # pixels between those that it compares


def continued(host: Pixels, hole: Mask, rng: np.random.Generator) -> Floats:
    """Continue the tones around the hole, under detail from elsewhere or noise."""
    known = (~hole[..., None]).astype(np.float64)
    sigma = hole.sum() ** 0.5 / 4 + 2
    tones = _tones(host * known, sigma) / np.maximum(_tones(known, sigma), 1e-4)
    if rng.random() < 0.7:
        dy, dx = (int(s) for s in rng.integers(len(host) // 4, len(host) // 2, 2))
        texture = np.roll(host, (dy, dx), (0, 1)).astype(np.float64)
        return tones + texture - _tones(texture, sigma)
    return tones + rng.normal(0, rng.uniform(0, 4), tones.shape)


def diffused(host: Pixels, hole: Mask, rng: np.random.Generator) -> Floats:
    """Diffuse the colours at the hole's edge into it, and perhaps add the host's noise."""
    filled = membrane(host.astype(np.float32), ~hole).astype(np.float64)
    if rng.random() < 0.5:
        # A Laplacian's standard deviation is sqrt(20) times that of white noise; the median is
        # robust against edges.
        detail = np.abs(ndimage.laplace(host[::2, ::2, 1].astype(np.float64)))
        sigma = float(np.median(detail)) / 0.6745 / 20**0.5
        filled += rng.normal(0, min(sigma, 8), filled.shape)
    return filled


def shifted(host: Pixels, hole: Mask, rng: np.random.Generator) -> Floats:
    """Take what is beside the hole, with the least shift in a random direction that clears it."""
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    low, high = (np.array([ends[i] for ends in (rows, columns)]) for i in (0, -1))
    extent = (high - low + 1) * rng.uniform(1.02, 1.3)
    room = np.array([*(low - extent), *(len(host) - 1 - high - extent)])  # up, left, down, right
    way = int(rng.choice(np.flatnonzero(room >= 0))) if (room >= 0).any() else int(room.argmax())
    shift = np.zeros(2, int)
    shift[way % 2] = round(extent[way % 2]) * (1 if way < 2 else -1)
    return np.roll(host, tuple(shift), (0, 1)).astype(np.float64)


def patched(host: Pixels, hole: Mask, rng: np.random.Generator) -> Floats:
    """Fill the hole by tiles from places nearby that are most like what diffusion puts there."""
    guide = membrane(host.astype(np.float32), ~hole)
    filled = guide.astype(np.float64)
    side = int(np.clip(hole.sum() ** 0.5 / 2, 12, 64))
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    for top in range(rows[0], rows[-1] + 1, side):
        for left in range(columns[0], columns[-1] + 1, side):
            window = _window(top, left, side, len(host))
            if hole[window].any():
                rows_from, columns_from = _most_alike(host, guide, hole, window, rng)
                filled[window] = host[rows_from, columns_from]
    return filled


def stroke(outline: Floats, side: int, rng: np.random.Generator) -> Floats:
    """Return the opacity (side, side) of a soft round brush, dragged about within an outline."""
    low, extent = outline.min(0), np.ptp(outline, axis=0)
    points = low + rng.uniform(0, 1, (int(rng.integers(2, 6)), 2)) * extent
    width = max(4.0, float(extent.min()) * rng.uniform(0.25, 0.6))
    stencil = Image.new("L", (side, side))
    draw = ImageDraw.Draw(stencil)
    draw.line([(x, y) for x, y in points], fill=1, width=round(width), joint="curve")
    for x, y in points:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
    softness = rng.uniform(0.5, min(4.0, width / 4))
    opacity: Floats = ndimage.gaussian_filter(np.asarray(stencil, np.float64), softness)
    return opacity


def _window(top: int, left: int, side: int, limit: int) -> tuple[slice, slice]:
    """Return a square of `side`, moved into the view where it would leave it."""
    top, left = min(top, limit - side), min(left, limit - side)
    return slice(top, top + side), slice(left, left + side)


def _most_alike(
    host: Pixels, guide: Values, hole: Mask, window: tuple[slice, slice], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Return the window, of some that are sampled nearby, that differs least from the guide and
    has the least of the hole in it."""
    side, limit = window[0].stop - window[0].start, len(host)
    wanted = guide[window][::STRIDE, ::STRIDE]
    reach = min(6 * side, limit)
    best, least = window, np.inf
    start = np.array([part.start for part in window])
    for corner in start + rng.integers(-reach, reach + 1, (CANDIDATES, 2)):
        top, left = (int(c) for c in corner.clip(0, limit - side))
        place = _window(top, left, side, limit)
        pixels = host[place][::STRIDE, ::STRIDE].astype(np.float32)
        error = np.abs(pixels - wanted).mean() + 1000 * hole[place][::STRIDE, ::STRIDE].mean()
        if error < least:
            best, least = place, error
    return best


def _tones(pixels: Floats, sigma: float) -> Floats:
    """Approximate `smooth` for a large sigma: blurred at a fraction of the size, to be fast."""
    height, width = pixels.shape[:2]
    fraction = max(1, int(sigma / 2))
    small = scaled(pixels, (-(-width // fraction), -(-height // fraction)))
    return scaled(smooth(small.astype(np.float64), sigma / fraction), (width, height)).astype(float)
