"""Statistics of a whole picture, and the models that turn them into one score and into a mask.

    tile scores, mask logits -> `Statistics` -> features -> `ScoreModel` -> score logit
    histogram of mask logits, score logit -> `PixelModel` -> probabilities -> mask of highest F1

A scan and a calibration use the same statistics, which are a few hundred numbers a picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 16  # bins of a histogram for each unit of logit
LIMIT = 16  # logits beyond are counted in the outermost bins
CENTRES: Floats = (np.arange(2 * LIMIT * STEPS) + 0.5) / STEPS - LIMIT
AREAS = (0.25, 0.5, 0.75)  # probabilities; the share of the picture above each is a feature
LEAST_SHARE = 1e-5  # added to a share of the picture, of which the logarithm is taken


class Mask(NamedTuple):
    """Rule for the mask of one picture.

    Attributes:
        level: mask logits above it are in the mask.
        threshold: the same as a calibrated probability, half the expected F1.
        confidence: expected F1 of the mask, 0..1.
    """

    level: float
    threshold: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of the network's outputs for one picture.

    Attributes:
        tiles: score logits of the tiles of each view.
        cells: (n,) int64, cells of the map with a mask logit in each bin around `CENTRES`.
        megapixels: stored pixels of the picture, in millions.
    """

    tiles: tuple[tuple[float, ...], ...]
    cells: NDArray[np.int64]
    megapixels: float

    @property
    def largest(self) -> float:
        """Largest score logit of the tiles; of two views the mean."""
        return sum(max(view) for view in self.tiles) / len(self.tiles)

    def features(self) -> dict[str, float]:
        """Return all features that a `ScoreModel` may weigh, by name."""
        scores = np.array(self.tiles[0])
        share = self.cells / self.cells.sum()
        above = [math.log(share[CENTRES > _logit(area)].sum() + LEAST_SHARE) for area in AREAS]
        return {
            "max": self.largest,
            "log_tiles": math.log(len(scores)),
            "log_mean_exp": _log_mean_exp(scores),
            "mean": float(scores.mean()),
            "spread": float(scores.std()),
            "peak": float(CENTRES[np.flatnonzero(self.cells)[-1]]),
            "mean_probability": math.log(float(share @ _sigmoid(CENTRES)) + LEAST_SHARE),
            **{f"area_{area:g}": value for area, value in zip(AREAS, above, strict=True)},
            "expected_f1": expected_f1(self.cells, _sigmoid(CENTRES)),
            "log_megapixels": math.log(self.megapixels),
        }


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """Logistic model of a picture's features.

    Attributes:
        weights: weight of each feature, by its name.
        offset: added to the weighted sum.
    """

    weights: Mapping[str, float]
    offset: float

    def logit(self, features: Mapping[str, float]) -> float:
        """Return the logit of the probability that the picture was manipulated."""
        return self.offset + sum(w * features[name] for name, w in self.weights.items())


@dataclass(frozen=True, slots=True)
class PixelModel:
    """Calibration of pixels: probability = sigmoid(scale * logit + offset + score * score logit).

    Attributes:
        scale: above 0, so that the order of a picture's pixels is kept.
        offset: added.
        score: weight of the picture's score logit.
    """

    scale: float
    offset: float
    score: float = 0.0

    def probabilities(self, logits: Floats, score_logit: float) -> Floats:
        """Return the calibrated probabilities of mask logits in a picture with this score."""
        return _sigmoid(self.scale * logits + self.offset + self.score * score_logit)

    def best_mask(self, cells: NDArray[np.int64], score_logit: float) -> Mask:
        """Return the rule of highest expected F1 (Lipton et al. 2014, arXiv 1402.1892).

        Args:
            cells: histogram, as `Statistics.cells`.
            score_logit: of the picture.
        """
        confidence = expected_f1(cells, self.probabilities(CENTRES, score_logit))
        threshold = min(max(confidence / 2, 1e-6), 1 - 1e-6)
        level = (_logit(threshold) - self.offset - self.score * score_logit) / self.scale
        return Mask(level, threshold, confidence)


def histogram(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count mask logits, of any shape, in bins of 1 / `STEPS` around `CENTRES`."""
    bins = ((logits + np.float32(LIMIT)) * np.float32(STEPS)).astype(np.int32)
    np.clip(bins, 0, len(CENTRES) - 1, out=bins)
    return np.bincount(bins.ravel(), minlength=len(CENTRES))


def expected_f1(cells: NDArray[np.int64], probabilities: Floats) -> float:
    """Return the highest expected F1 of all masks above a threshold, 0..1.

    Args:
        cells: (n,) number of cells in each bin.
        probabilities: (n,) of a manipulated cell in each bin, ascending.
    """
    inside, expected = np.cumsum(cells[::-1]), np.cumsum((cells * probabilities)[::-1])
    return float((2 * expected / (inside + expected[-1])).max())


def _log_mean_exp(values: Floats) -> float:
    largest = values.max()
    return float(largest + np.log(np.exp(values - largest).mean()))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(values / 2))
    return result
