"""Four manipulations: splice, copy-move, removal, retouch.

Each takes a square view and returns the view after the edit, (H, W, 3) uint8, and the opacity of
the edit, (H, W) float64, 0..1. Only pixels of an opacity above 0 differ.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from prompt_iml.pipeline.forgery.blending import Mask, blend, harmonised, poisson
from prompt_iml.pipeline.forgery.fills import continued, diffused, patched, shifted, stroke
from prompt_iml.pipeline.forgery.history import FRAME, SIDE, Floats, Pixels, choose, smooth
from prompt_iml.pipeline.forgery.photos import Scene
from prompt_iml.pipeline.forgery.shapes import (
    Move,
    aim,
    area,
    filled,
    label_shape,
    opacity,
    sample_area,
    similarity,
)

Edit = tuple[Pixels, Floats]

COPIES = (0.8, 0.13, 0.07)  # shares of copy-moves with one copy, two, three
LARGEST_COPIED = 0.08  # largest part of a view that is copied several times
CHARACTERS = "0123456789ABCDEFGHKLMNPRSTUVXYZabcdefghiklmnoprstuvz.,:-/ "


def splice(view: Scene, donor: Scene, scale: float | None, rng: np.random.Generator) -> Edit:
    """Paste another photograph's object: rotated, perhaps mirrored, its colours or gradients
    matched.

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
    if rng.random() < 0.2:
        return _cloned(view.pixels, donor.pixels, move, filled(move.points(outline), side), rng)
    patch = move.warp(donor.pixels, side).astype(np.float64)
    alpha = opacity(move.points(outline), side, rng)
    if rng.random() < 0.5:
        patch = harmonised(patch, view.pixels, alpha, rng)
    return blend(view.pixels, patch, alpha), alpha


def copy_move(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
    """Copy a part of the view to other places in it, or stamp along a path; most often it is only
    shifted."""
    if rng.random() < 0.15:
        return _stamp(view, outline, rng)
    pixels, total = view.pixels, np.zeros(view.pixels.shape[:2])
    small = area(outline) < LARGEST_COPIED * total.size
    for _ in range(choose((1, 2, 3), rng, COPIES) if small else 1):
        copied, alpha = _copy(view, outline, pixels, rng)
        pixels, total = copied, np.maximum(total, alpha)
    return pixels, total


def remove(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
    """Fill a hole, the place of an object or label, as forgers and their programs do."""
    side = len(view.pixels)
    if rng.random() < 0.2:
        outline = label_shape(outline, side, rng)
    alpha = opacity(outline, side, rng)
    hole = ndimage.maximum_filter(alpha, 5) >= 0.1
    fill = choose((continued, diffused, shifted, patched), rng, (0.25, 0.2, 0.3, 0.25))
    patch = fill(view.pixels, hole, rng)
    if fill in (shifted, patched) and rng.random() < 0.5:
        return poisson(view.pixels, patch, hole), hole.astype(np.float64)
    return blend(view.pixels, patch, alpha), alpha


def retouch(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
    """Blur, sharpen, add noise to, or change the tone and colour of, one place, or write on it."""
    how = rng.integers(6)
    if how >= 4:
        return _write(view.pixels, label_shape(outline, len(view.pixels), rng), rng)
    alpha = opacity(outline, len(view.pixels), rng)
    patch = view.pixels.astype(np.float64)
    if how == 0:
        patch = smooth(patch, rng.uniform(1, 3))
    elif how == 1:
        patch += rng.uniform(1, 3) * (patch - smooth(patch, 1.5))
    elif how == 2:
        patch += rng.normal(0, rng.uniform(5, 15), patch.shape)
    else:
        patch = patch * rng.uniform(0.6, 1.4) + rng.normal(0, 25, 3)
    return blend(view.pixels, patch, alpha), alpha


def _copy(view: Scene, outline: Floats, onto: Pixels, rng: np.random.Generator) -> Edit:
    """Copy a part of the view onto a picture of the view's size."""
    side = len(onto)
    resized, turned, mirrored = rng.random(3) < (0.35, 0.3, 0.25)
    scale = float(rng.uniform(0.7, 1.4)) if resized else 1.0
    matrix = similarity(scale, rng.normal(0, 0.3) if turned else 0.0, bool(mirrored))
    moves = [aim(outline, matrix, side, rng) for _ in range(8)]
    move = max(moves, key=lambda move: min(np.abs(move.end - move.start).max(), side / 3))
    if not (resized or turned or mirrored):
        move = move.whole()
    if rng.random() < 0.12:
        return _cloned(onto, view.pixels, move, filled(move.points(outline), side), rng)
    alpha = opacity(move.points(outline), side, rng)
    alpha[~_covered(move, view.pixels, side)] = 0  # no black corners
    patch = move.warp(view.pixels, side).astype(np.float64)
    if rng.random() < 0.15:
        patch = harmonised(patch, onto, alpha, rng)
    return blend(onto, patch, alpha), alpha


def _stamp(view: Scene, outline: Floats, rng: np.random.Generator) -> Edit:
    """Drag a clone stamp, whose source is at a constant distance, within an outline."""
    side = len(view.pixels)
    alpha = stroke(outline, side, rng)
    shift = rng.integers(side // 10, side // 3, 2) * rng.choice((-1, 1), 2)
    for axis in (0, 1):  # the source, at -shift, turns back where it would leave the view
        low, high = np.flatnonzero(alpha.any(1 - axis))[[0, -1]] - shift[axis]
        if low < 0 or high >= side:
            shift[axis] *= -1
    source = np.arange(side)[:, None] - shift
    alpha[~np.outer(*((source >= 0) & (source < side)).T)] = 0
    patch = np.roll(view.pixels, tuple(shift), (0, 1)).astype(np.float64)
    return blend(view.pixels, patch, alpha), alpha


def _cloned(
    host: Pixels, donor: Pixels, move: Move, region: Mask, rng: np.random.Generator
) -> Edit:
    """Blend what is moved into a region by its gradients, or by the stronger of both."""
    side = len(host)
    # Gradients reach one pixel beyond the region, and so must the donor.
    region = region & ndimage.binary_erosion(_covered(move, donor, side))
    if not region.any():
        return host, np.zeros((side, side))
    patch = move.warp(donor, side).astype(np.float64)
    return poisson(host, patch, region, bool(rng.random() < 0.25)), region.astype(np.float64)


def _covered(move: Move, donor: Pixels, side: int) -> Mask:
    """Return where the moved donor has pixels, (side, side)."""
    covered: Mask = move.warp(np.full_like(donor[..., 0], 255), side) == 255
    return covered


def _write(host: Pixels, box: Floats, rng: np.random.Generator) -> Edit:
    """Write a line of text in a box, on what is there or after wiping it out."""
    side, (width, height) = len(host), np.ptp(box, axis=0)
    stencil = Image.new("L", (side, side))
    size = float(height * 0.7)
    count = max(1, round(width / size * 1.8))
    words = "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), count))
    at = (float(box[:, 0].mean()), float(box[:, 1].mean()))
    ImageDraw.Draw(stencil).text(at, words, 255, ImageFont.load_default(size), "mm")
    inside = filled(box, side)
    glyphs = np.asarray(stencil, np.float64) / 255 * inside
    ink = rng.uniform(0, 255, 3) if rng.random() < 0.4 else np.full(3, choose((10.0, 245.0), rng))
    wiped = rng.random() < 0.5
    under = diffused(host, inside, rng) if wiped else host.astype(np.float64)
    written = under + glyphs[..., None] * (ink - under)
    # A word is one region, as a reviewer would mark it.
    word = ndimage.binary_closing(glyphs > 0, iterations=max(1, round(size / 10)))
    alpha = inside if wiped else word | (glyphs > 0)
    return blend(host, written, alpha.astype(np.float64)), alpha.astype(np.float64)
