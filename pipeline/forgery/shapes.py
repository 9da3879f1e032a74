"""Outlines of manipulated regions: sampled, moved, filled. Polygons are (n, 2) float64 (x, y)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from prompt_iml.pipeline.forgery.history import FRAME, SIDE, Floats, Pixels

AREA = (0.02, 0.30)  # smallest and largest of a region, in parts of the crop


@dataclass(frozen=True, slots=True)
class Move:
    """Similarity from source to target: `target = matrix @ (source - start) + end`."""

    matrix: Floats
    start: Floats
    end: Floats

    def points(self, polygon: Floats) -> Floats:
        """Map points (n, 2) of the source to the target."""
        return (polygon - self.start) @ self.matrix.T + self.end

    def whole(self) -> Move:
        """Round to whole pixels: where the matrix is the identity, nothing is resampled."""
        return Move(self.matrix, self.start, self.start + np.rint(self.end - self.start))

    def warp(self, pixels: Pixels, side: int) -> Pixels:
        """Resample the source into a target of side x side."""
        inverse = np.linalg.inv(self.matrix)
        offset = self.start - inverse @ self.end
        coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
        return np.asarray(
            Image.fromarray(pixels).transform(
                (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
            )
        )


def aim(outline: Floats, matrix: Floats, side: int, rng: np.random.Generator) -> Move:
    """Sample a move that keeps the outline's box where every crop of the frame sees most of it."""
    start = (outline.min(0) + outline.max(0)) / 2
    reach = np.ptp((outline - start) @ matrix.T, axis=0) / 2
    margin = np.minimum(reach, 0.3 * side) + side * (FRAME - SIDE) / FRAME / 2
    return Move(matrix, start, rng.uniform(margin, side - margin))


def similarity(scale: float, angle: float, mirrored: bool) -> Floats:
    """Return the (2, 2) matrix that mirrors left to right, rotates by `angle` radians, scales."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[-c, -s], [-s, c]]) if mirrored else np.array([[c, -s], [s, c]])


def placed(shape: Floats, side: int, rng: np.random.Generator) -> Floats:
    """Scale a shape to a sampled area and move it to a random place of a side x side view."""
    scale = (sample_area(rng) * (side * SIDE / FRAME) ** 2 / max(area(shape), 1e-6)) ** 0.5
    scale = min(scale, 0.7 * side / float(np.ptp(shape, axis=0).max()))
    return aim(shape, similarity(scale, 0.0, mirrored=False), side, rng).points(shape)


def free_shape(rng: np.random.Generator) -> Floats:
    """Sample a polygon (64, 2): an ellipse bent by a few waves."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for wave in (2, 3, 4, 5):
        radius += rng.normal(0, 0.3 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.3)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle) * rng.uniform(0.5, 1)], 1)


def sample_area(rng: np.random.Generator) -> float:
    """Sample an area in parts of the crop; small ones are more frequent."""
    return float(np.exp(rng.uniform(*np.log(AREA))))


def area(polygon: Floats) -> float:
    """Return the area of a polygon by the shoelace formula."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def fits(polygon: Floats, side: int) -> bool:
    """Return whether an object lies in the view and has an area within `AREA`."""
    share = area(polygon) / side**2
    inside = polygon.min() >= 0 and polygon.max() <= side
    return bool(inside and AREA[0] <= share <= AREA[1])


def label_shape(outline: Floats, side: int, rng: np.random.Generator) -> Floats:
    """Sample a wide, low box of at most the outline's area around its middle, within the view."""
    ratio = rng.uniform(2.5, 7)
    height = np.clip((area(outline) / ratio) ** 0.5, 9, side / 8)
    extent = np.array([min(height * ratio, 0.7 * side), height])
    middle = (outline.min(0) + outline.max(0)) / 2
    low = np.clip(middle - extent / 2, 2, side - 3 - extent)
    box: Floats = low + np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * extent
    return box


def filled(polygon: Floats, side: int) -> NDArray[np.bool_]:
    """Return the pixels (side, side) of a polygon."""
    stencil = Image.new("L", (side, side))
    ImageDraw.Draw(stencil).polygon([(x, y) for x, y in polygon - 0.5], fill=1)
    return np.asarray(stencil, bool)


def opacity(polygon: Floats, side: int, rng: np.random.Generator) -> Floats:
    """Return the opacity (side, side), 0..1, of a filled polygon, feathered in most cases."""
    alpha = filled(polygon, side).astype(np.float64)
    sigma = rng.uniform(0.4, 2) if rng.random() < 0.6 else 0.0
    return ndimage.gaussian_filter(alpha, sigma) if sigma else alpha
