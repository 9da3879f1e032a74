"""From judged, held-back images to a policy: probabilities and thresholds at stated rates.

    score logits, truth -> Platt scaling -> scores
    scores of the authentic -> manipulated_at, at a false-positive rate
    scores of the forged    -> authentic_below, at a miss rate
    pixels                  -> mask_threshold and mask_share: best F1, at a rate of flagged
                               authentic images

The classes weigh one half each in the scaling, so a score is a probability at even odds. Where an
archive holds one forgery in a thousand, the odds of a score are a thousand times lower; the rates
hold as they are.
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
from prompt_iml.pipeline.evaluation.comparison import FLAGGED_FRACTION, auc
from prompt_iml.pipeline.evaluation.judged import Judged
from prompt_iml.pipeline.evaluation.measures import (
    Bin,
    balanced,
    expected_calibration_error,
    mean,
    reliability,
    without_nan,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# What a policy's mask_threshold and mask_share are chosen from.
THRESHOLDS = np.concatenate([np.arange(5, 100, 5), [96, 97, 98, 99]]) / 100
SHARES = (0.0, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)

LEAST_SLOPE = 1e-3  # of standardised logits: a score that knows nothing still keeps its order


@dataclass(frozen=True, slots=True)
class Targets:
    """The rates that a policy is made for, and its limits.

    Attributes:
        false_positive_rate: of the authentic images labelled manipulated, at most.
        miss_rate: of the forged images labelled authentic, at most.
        flagged_rate: of the authentic images with more than 0.5 % of their pixels flagged.
        min_side, min_jpeg_quality: images below are `uncertain`; None: no limit.
    """

    false_positive_rate: float = 0.01
    miss_rate: float = 0.05
    flagged_rate: float = 1.0
    min_side: int | None = None
    min_jpeg_quality: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy, and what it does on the images it was made on.

    Attributes:
        policy: the result.
        forged, authentic: images it was made on, each perturbation counting.
        beyond: images that the limits leave out.
        image_auc: of the score.
        ece: expected calibration error; `reliability` is the table behind it.
        false_positive_rate: share of the authentic labelled manipulated.
        false_positive_bound: the rate that such a share leaves possible with 97.5 % confidence
            (Clopper-Pearson), were the images independent; versions of one photograph are not.
        true_positive_rate: share of the forged labelled manipulated.
        miss_rate: share of the forged labelled authentic.
        f1: mean pixel F1 of the masks.
        flagged_rate: share of the authentic with more than 0.5 % flagged.
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
        """As JSON's types; nan, which JSON does not know, is None."""
        return without_nan(asdict(self))


@dataclass(frozen=True, slots=True)
class Group:
    """What a policy does to one set under one perturbation; a share of no images is nan.

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
        """As JSON's types; nan, which JSON does not know, is None."""
        return without_nan(asdict(self))


def claim_all(targets: Targets) -> Policy:
    """The policy to judge images by before there is one: it labels all within the limits."""
    return Policy(
        "uncalibrated",
        manipulated_at=0.0,
        authentic_below=0.0,
        min_side=targets.min_side,
        min_jpeg_quality=targets.min_jpeg_quality,
    )


def make_policy(judged: Sequence[Judged], targets: Targets, name: str) -> Calibration:
    """Choose calibration and thresholds on images that were judged by `claim_all`.

    Raises:
        UsageError: forged or authentic images lack, or no threshold holds the rate.
    """
    within = [each for each in judged if each.label != "uncertain"]
    forged = np.array([each.forged for each in within], bool)
    if forged.all() or not forged.any():
        raise UsageError("a calibration needs forged and authentic images: add what lacks")
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
    return _measure(policy, within, scores, len(judged) - len(within))


def group_rates(policy: Policy, judged: Sequence[Judged], name: str, perturbation: str) -> Group:
    """A rate that holds over all images may not hold where they were resized: look there."""
    within = [each for each in judged if each.label != "uncertain"]
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
    """Scale and offset of the logistic curve that gives the truth the highest likelihood.

    Platt's targets: a class of n images aims at (n + 1) / (n + 2), never at certainty. Both
    classes weigh alike.

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
    """Lowest score that at most this share of (n,) authentic scores reaches.

    Raises:
        UsageError: too many score 1.0, above which there is no threshold.
    """
    allowed = math.floor(rate * len(authentic) + 1e-9)
    highest = np.sort(authentic)[::-1]
    if allowed >= len(highest):
        return 0.0
    threshold = np.nextafter(np.float32(highest[allowed]), np.float32(2))  # scores are float32
    if threshold > 1:
        raise UsageError(f"more than {rate:.1%} of the authentic images score 1.0: train on")
    return float(threshold)


def miss_threshold(forged: Floats, rate: float) -> float:
    """Highest score that at most this share of (n,) forged scores stays below."""
    allowed = min(math.floor(rate * len(forged) + 1e-9), len(forged) - 1)
    return float(np.sort(forged)[allowed])


def choose_mask_rule(judged: Sequence[Judged], flagged_rate: float) -> tuple[float, float]:
    """Of `THRESHOLDS` and `SHARES` those of highest mean F1 that flag few enough authentic images.

    Where none do, those that flag fewest; of equals the smallest share, and then the threshold
    nearest to the middle.
    """
    rules = [(float(threshold), share) for share in SHARES for threshold in THRESHOLDS]
    f1, flagged = np.transpose([mask_rates(judged, *rule) for rule in rules])
    allowed = flagged <= max(flagged_rate, float(flagged.min()))
    thresholds, shares = np.transpose(rules)
    order = (-np.abs(thresholds - 0.5), -shares, np.where(allowed, f1, -1.0))
    return rules[int(np.lexsort(order)[-1])]


def mask_rates(judged: Sequence[Judged], threshold: float, share: float) -> tuple[float, float]:
    """Mean F1 of the forged, and the share of the authentic with too many flagged pixels."""
    rule = Policy("rule", mask_threshold=threshold, mask_share=share)
    # the nearest of `MASK_THRESHOLDS`, which are whole percents from 1 on
    found = [(each, round(100 * rule.pixel_threshold(each.peak)) - 1) for each in judged]
    f1 = mean([float(each.f1_at[column]) for each, column in found if each.forged])
    alarms = [
        each.flagged_at[column] > FLAGGED_FRACTION for each, column in found if not each.forged
    ]
    return f1, mean([float(alarm) for alarm in alarms])


def rate_bound(count: int, images: int) -> float:
    """Highest rate at which so few of so many are not surprising (Clopper-Pearson, 97.5 %)."""
    return 1.0 if count >= images else float(beta.ppf(0.975, count + 1, images - count))


def _measure(policy: Policy, within: Sequence[Judged], scores: Floats, beyond: int) -> Calibration:
    """What a policy does on the images within its limits."""
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
