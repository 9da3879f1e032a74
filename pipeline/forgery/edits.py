"""Four manipulations: splice, copy-move, removal, retouch.

Each takes a square view and returns the view after the edit, (H, W, 3) uint8, and the opacity of
the edit, (H, W) float64, 0..1. Only pixels of an opacity above 0 differ.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from prompt_iml.pipeline.forgery.history import FRAME, SIDE, Floats, Pixels, rounded, smooth
from prompt_iml.pipeline.forgery.photos import Scene
from prompt_iml.pipeline.forgery.shapes import aim, area, opacity, sample_area, similarity

Edit = tuple[Pixels, Floats]


def splice(view: Scene, donor: Scene, scale: float | None, rng: np.random.Generator) -> Edit:
    """Paste another photograph's object, rotated, perhaps mirrored and matched in colour.

    Args:
        view: host.
        donor: object with its surroundings, and one outline.
        scale: scale of the object; None: sampled so that the area is one of `shapes.AREA`.
        rng: source of randomness.
    """
    side = len(view.pixels)
    (outline,) = donor.polygons
    if scale is None:
        wanted = sample_area(rng) * (side * SIDE / FRAME) ** 2
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
    return blend(view.pixels, patch, alpha), alpha


def copy_move(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
    """Copy a part of the view to another place in it; most often it is only shifted."""
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
    return blend(view.pixels, move.warp(view.pixels, side).astype(np.float64), alpha), alpha


def remove(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
    """Fill a hole with tones continued from around it, under detail from elsewhere or noise."""
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
    return blend(view.pixels, tones, alpha), alpha


def retouch(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
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
    return blend(view.pixels, patch, alpha), alpha


def _tones(pixels: Floats, sigma: float) -> Floats:
    """Approximate `smooth` for a large sigma: blurred at a fraction of the size, to be fast."""
    height, width = pixels.shape[:2]
    fraction = max(1, int(sigma / 2))
    small = _scaled(pixels, (-(-width // fraction), -(-height // fraction)))
    return _scaled(smooth(small, sigma / fraction), (width, height))


def _scaled(pixels: Floats, size: tuple[int, int]) -> Floats:
    """Resize (H, W, C) to `size` (width, height), without rounding."""
    channels = [
        Image.fromarray(channel.astype(np.float32)) for channel in pixels.transpose(2, 0, 1)
    ]
    scaled = [np.asarray(c.resize(size, Image.Resampling.BILINEAR), np.float64) for c in channels]
    return np.stack(scaled, 2)


def _match_colour(patch: Floats, host: Pixels, alpha: Floats, rng: np.random.Generator) -> Floats:
    """Shift the patch's mean colour towards the host's around the place."""
    around = (ndimage.maximum_filter(alpha, 15) > 0.5) & (alpha < 0.5)
    if not around.any() or not (alpha >= 0.5).any():
        return patch
    shift = host[around].mean(0) - patch[alpha >= 0.5].mean(0)
    matched: Floats = patch + rng.uniform(0.3, 1) * shift
    return matched


def blend(host: Pixels, patch: Floats, alpha: Floats) -> Pixels:
    """Return the host (H, W, 3) under a patch of the same shape and this opacity (H, W)."""
    return rounded(host + (patch - host) * alpha[..., None])
