"""Statistics of a whole picture, and the models that turn them into one score and into a mask.

    tile scores, mask logits -> `Statistics` -> features -> `ScoreModel` -> score logit
    histogram of mask logits, score logit -> `PixelModel` -> probabilities -> mask of highest F1

A scan and a calibration use the same statistics, which are a few hundred numbers a picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 16  # bins of a histogram for each unit of logit
LIMIT = 16  # logits beyond are counted in the outermost bins
CENTRES: Floats = (np.arange(2 * LIMIT * STEPS) + 0.5) / STEPS - LIMIT
AREAS = (0.25, 0.5, 0.75)  # probabilities; the share of the picture above each is a feature
FEATURES = (
    "max", "log_tiles", "log_mean_exp", "mean", "spread", "peak", "mean_probability",
    "area_25", "area_50", "area_75", "expected_f1", "log_megapixels",
)  # fmt: skip
LEAST_THRESHOLD = 1e-6
LEAST_SHARE = 1e-5  # added to a share of the picture, of which the logarithm is taken


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
        return fmean(max(view) for view in self.tiles)

    def features(self) -> dict[str, float]:
        """Return the features that a `ScoreModel` may weigh, by the names in `FEATURES`.

        Of the tiles' score logits: the largest, the logarithm of their number, the logarithm of
        the mean of their exponentials, mean and standard deviation. Of the map: its highest logit,
        the logarithms of its mean probability and of its shares above `AREAS`, and the expected F1
        of its best mask. The logarithm of the megapixels.
        """
        scores, share = np.array(self.tiles[0]), self.cells / self.cells.sum()
        probabilities = _sigmoid(CENTRES)
        areas = [share[probabilities > area].sum() for area in AREAS]
        values = [
            self.largest,
            math.log(len(scores)),
            _log_mean_exp(scores),
            scores.mean(),
            scores.std(),
            CENTRES[np.flatnonzero(self.cells)[-1]],
            *np.log(np.array([share @ probabilities, *areas]) + LEAST_SHARE),
            expected_f1(self.cells, probabilities),
            math.log(self.megapixels),
        ]
        return dict(zip(FEATURES, map(float, values), strict=True))


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

    def confidence(self, cells: NDArray[np.int64], score_logit: float) -> float:
        """Return the highest expected F1 of a mask, from the histogram of a picture's logits."""
        return expected_f1(cells, self.probabilities(CENTRES, score_logit))

    def calibrated(self, cells: NDArray[np.float32], score_logit: float) -> NDArray[np.float32]:
        """Return the calibrated logits of a map of mask logits."""
        shift = self.offset + self.score * score_logit
        return cells * np.float32(self.scale) + np.float32(shift)


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


def best_threshold(confidence: float) -> float:
    """Return the probability above which pixels make the mask of this expected F1, in (0, 1).

    It is half of the F1 (Lipton et al. 2014, arXiv 1402.1892).
    """
    return max(confidence / 2, LEAST_THRESHOLD)


def _log_mean_exp(values: Floats) -> float:
    largest = values.max()
    return float(largest + np.log(np.exp(values - largest).mean()))


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(values / 2))
    return result
