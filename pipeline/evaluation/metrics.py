"""Metrics: pure functions of scores and truth.

Localisation metrics use the *origin* form: a prediction is compared with the mask itself, not with
the better of the mask and its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose parts load when they are first used
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]

BINS = 10  # equally wide bins of a reliability table


@dataclass(frozen=True, slots=True)
class Sweep:
    """Counts over one image's pixels for every threshold.

    Attributes:
        logits: (n,) distinct pixel logits, highest first.
        masked: (n,) int64, pixels whose logit is at least as high.
        hits: (n,) int64, forged pixels among them.
        pixels, forged: number of pixels, and of forged pixels, of the image.
    """

    logits: Floats
    masked: NDArray[np.int64]
    hits: NDArray[np.int64]
    pixels: int
    forged: int


def sweep(logits: Floats, truth: Mask) -> Sweep:
    """Sort the pixels of an image by their (H, W) logits and count those of the (H, W) truth."""
    order = np.argsort(-logits, axis=None, kind="stable")
    ranked = logits.ravel()[order]
    hits = np.cumsum(truth.ravel()[order], dtype=np.int64)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each run of ties
    return Sweep(ranked[last], last + 1, hits[last], ranked.size, int(hits[-1]))


def best_f1(pixels: Sweep) -> float:
    """Return the highest pixel F1 over all thresholds; nan if no pixel is forged."""
    if not pixels.forged:
        return math.nan
    return float((2 * pixels.hits / (pixels.masked + pixels.forged)).max())


def pixel_auc(pixels: Sweep) -> float:
    """Return the area under the ROC curve of the pixels, ties counting half; nan for one class."""
    clean = pixels.pixels - pixels.forged
    if not pixels.forged or not clean:
        return math.nan
    hits = np.concatenate([[0], pixels.hits])
    alarms = np.concatenate([[0], pixels.masked - pixels.hits])
    return float(np.trapezoid(hits / pixels.forged, alarms / clean))


def f1_at(pixels: Sweep, levels: Floats) -> Floats:
    """Return (n,) pixel F1 of masks above each of (n,) logits; nan if no pixel is forged."""
    if not pixels.forged:
        return np.full(len(levels), math.nan)
    masked, hits = _counts(pixels, levels)
    f1: Floats = 2 * hits / (masked + pixels.forged)
    return f1


def masked_at(pixels: Sweep, levels: Floats) -> Floats:
    """Return (n,) shares of the image's pixels with logits above each of (n,) levels."""
    fraction: Floats = _counts(pixels, levels)[0] / pixels.pixels
    return fraction


def _counts(pixels: Sweep, levels: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above = np.searchsorted(-pixels.logits, -levels, "left")  # distinct logits above the level
    masked = np.concatenate([[0], pixels.masked])[above]
    return masked, np.concatenate([[0], pixels.hits])[above]


@dataclass(frozen=True, slots=True)
class Bin:
    """Bin of a reliability table; both classes have a total weight of one half.

    Attributes:
        low, high: range of scores.
        images: number of images.
        weight: weight of these images.
        score: weighted mean of their scores.
        forged: weighted share of forged images.
    """

    low: float
    high: float
    images: int
    weight: float
    score: float
    forged: float


def reliability(scores: Floats, forged: Mask, bins: int = BINS) -> list[Bin]:
    """Return the share of forged images per bin of the scores; empty bins are left out.

    Each class has a total weight of one half, as in the calibration, because a score is a
    probability with equal priors.
    """
    if forged.all() or not forged.any():
        return []
    weights = balanced(forged)
    index = np.minimum((scores * bins).astype(int), bins - 1)
    table = []
    for number in np.unique(index):
        inside = index == number
        weight = float(weights[inside].sum())
        table.append(
            Bin(
                low=int(number) / bins,
                high=(int(number) + 1) / bins,
                images=int(inside.sum()),
                weight=weight,
                score=float((weights * scores)[inside].sum()) / weight,
                forged=float(weights[inside & forged].sum()) / weight,
            )
        )
    return table


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """Return the mean distance of score and share of forged images; nan for an empty table."""
    if not table:
        return math.nan
    return sum(each.weight * abs(each.score - each.forged) for each in table)


def balanced(forged: Mask) -> NDArray[np.float64]:
    """Return (n,) weights that sum to one half in each class."""
    weights: NDArray[np.float64] = np.where(forged, 0.5 / forged.sum(), 0.5 / (~forged).sum())
    return weights


def interval(count: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a rate, `count` of `images` (Clopper-Pearson)."""
    low = float(scipy.stats.beta.ppf(0.025, count, images - count + 1)) if count else 0.0
    return low, float(
        scipy.stats.beta.ppf(0.975, count + 1, images - count)
    ) if count < images else 1.0


def without_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace nan by None, as JSON has no nan."""
    return {name: None if value != value else value for name, value in fields.items()}


def mean(values: Sequence[float] | Floats) -> float:
    """Return the mean of the values that are not nan; nan when there are none."""
    array = np.asarray(values, np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if len(known) else math.nan
