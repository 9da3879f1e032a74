"""Fitting of a policy's models on held-back images.

Both are logistic regressions in which authentic and forged images of one size class weigh the same,
and all sets among them: else the model would learn that large pictures are authentic, only because
photographs of full size are easier to have than forgeries. Images are divided into folds by
photograph, so that none is scored by a model that was fitted on another version of it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # whose parts load when they are first used
from numpy.typing import NDArray

from prompt_iml.engine.detection.score import CENTRES, PixelModel, ScoreModel
from prompt_iml.pipeline.evaluation.images import ImageResult
from prompt_iml.pipeline.evaluation.sets import size_class

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Features that the score model weighs; the others of `score.FEATURES` add nothing to these.
USED = ("max", "log_mean_exp")
FOLDS = 5
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights of standardised features
LEAST_IMAGES = 50  # of each class; with fewer the largest tile is the score
LEAST_SCALE = 1e-3  # of the pixel model, so that pixels that tell nothing keep their order


@dataclass(frozen=True, slots=True)
class FittedScore:
    """Score model, and how well it does on photographs that it was not fitted on.

    Attributes:
        model: fitted on all images.
        logits: (n,) logit of each image, from a model fitted without its photograph.
        penalty: chosen penalty of the squared weights.
    """

    model: ScoreModel
    logits: Floats
    penalty: float


def fit_score_model(
    results: Sequence[ImageResult], sets: Sequence[str], names: Sequence[str] = USED
) -> FittedScore | None:
    """Fit the score of an image to its features; the penalty has the best cross-validated loss.

    Args:
        results: authentic and forged images.
        sets: name of each image's set.
        names: features to weigh.

    Returns:
        None with fewer than `LEAST_IMAGES` of a class, or photographs, which support no model.
    """
    forged = np.array([each.forged for each in results], bool)
    photos = [each.photo for each in results]
    if min(forged.sum(), (~forged).sum(), len(set(photos))) < LEAST_IMAGES:
        return None
    features = [each.statistics.features() for each in results]
    x = np.array([[each[name] for name in names] for each in features])
    weights = _weights(results, sets)
    folds = np.array([zlib.crc32(photo.encode()) % FOLDS for photo in photos])
    tried = [_out_of_fold(x, forged, weights, folds, penalty) for penalty in PENALTIES]
    losses = [float(weights @ _losses(logits, forged)) for logits in tried]
    best = int(np.argmin(losses))
    coefficients, offset = fit_logistic(x, forged, weights, PENALTIES[best])
    model = ScoreModel(dict(zip(names, coefficients.tolist(), strict=True)), offset)
    return FittedScore(model, tried[best], PENALTIES[best])


def fit_pixel_model(results: Sequence[ImageResult], sets: Sequence[str]) -> PixelModel:
    """Fit the probability that a pixel is forged to its logit and to its image's `score_raw`.

    Forged images without a mask are left out.
    """
    known = [(e, s) for e, s in zip(results, sets, strict=True) if e.has_known_pixels]
    results, sets = [each for each, _ in known], [name for _, name in known]
    columns, targets, weights = [], [], []
    for each, weight in zip(results, _weights(results, sets), strict=True):
        used = np.flatnonzero(each.pixels)
        score = np.full(len(used), each.score_raw)
        columns.append(np.column_stack([CENTRES[used], score]))
        targets.append(each.hits[used] / each.pixels[used])
        weights.append(weight * each.pixels[used] / each.pixels.sum())
    x, target, weight = (np.concatenate(each) for each in (columns, targets, weights))
    (scale, score), offset = fit_logistic(x, target, weight, PENALTIES[0])
    return PixelModel(max(float(scale), LEAST_SCALE), offset, float(score))


def set_weights(forged: Mask, sets: Sequence[str], sizes: Sequence[int]) -> Floats:
    """Return (n,) weights that sum to one.

    A size class weighs as many images as it has. In each, authentic and forged images weigh the
    same, and so do the sets among the images of one truth. A class with images of one truth only
    weighs nothing, unless no class has both.
    """
    both = set(zip(sizes, forged.tolist(), strict=True))
    known = [(size, True) in both and (size, False) in both for size in sizes]
    if not any(known):
        known, sizes = [True] * len(known), [0] * len(known)
    groups = list(zip(sizes, forged.tolist(), sets, strict=True))
    images, images_of = Counter(groups), Counter(sizes)
    sets_of = Counter((size, truth) for size, truth, _ in images)
    weights = np.array(
        [
            use * images_of[group[0]] / sets_of[group[:2]] / images[group]
            for use, group in zip(known, groups, strict=True)
        ]
    )
    share: Floats = weights / weights.sum()
    return share


def _weights(results: Sequence[ImageResult], sets: Sequence[str]) -> Floats:
    forged = np.array([each.forged for each in results], bool)
    return set_weights(forged, sets, [size_class(e.statistics.megapixels) for e in results])


def fit_logistic(
    x: Floats, target: Floats | Mask, weights: Floats, penalty: float
) -> tuple[Floats, float]:
    """Fit a logistic regression by maximum likelihood.

    Args:
        x: (n, d) features; they are standardised for the fit.
        target: (n,) truth, or the share of it that holds, 0..1.
        weights: (n,) summing to one.
        penalty: of half the squared coefficients of the standardised features.

    Returns:
        Coefficients (d,) of the features as given, and the offset.
    """
    mean = weights @ x
    spread = np.maximum(np.sqrt(weights @ (x - mean) ** 2), 1e-6)
    z, y = (x - mean) / spread, np.asarray(target, np.float64)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slopes, logits = parameters[:-1], z @ parameters[:-1] + parameters[-1]
        error = weights * (0.5 * (1 + np.tanh(logits / 2)) - y)
        value = float(weights @ _losses(logits, y)) + penalty / 2 * float(slopes @ slopes)
        return value, np.append(error @ z + penalty * slopes, error.sum())

    fit = scipy.optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    coefficients = fit[:-1] / spread
    return coefficients, float(fit[-1] - coefficients @ mean)


def _losses(logits: Floats, target: Floats | Mask) -> Floats:
    losses: Floats = np.logaddexp(0, logits) - target * logits
    return losses


def _out_of_fold(
    x: Floats, forged: Mask, weights: Floats, folds: NDArray[np.int64], penalty: float
) -> Floats:
    """Return the logit (n,) of each image by the model of the other folds."""
    logits = np.zeros(len(x))
    for fold in np.unique(folds):
        inside = folds == fold
        rest = weights[~inside] / weights[~inside].sum()
        coefficients, offset = fit_logistic(x[~inside], forged[~inside], rest, penalty)
        logits[inside] = x[inside] @ coefficients + offset
    return logits
