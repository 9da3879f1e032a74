"""Calibration of a policy: probabilities, and thresholds at given rates, from held-back images.

    score logits, truth -> Platt scaling -> scores
    scores of the authentic -> manipulated_at, at a false-positive rate
    scores of the forged    -> authentic_below, at a miss rate
    pixels                  -> mask_threshold and mask_share: best F1, at a rate of masked
                               authentic images

Each class weighs one half in the scaling, so a score is a probability with equal priors. Where one
image in a thousand of an archive is forged, the odds of a score are a thousand times lower; the
rates do not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import beta

from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.policy import Policy
from prompt_iml.pipeline.evaluation.comparison import MASKED_FRACTION, auc
from prompt_iml.pipeline.evaluation.images import ImageResult
from prompt_iml.pipeline.evaluation.metrics import (
    Bin,
    balanced,
    expected_calibration_error,
    mean,
    reliability,
    without_nan,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Candidates for a policy's mask_threshold and mask_share.
THRESHOLDS = np.concatenate([np.arange(5, 100, 5), [96, 97, 98, 99]]) / 100
SHARES = (0.0, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)

LEAST_SLOPE = 1e-3  # for standardised logits, so that an uninformative score keeps its order


@dataclass(frozen=True, slots=True)
class Targets:
    """Target rates of a policy, and its limits.

    Attributes:
        false_positive_rate: highest share of the authentic images labelled manipulated.
        miss_rate: highest share of the forged images labelled authentic.
        flagged_rate: highest share of the authentic images with more than 0.5 % of their pixels
            masked.
        min_side, min_jpeg_quality: images below are `uncertain`; None: no limit.
    """

    false_positive_rate: float = 0.01
    miss_rate: float = 0.05
    flagged_rate: float = 1.0
    min_side: int | None = None
    min_jpeg_quality: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrated policy, with its rates on the images of the calibration.

    Attributes:
        policy: policy with calibration and thresholds.
        forged, authentic: images of the calibration, times the perturbations.
        beyond: images outside the limits, which are left out.
        image_auc: AUC of the score.
        ece: expected calibration error; `reliability` is the table behind it.
        false_positive_rate: share of the authentic labelled manipulated.
        false_positive_bound: upper bound of that rate at 97.5 % confidence (Clopper-Pearson) for
            independent images; perturbed versions of one photograph are not independent.
        true_positive_rate: share of the forged labelled manipulated.
        miss_rate: share of the forged labelled authentic.
        f1: mean pixel F1 of the masks.
        flagged_rate: share of the authentic with more than 0.5 % of their pixels masked.
    """

    policy: Policy
    forged: int
    authentic: int
    beyond: int
    image_auc: float
    ece: float
    false_positive_rate: float
    false_positive_bound: float
    true_positive_rate: float
    miss_rate: float
    f1: float
    flagged_rate: float
    reliability: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with None for nan."""
        return without_nan(asdict(self))


@dataclass(frozen=True, slots=True)
class Group:
    """Rates of a policy on one set under one perturbation; a share of no images is nan.

    Attributes:
        set, perturbation: names.
        forged, authentic: images within the policy's limits.
        false_positive_rate: share of the authentic labelled manipulated.
        true_positive_rate: share of the forged labelled manipulated.
    """

    set: str
    perturbation: str
    forged: int
    authentic: int
    false_positive_rate: float
    true_positive_rate: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with None for nan."""
        return without_nan(asdict(self))


def claim_all(targets: Targets) -> Policy:
    """Return a policy that labels every image within the limits, to evaluate before calibration."""
    return Policy(
        "uncalibrated",
        manipulated_at=0.0,
        authentic_below=0.0,
        min_side=targets.min_side,
        min_jpeg_quality=targets.min_jpeg_quality,
    )


def make_policy(results: Sequence[ImageResult], targets: Targets, name: str) -> Calibration:
    """Choose calibration and thresholds on images evaluated with `claim_all`.

    Raises:
        UsageError: there are no forged or no authentic images, or no threshold keeps the rate.
    """
    within = [each for each in results if each.label != "uncertain"]
    forged = np.array([each.forged for each in within], bool)
    if forged.all() or not forged.any():
        raise UsageError("a calibration needs forged and authentic images: add the missing kind")
    logits = np.array([each.score_raw for each in within])
    scale, offset = fit_platt(logits, forged)
    policy = Policy(
        name, scale, offset, min_side=targets.min_side, min_jpeg_quality=targets.min_jpeg_quality
    )
    scores = np.array([policy.score(logit) for logit in logits])
    at = false_positive_threshold(scores[~forged], targets.false_positive_rate)
    mask_threshold, mask_share = choose_mask_rule(within, targets.flagged_rate)
    policy = replace(
        policy,
        manipulated_at=at,
        authentic_below=min(at, miss_threshold(scores[forged], targets.miss_rate)),
        mask_threshold=mask_threshold,
        mask_share=mask_share,
        false_positive_rate=float((scores[~forged] >= at).mean()),
    )
    return _measure(policy, within, scores, len(results) - len(within))


def group_rates(
    policy: Policy, results: Sequence[ImageResult], name: str, perturbation: str
) -> Group:
    """Return the rates of one group, which may differ from the rates over all images."""
    within = [each for each in results if each.label != "uncertain"]
    labels = [policy.label(policy.score(each.score_raw))[0] for each in within]
    alarms = {
        forged: [
            label == "manipulated"
            for label, each in zip(labels, within, strict=True)
            if each.forged == forged
        ]
        for forged in (True, False)
    }
    return Group(
        set=name,
        perturbation=perturbation,
        forged=len(alarms[True]),
        authentic=len(alarms[False]),
        false_positive_rate=mean(alarms[False]),
        true_positive_rate=mean(alarms[True]),
    )


def fit_platt(logits: Floats, forged: Mask) -> tuple[float, float]:
    """Fit scale and offset of a logistic curve by maximum likelihood (Platt 1999).

    Platt's targets: a class of n images aims at (n + 1) / (n + 2), never at certainty. Both
    classes have equal weight.

    Args:
        logits: (n,) finite.
        forged: (n,), both classes present.
    """
    centre, spread = float(logits.mean()), max(float(logits.std()), 1e-6)
    x = (logits - centre) / spread
    counts = np.where(forged, forged.sum(), (~forged).sum())
    targets = np.where(forged, counts + 1, 1) / (counts + 2)
    weights = balanced(forged)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * x + parameters[1]
        value = float(weights @ (np.logaddexp(0, z) - targets * z))
        error = weights * (0.5 * (1 + np.tanh(z / 2)) - targets)
        return value, np.array([error @ x, error.sum()])

    bounds = [(LEAST_SLOPE, None), (None, None)]
    fit = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    scale = float(fit.x[0]) / spread
    return scale, float(fit.x[1]) - scale * centre


def false_positive_threshold(authentic: Floats, rate: float) -> float:
    """Return the lowest score that at most this share of (n,) authentic scores reaches.

    Raises:
        UsageError: too many images score 1.0, and no threshold is higher.
    """
    allowed = math.floor(rate * len(authentic) + 1e-9)
    highest = np.sort(authentic)[::-1]
    if allowed >= len(highest):
        return 0.0
    threshold = np.nextafter(np.float32(highest[allowed]), np.float32(2))  # scores are float32
    if threshold > 1:
        raise UsageError(f"more than {rate:.1%} of the authentic images score 1.0: train further")
    return float(threshold)


def miss_threshold(forged: Floats, rate: float) -> float:
    """Return the highest score with at most this share of (n,) forged scores below it."""
    allowed = min(math.floor(rate * len(forged) + 1e-9), len(forged) - 1)
    return float(np.sort(forged)[allowed])


def choose_mask_rule(results: Sequence[ImageResult], flagged_rate: float) -> tuple[float, float]:
    """Choose the mask threshold and share of highest mean F1 that keep `flagged_rate`.

    If none does, those with the lowest rate are chosen. Ties are broken by the smallest share, then
    by the threshold nearest to 0.5.
    """
    rules = [(float(threshold), share) for share in SHARES for threshold in THRESHOLDS]
    f1, masked = np.transpose([mask_rates(results, *rule) for rule in rules])
    allowed = masked <= max(flagged_rate, float(masked.min()))
    thresholds, shares = np.transpose(rules)
    order = (-np.abs(thresholds - 0.5), -shares, np.where(allowed, f1, -1.0))
    return rules[int(np.lexsort(order)[-1])]


def mask_rates(
    results: Sequence[ImageResult], threshold: float, share: float
) -> tuple[float, float]:
    """Return mean F1 of the forged, and the share of the authentic with too many masked pixels."""
    rule = Policy("rule", mask_threshold=threshold, mask_share=share)
    # Column of the nearest of `MASK_THRESHOLDS`, which are whole percents from 1 on.
    found = [(each, round(100 * rule.pixel_threshold(each.peak)) - 1) for each in results]
    f1 = mean([float(each.f1_at[column]) for each, column in found if each.forged])
    alarms = [each.masked_at[column] > MASKED_FRACTION for each, column in found if not each.forged]
    return f1, mean([float(alarm) for alarm in alarms])


def rate_bound(count: int, images: int) -> float:
    """Return the upper bound of a rate, given `count` of `images` (Clopper-Pearson, 97.5 %)."""
    return 1.0 if count >= images else float(beta.ppf(0.975, count + 1, images - count))


def _measure(
    policy: Policy, within: Sequence[ImageResult], scores: Floats, beyond: int
) -> Calibration:
    """Measure a policy on the images within its limits."""
    forged = np.array([each.forged for each in within], bool)
    labels = np.array([policy.label(score)[0] for score in scores])
    alarms = labels[~forged] == "manipulated"
    table = reliability(scores, forged)
    f1, flagged_rate = mask_rates(within, policy.mask_threshold, policy.mask_share)
    return Calibration(
        policy=policy,
        forged=int(forged.sum()),
        authentic=len(alarms),
        beyond=beyond,
        image_auc=auc(scores, forged),
        ece=expected_calibration_error(table),
        false_positive_rate=float(alarms.mean()),
        false_positive_bound=rate_bound(int(alarms.sum()), len(alarms)),
        true_positive_rate=float((labels[forged] == "manipulated").mean()),
        miss_rate=float((labels[forged] == "authentic").mean()),
        f1=f1,
        flagged_rate=flagged_rate,
        reliability=tuple(table),
    )
