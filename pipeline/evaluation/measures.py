"""The numbers themselves: pure functions of scores and truth.

All of localisation is in the *origin* form: what is flagged is held against the mask as it is,
never against its inverse, and never the better of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]

BINS = 10  # of a reliability table, equally wide


@dataclass(frozen=True, slots=True)
class Sweep:
    """One image's pixels at every threshold at once.

    Attributes:
        logits: (n,) the image's distinct pixel logits, highest first.
        flagged: (n,) int64, pixels whose logit is at least as high.
        hits: (n,) int64, those of them that are forged.
        pixels, forged: all of the image's, and the forged among them.
    """

    logits: Floats
    flagged: NDArray[np.int64]
    hits: NDArray[np.int64]
    pixels: int
    forged: int


def sweep(logits: Floats, truth: Mask) -> Sweep:
    """Sort an image's pixels once: (H, W) logits and (H, W) truth, in any range."""
    order = np.argsort(-logits, axis=None, kind="stable")
    ranked = logits.ravel()[order]
    hits = np.cumsum(truth.ravel()[order], dtype=np.int64)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each run of ties
    return Sweep(ranked[last], last + 1, hits[last], ranked.size, int(hits[-1]))


def best_f1(pixels: Sweep) -> float:
    """Highest pixel F1 that any one threshold reaches on this image; nan if none is forged."""
    if not pixels.forged:
        return math.nan
    return float((2 * pixels.hits / (pixels.flagged + pixels.forged)).max())


def pixel_auc(pixels: Sweep) -> float:
    """Area under the ROC curve of one image's pixels, ties counting half; nan for one class."""
    clean = pixels.pixels - pixels.forged
    if not pixels.forged or not clean:
        return math.nan
    hits = np.concatenate([[0], pixels.hits])
    alarms = np.concatenate([[0], pixels.flagged - pixels.hits])
    return float(np.trapezoid(hits / pixels.forged, alarms / clean))


def f1_at(pixels: Sweep, levels: Floats) -> Floats:
    """(n,) pixel F1 where logits above each of (n,) levels are flagged; nan if none is forged."""
    if not pixels.forged:
        return np.full(len(levels), math.nan)
    flagged, hits = _counts(pixels, levels)
    f1: Floats = 2 * hits / (flagged + pixels.forged)
    return f1


def flagged_at(pixels: Sweep, levels: Floats) -> Floats:
    """(n,) share of the image's pixels with logits above each of (n,) levels."""
    fraction: Floats = _counts(pixels, levels)[0] / pixels.pixels
    return fraction


def _counts(pixels: Sweep, levels: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above = np.searchsorted(-pixels.logits, -levels, "left")  # distinct logits above the level
    flagged = np.concatenate([[0], pixels.flagged])[above]
    return flagged, np.concatenate([[0], pixels.hits])[above]


@dataclass(frozen=True, slots=True)
class Bin:
    """One line of a reliability table.

    Attributes:
        low, high: of the scores in it.
        images: how many.
        weight: their share of all images, each class weighing one half.
        score: their mean score.
        forged: the share of them that is forged. Both means weigh the classes alike.
    """

    low: float
    high: float
    images: int
    weight: float
    score: float
    forged: float


def reliability(scores: Floats, forged: Mask, bins: int = BINS) -> list[Bin]:
    """How often images are forged that score so much; bins without images are left out.

    The classes weigh one half each, whatever their numbers, as in the calibration: a score is a
    probability at even odds, and how many authentic images a set holds is its maker's choice.
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
    """Mean distance of score and share of forged over a reliability table; nan when empty."""
    if not table:
        return math.nan
    return sum(each.weight * abs(each.score - each.forged) for each in table)


def balanced(forged: Mask) -> NDArray[np.float64]:
    """(n,) weights that sum to 1, one half a class."""
    weights: NDArray[np.float64] = np.where(forged, 0.5 / forged.sum(), 0.5 / (~forged).sum())
    return weights


def without_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which does not know nan: None instead."""
    return {name: None if value != value else value for name, value in fields.items()}


def mean(values: Sequence[float] | Floats) -> float:
    """Mean of the values that are not nan; nan when there are none."""
    array = np.asarray(values, np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if len(known) else math.nan
