"""Calibration of a policy: probabilities, and thresholds at given rates, from held-back images.

    score logits, truth -> Platt scaling -> scores
    scores of the authentic -> manipulated_at, at a false-positive rate in every size class
    scores of the forged    -> authentic_below, at a miss rate
    pixels                  -> pixel model, and least_confidence, at a rate of masked authentic
                               images

The score logits are cross-validated (`fitting.fit_score_model`), so the rates are those of
photographs that the score model was not fitted on.

Each class weighs one half in the scaling, so a score is a probability with equal priors. Where one
image in a thousand of an archive is forged, the odds of a score are a thousand times lower; the
rates do not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy  # whose parts load when they are first used
from numpy.typing import NDArray

from prompt_iml.engine.detection.score import PixelModel, ScoreModel, best_threshold
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.policy import Label, Policy
from prompt_iml.pipeline.evaluation.comparison import MASKED_FRACTION, auc
from prompt_iml.pipeline.evaluation.fitting import fit_pixel_model
from prompt_iml.pipeline.evaluation.images import LEVELS, ImageResult
from prompt_iml.pipeline.evaluation.metrics import (
    Bin,
    balanced,
    expected_calibration_error,
    interval,
    mean,
    reliability,
    without_nan,
)
from prompt_iml.pipeline.evaluation.sets import SIZES, size_class, size_name

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Candidates for a policy's mask_threshold and mask_share.
THRESHOLDS = np.concatenate([np.arange(5, 100, 5), [96, 97, 98, 99]]) / 100
SHARES = (0.0, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)

MASK_RULES = ("mask_threshold", "mask_share", "pixel_model", "least_confidence")  # of a policy
MISS_RATES = (0.05, 0.1, 0.15, 0.2)  # rows of the table of misses
STEADY = 5  # false alarms that a size class must allow to have a lower threshold than all images
LEAST_SLOPE = 1e-3  # for standardised logits, so that an uninformative score keeps its order


@dataclass(frozen=True, slots=True)
class Targets:
    """Target rates of a policy, and its limits.

    Attributes:
        false_positive_rate: highest share of the authentic images of any size class that are
            labelled manipulated.
        miss_rate: highest share of the forged images labelled authentic.
        flagged_rate: highest share of the authentic images with a mask.
        min_side, min_jpeg_quality: images below are `uncertain`; None: no limit.
        closer_look: that of the policy.
    """

    false_positive_rate: float = 0.01
    miss_rate: float = 0.15
    flagged_rate: float = 0.3
    min_side: int | None = None
    min_jpeg_quality: int | None = None
    closer_look: int = 0


@dataclass(frozen=True, slots=True)
class SizeRate:
    """Rates of a policy on the images of one size class.

    Attributes:
        size: name of the class, in megapixels.
        authentic, forged: number of images.
        needed: `manipulated_at` of the class; where too few images support the rate, at least that
            of all images together.
        false_positives: authentic images labelled manipulated.
        false_positive_bound: upper bound of their share, as of `Calibration`.
        true_positive_rate: share of the forged images labelled manipulated; nan without any.
        authentic_rate: share of the authentic images labelled authentic.
        masked_rate: share of the authentic images with a mask.
        enough: whether the class has enough authentic images that one false positive could be
            within the rate.
    """

    size: str
    authentic: int
    forged: int
    needed: float
    false_positives: int
    false_positive_bound: float
    true_positive_rate: float
    authentic_rate: float
    masked_rate: float
    enough: bool


@dataclass(frozen=True, slots=True)
class Miss:
    """Labels at one miss rate.

    Attributes:
        rate: allowed share of the forged images labelled authentic.
        below: `authentic_below` at this rate.
        of_authentic, of_forged: shares of the authentic and forged images labelled authentic.
        least: `least_confidence` that keeps the rate of masked authentic images.
        masked: share of the authentic images with a mask.
        f1: mean pixel F1 of the masks of the forged whose truth has one, nan without any; an empty
            mask counts 0.
    """

    rate: float
    below: float
    of_authentic: float
    of_forged: float
    least: float
    masked: float
    f1: float


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
        authentic_rate: share of the authentic labelled authentic.
        f1: mean pixel F1 of the masks of the forged images whose truth has one; an empty mask
            counts 0.
        every_f1: the same if no mask were left out.
        plain_f1: the same of masks by `mask_threshold` and `mask_share`, none left out.
        masked_rate: share of the authentic with a mask.
        sizes: rates by size class.
        one_threshold: size class that would decide a threshold for all sizes, and the share of
            the forged that would then be labelled manipulated.
        misses: table of the labels at other miss rates.
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
    authentic_rate: float
    f1: float
    every_f1: float
    plain_f1: float
    masked_rate: float
    sizes: tuple[SizeRate, ...]
    one_threshold: tuple[str, float]
    misses: tuple[Miss, ...]
    reliability: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with None for nan."""
        tables = {
            name: [without_nan(asdict(each)) for each in getattr(self, name)]
            for name in ("sizes", "misses")
        }
        return without_nan(asdict(self)) | {"policy": self.policy.to_dict(), **tables}


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
        closer_look=targets.closer_look,
    )


def make_policy(
    results: Sequence[ImageResult],
    targets: Targets,
    name: str,
    score_model: ScoreModel | None = None,
    sets: Sequence[str] | None = None,
    base: Policy | None = None,
) -> Calibration:
    """Choose calibration and thresholds on images evaluated with `claim_all`.

    Args:
        results: images; `score_raw` is the logit that is calibrated.
        targets: target rates.
        name: id of the policy.
        score_model: source of `score_raw`; None: the largest of the tiles' scores.
        sets: name of each image's set, so that all sets weigh the same in the pixel model.
        base: source of the masks' rules where no forged image has a mask.

    Raises:
        UsageError: there are no forged or no authentic images, or no threshold keeps the rate.
    """
    labels = sets or [""] * len(results)
    pairs = [(e, s) for e, s in zip(results, labels, strict=True) if e.label != "uncertain"]
    within = [each for each, _ in pairs]
    forged = np.array([each.forged for each in within], bool)
    if forged.all() or not forged.any():
        raise UsageError("a calibration needs forged and authentic images: add the missing kind")
    scale, offset = fit_platt(np.array([each.score_raw for each in within]), forged)
    policy = Policy(
        name,
        scale,
        offset,
        min_side=targets.min_side,
        min_jpeg_quality=targets.min_jpeg_quality,
        score_model=score_model,
        closer_look=targets.closer_look,
    )
    policy = _with_thresholds(policy, within, targets)
    if any(each.forged and each.has_known_pixels for each in within):
        policy = _with_masks(policy, within, [name for _, name in pairs], targets)
    elif base is not None:
        kept = {name: getattr(base, name) for name in MASK_RULES}
        policy = replace(policy, **kept)
    return _measure(policy, within, targets, len(results) - len(within))


def _with_thresholds(policy: Policy, within: Sequence[ImageResult], targets: Targets) -> Policy:
    """Return the policy with thresholds of labels."""
    forged, scores = _truth_and_scores(policy, within)
    needed = size_thresholds(within, scores, targets)
    at = max(at for _, at in needed)
    below = min(*(at for _, at in needed), miss_threshold(scores[forged], targets.miss_rate))
    policy = replace(
        policy,
        manipulated_at=at,
        authentic_below=below,
        manipulated_at_sizes=_by_size(dict(needed), at),
    )
    labels = _labels(policy, within)
    return replace(policy, false_positive_rate=float((labels[~forged] == "manipulated").mean()))


def _with_masks(
    policy: Policy, within: Sequence[ImageResult], sets: Sequence[str], targets: Targets
) -> Policy:
    """Return the policy with the rules of its masks, the values of `MASK_RULES`."""
    mask_threshold, mask_share = choose_mask_rule(within, 1.0)
    policy = replace(
        policy,
        mask_threshold=mask_threshold,
        mask_share=mask_share,
        pixel_model=fit_pixel_model(within, sets),
    )
    return replace(policy, least_confidence=choose_confidence(policy, within, targets))


def _by_size(needed: Mapping[int, float], highest: float) -> tuple[tuple[float, float], ...]:
    """Return the pairs of `Policy.manipulated_at_sizes`; a class without images has the highest."""
    least = (0.0, *SIZES)
    return tuple((size, needed.get(number, highest)) for number, size in enumerate(least))


def _labels(policy: Policy, within: Sequence[ImageResult]) -> NDArray[np.str_]:
    return np.array([label_of(policy, each) for each in within])


def label_of(policy: Policy, result: ImageResult) -> Label:
    """Return the label of an image within the policy's limits."""
    score = policy.score(result.score_raw)
    return policy.label(score, megapixels=result.statistics.megapixels)[0]


def _truth_and_scores(policy: Policy, within: Sequence[ImageResult]) -> tuple[Mask, Floats]:
    forged = np.array([each.forged for each in within], bool)
    return forged, np.array([policy.score(each.score_raw) for each in within])


def size_thresholds(
    within: Sequence[ImageResult], scores: Floats, targets: Targets
) -> list[tuple[int, float]]:
    """Return each size class with authentic images, and the threshold that it needs.

    A class of so few images that less than `STEADY` of them may be false alarms has at least the
    threshold of all images: one or two high scores say too little to go below that.
    """
    rate = targets.false_positive_rate
    forged = np.array([each.forged for each in within], bool)
    classes = np.array([size_class(each.statistics.megapixels) for each in within])
    common = false_positive_threshold(scores[~forged], rate)
    needed = []
    for number in np.unique(classes[~forged]).tolist():
        authentic = scores[~forged & (classes == number)]
        own = false_positive_threshold(authentic, rate)
        steady = len(authentic) * rate >= STEADY
        needed.append((number, own if steady else max(own, common)))
    return needed


def choose_confidence(policy: Policy, within: Sequence[ImageResult], targets: Targets) -> float:
    """Return the lowest `least_confidence` at which few enough of the authentic have a mask."""
    found = _masks_of_authentic(policy, within)
    for least in (percent / 100 for percent in range(100)):
        if _masked_rate(replace(policy, least_confidence=least), found) <= targets.flagged_rate:
            return least
    return 1.0


def _masks_of_authentic(
    policy: Policy, within: Sequence[ImageResult]
) -> list[tuple[Label, float | None]]:
    """Return what decides whether an authentic image has a mask, which takes time to compute."""
    authentic = [each for each in within if not each.forged]
    return [(label_of(policy, each), confidence(policy, each)) for each in authentic]


def _masked_rate(policy: Policy, found: Sequence[tuple[Label, float | None]]) -> float:
    return mean([float(policy.believes(*each)) for each in found])


def confidence(policy: Policy, result: ImageResult) -> float | None:
    """Return the expected F1 of an image's mask; None if the policy calibrates no pixels."""
    if policy.pixel_model is None:
        return None
    return policy.pixel_model.confidence(result.statistics.cells, result.score_raw)


def mask_f1(policy: Policy, result: ImageResult) -> float:
    """Return the pixel F1 of a forged image's mask under a policy with a pixel model."""
    model, expected = policy.pixel_model, confidence(policy, result)
    assert model is not None
    assert expected is not None
    if not policy.believes(label_of(policy, result), expected):
        return 0.0
    return float(np.interp(_level(model, expected, result.score_raw), LEVELS, result.f1_at))


def _level(model: PixelModel, expected: float, score_logit: float) -> float:
    """Return the logit of the network above which pixels are in the mask."""
    threshold = best_threshold(expected)
    calibrated = math.log(threshold / (1 - threshold))
    return (calibrated - model.offset - model.score * score_logit) / model.scale


def group_rates(
    policy: Policy, results: Sequence[ImageResult], name: str, perturbation: str
) -> Group:
    """Return the rates of one group, which may differ from the rates over all images."""
    within = [each for each in results if each.label != "uncertain"]
    labels = _labels(policy, within)
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
    fit = scipy.optimize.minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds
    )
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
    return interval(count, images)[1]


def _measure(
    policy: Policy, within: Sequence[ImageResult], targets: Targets, beyond: int
) -> Calibration:
    """Measure a policy on the images within its limits."""
    forged, scores = _truth_and_scores(policy, within)
    labels = _labels(policy, within)
    alarms = labels[~forged] == "manipulated"
    table = reliability(scores, forged)
    thresholds = size_thresholds(within, scores, targets)
    edited = _edited(within)
    every = replace(policy, authentic_below=0.0, least_confidence=0.0)
    masks = np.array(
        [
            policy.believes(label, confidence(policy, each))
            for label, each in zip(labels, within, strict=True)
        ]
    )
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
        authentic_rate=float((labels[~forged] == "authentic").mean()),
        f1=mean([mask_f1(policy, each) for each in edited]),
        every_f1=mean([mask_f1(every, each) for each in edited]),
        plain_f1=mask_rates(within, policy.mask_threshold, policy.mask_share)[0],
        masked_rate=float(masks[~forged].mean()),
        sizes=tuple(_size_rate(each, within, labels, masks, targets) for each in thresholds),
        one_threshold=_one_threshold(thresholds, scores[forged]),
        misses=tuple(_miss(rate, policy, within, targets) for rate in MISS_RATES),
        reliability=tuple(table),
    )


def _one_threshold(needed: Sequence[tuple[int, float]], forged: Floats) -> tuple[str, float]:
    number, at = max(needed, key=lambda each: each[1])
    return size_name(number), float((forged >= at).mean())


def _size_rate(
    needed: tuple[int, float],
    within: Sequence[ImageResult],
    labels: NDArray[np.str_],
    masks: Mask,
    targets: Targets,
) -> SizeRate:
    inside = np.array([size_class(each.statistics.megapixels) == needed[0] for each in within])
    forged = np.array([each.forged for each in within], bool)
    authentic = labels[inside & ~forged]
    false_positives = int((authentic == "manipulated").sum())
    return SizeRate(
        size=size_name(needed[0]),
        authentic=len(authentic),
        forged=int((inside & forged).sum()),
        needed=needed[1],
        false_positives=false_positives,
        false_positive_bound=rate_bound(false_positives, len(authentic)),
        true_positive_rate=mean((labels[inside & forged] == "manipulated").astype(float)),
        authentic_rate=float((authentic == "authentic").mean()),
        masked_rate=float(masks[inside & ~forged].mean()),
        enough=len(authentic) * targets.false_positive_rate >= 1,
    )


def _edited(within: Sequence[ImageResult]) -> list[ImageResult]:
    """Return the forged images whose masks are known."""
    return [each for each in within if each.forged and each.has_known_pixels]


def _miss(rate: float, policy: Policy, within: Sequence[ImageResult], targets: Targets) -> Miss:
    """Measure labels and masks of the policy at another miss rate."""
    forged, scores = _truth_and_scores(policy, within)
    needed = (at for _, at in policy.manipulated_at_sizes)
    below = min(*needed, miss_threshold(scores[forged], rate))
    policy = replace(policy, authentic_below=below)
    policy = replace(policy, least_confidence=choose_confidence(policy, within, targets))
    labels = _labels(policy, within)
    return Miss(
        rate=rate,
        below=below,
        of_authentic=float((labels[~forged] == "authentic").mean()),
        of_forged=float((labels[forged] == "authentic").mean()),
        least=policy.least_confidence,
        masked=_masked_rate(policy, _masks_of_authentic(policy, within)),
        f1=mean([mask_f1(policy, each) for each in _edited(within)]),
    )
