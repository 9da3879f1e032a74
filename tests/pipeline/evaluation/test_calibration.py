"""Calibration: scores are probabilities, and thresholds keep their rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from prompt_iml.engine.detection.score import CENTRES, PixelModel, Statistics, histogram
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.policy import Policy
from prompt_iml.pipeline.evaluation.calibration import (
    MASK_RULES,
    Targets,
    choose_confidence,
    choose_mask_rule,
    claim_all,
    false_positive_threshold,
    fit_platt,
    group_rates,
    make_policy,
    mask_rates,
    miss_threshold,
    rate_bound,
)
from prompt_iml.pipeline.evaluation.comparison import auc
from prompt_iml.pipeline.evaluation.fitting import fit_pixel_model, fit_score_model, set_weights
from prompt_iml.pipeline.evaluation.images import MASK_THRESHOLDS, ImageResult


def image(
    forged: bool,
    score_raw: float,
    f1: float = 0.0,
    masked: float = 0.0,
    megapixels: float = 0.5,
    logits: Sequence[float] = (-3.0, -2.0, 1.0),
) -> ImageResult:
    """Return the result of an image with the same F1 and masked share at every threshold."""
    many = np.ones(len(MASK_THRESHOLDS))
    f1 = f1 if forged else math.nan
    cells = np.array(logits, np.float32)
    return ImageResult(
        kind="splice" if forged else "authentic",
        forged=forged,
        photo=f"{score_raw}",
        statistics=Statistics(((score_raw,),), histogram(cells), megapixels),
        score_raw=score_raw,
        score=claim_all(Targets()).score(score_raw),
        label="manipulated",
        masked=masked,
        peak=1.0,
        f1=f1,
        iou=f1,
        best_f1=f1,
        pixel_auc=f1,
        f1_at=f1 * many,
        masked_at=masked * many,
        pixels=histogram(cells),
        hits=histogram(cells[cells > 0]) * forged,
    )


def population(images: int = 1000, seed: int = 0) -> list[ImageResult]:
    """Return equally many forged and authentic images, with log-odds of 2 x logit - 1."""
    rng = np.random.default_rng(seed)
    logits = np.concatenate([rng.normal(1.0, 0.7, images), rng.normal(0.0, 0.7, images)])
    return [image(index < images, float(logit)) for index, logit in enumerate(logits)]


def without_mask(result: ImageResult) -> ImageResult:
    """Return the result of a forged image of which only the label is known."""
    known = np.full(len(MASK_THRESHOLDS), math.nan)
    return dataclasses.replace(result, f1=math.nan, f1_at=known, hits=result.hits * 0)


def test_labels_without_masks_calibrate_the_score_and_leave_the_masks() -> None:
    images = population()
    bare = [without_mask(each) if each.forged else each for each in images]
    base = Policy("base", mask_threshold=0.3, pixel_model=PixelModel(2.0, -1.0), mask_share=0.1)
    whole = make_policy(images, Targets(), "a").policy
    made = make_policy(bare, Targets(), "a", base=base)
    assert made.policy == dataclasses.replace(
        whole, **{name: getattr(base, name) for name in MASK_RULES}
    )
    assert math.isnan(made.f1)
    assert [each["f1"] for each in make_policy(bare, Targets(), "a").to_dict()["misses"]] == [
        None
    ] * len(made.misses)
    some = [bare[0], *images[1:]]
    fitted = make_policy(some, Targets(), "a", base=base).policy
    without = make_policy(images[1:], Targets(), "a").policy
    assert fitted.pixel_model == without.pixel_model
    assert fitted.mask_threshold == whole.mask_threshold


def test_platt_finds_the_logistic_curve_of_scikit_learn() -> None:
    images = population()
    logits = np.array([each.score_raw for each in images])
    forged = np.array([each.forged for each in images])
    scale, offset = fit_platt(logits, forged)
    reference = LogisticRegression(C=1e9).fit(logits[:, None], forged)
    assert scale == pytest.approx(reference.coef_[0, 0], rel=0.02)
    assert offset == pytest.approx(reference.intercept_[0], rel=0.02)


def test_platt_does_not_depend_on_how_many_are_authentic() -> None:
    images = population()
    authentic = [each for each in images if not each.forged]
    fits = [
        fit_platt(np.array([e.score_raw for e in some]), np.array([e.forged for e in some]))
        for some in (images, images + 2 * authentic)
    ]
    assert fits[0] == pytest.approx(fits[1], rel=0.02)


def test_a_separable_set_is_no_reason_for_certainty() -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    scale, offset = fit_platt(logits, logits > 0)
    assert 0.5 < scale < 3
    assert offset == pytest.approx(0, abs=1e-3)


def test_a_score_that_knows_nothing_keeps_its_order() -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    assert 0 < fit_platt(logits, logits < 0)[0] < 0.01
    assert fit_platt(np.zeros(4), logits < 0)[0] > 0


@pytest.mark.parametrize(("rate", "allowed"), [(0.01, 1), (0.019, 1), (0.05, 5), (0.001, 0)])
def test_no_more_authentic_images_reach_the_threshold_than_stated(
    rate: float, allowed: int
) -> None:
    scores = np.random.default_rng(1).random(100).astype(np.float32).astype(np.float64)
    assert (scores >= false_positive_threshold(scores, rate)).sum() == allowed


def test_ties_at_the_threshold_stay_authentic() -> None:
    scores = np.array([0.5] * 10 + [0.1] * 90)
    threshold = false_positive_threshold(scores, 0.05)
    assert not (np.float32(scores) >= np.float32(threshold)).any()
    assert threshold == pytest.approx(0.5)


def test_no_threshold_lies_above_one() -> None:
    with pytest.raises(UsageError, match="authentic images score"):
        false_positive_threshold(np.ones(10), 0.01)


def test_no_more_forged_images_are_called_authentic_than_stated() -> None:
    scores = np.arange(100) / 100
    assert (scores < miss_threshold(scores, 0.05)).sum() == 5
    assert (scores < miss_threshold(scores, 0.0)).sum() == 0


def test_the_bound_is_clopper_and_pearsons() -> None:
    bound = rate_bound(3, 200)
    assert binom.cdf(3, 200, bound) == pytest.approx(0.025)
    assert rate_bound(0, 100) == pytest.approx(0.036, abs=0.001)
    assert rate_bound(5, 5) == 1


def test_a_policy_does_what_it_states() -> None:
    targets = Targets(0.01, 0.05, 0.1, min_side=128, min_jpeg_quality=50, closer_look=16)
    images = population()
    calibration = make_policy(images, targets, "v1")
    policy = calibration.policy
    assert (policy.id, policy.min_side, policy.min_jpeg_quality) == ("v1", 128, 50)
    assert policy.closer_look == claim_all(targets).closer_look == 16
    assert calibration.false_positive_rate == policy.false_positive_rate == 0.01
    assert 0.01 < calibration.false_positive_bound < 0.03
    assert 0.04 < calibration.miss_rate <= 0.05
    assert calibration.masked_rate <= 0.1
    assert calibration.ece < 0.03
    labels = [policy.label(policy.score(each.score_raw))[0] for each in images if not each.forged]
    assert labels.count("manipulated") == 10
    assert calibration.to_dict()["policy"]["id"] == "v1"


def test_thresholds_do_not_cross_where_forgeries_are_easy() -> None:
    images = [image(True, 5.0 + i / 10) for i in range(50)]
    images += [image(False, -5.0 - i / 10) for i in range(50)]
    policy = make_policy(images, Targets(), "easy").policy
    assert policy.authentic_below == policy.manipulated_at


def test_what_is_beyond_the_limits_is_left_out() -> None:
    images = population(100)
    loud = dataclasses.replace(image(False, 99.0), label="uncertain")
    calibration = make_policy([*images, loud], Targets(), "v1")
    assert (calibration.beyond, calibration.authentic) == (1, 100)
    assert calibration.policy == make_policy(images, Targets(), "v1").policy


def test_rates_are_measured_by_group() -> None:
    policy = make_policy(population(), Targets(), "v1").policy
    images = [image(False, 9.0), image(False, -9.0), image(False, -9.0), image(False, -9.0)]
    beyond = dataclasses.replace(image(False, 9.0), label="uncertain")
    group = group_rates(policy, [*images, beyond], "resaved", "resize-0.5")
    assert (group.set, group.perturbation, group.forged) == ("resaved", "resize-0.5", 0)
    assert (group.authentic, group.false_positive_rate) == (4, 0.25)
    assert group.to_dict()["true_positive_rate"] is None


def test_a_class_of_few_images_has_no_lower_threshold_than_all() -> None:
    images = population()
    images += [image(False, -9.0 - n / 1000, megapixels=8) for n in range(200)]
    small, large = make_policy(images, Targets(), "v1").sizes
    assert (large.authentic, large.false_positives, large.enough) == (200, 0, True)
    assert large.needed == pytest.approx(small.needed, abs=0.05)


def test_every_size_class_keeps_the_rate() -> None:
    rng = np.random.default_rng(0)
    images = population()
    images += [image(False, float(x), megapixels=8) for x in rng.normal(1.0, 0.7, 300)]
    calibration = make_policy(images, Targets(), "v1")
    small, large = calibration.sizes
    assert (small.size, large.size, calibration.one_threshold[0]) == ("0.2-1", "4-13", "4-13")
    assert (small.authentic, large.authentic, large.forged) == (1000, 300, 0)
    assert (small.false_positives, large.false_positives) == (10, 3)
    assert 0.01 < large.false_positive_bound < 0.03
    policy = calibration.policy
    assert policy.manipulated_at == large.needed > small.needed
    assert [policy.manipulated_from(size) for size in (0.5, 8, 20)] == [
        small.needed,
        large.needed,
        large.needed,
    ]
    assert calibration.one_threshold[1] < calibration.true_positive_rate


def test_a_class_of_a_few_images_is_said_to_support_no_rate() -> None:
    images = [*population(), *(image(False, 0.0, megapixels=20) for _ in range(30))]
    small, large = make_policy(images, Targets(), "v1").sizes
    assert (small.enough, large.enough) == (True, False)
    assert large.needed == pytest.approx(small.needed, abs=0.01)
    assert large.false_positive_bound == pytest.approx(0.116, abs=0.001)


def test_misses_are_counted_at_every_rate() -> None:
    calibration = make_policy(population(), Targets(), "v1")
    misses = calibration.misses
    assert [each.of_forged for each in misses] == [0.05, 0.1, 0.15, 0.2]
    authentic = [each.of_authentic for each in misses]
    assert authentic == sorted(authentic)
    assert all(each.masked <= Targets().flagged_rate for each in misses)
    (chosen,) = (each for each in misses if each.rate == Targets().miss_rate)
    assert (chosen.f1, chosen.masked) == (calibration.f1, calibration.masked_rate)
    images = population()
    half = [without_mask(each) if n % 2 and each.forged else each for n, each in enumerate(images)]
    calibration = make_policy(half, Targets(), "v1")
    (chosen,) = (each for each in calibration.misses if each.rate == Targets().miss_rate)
    assert chosen.f1 == calibration.f1


def test_few_authentic_images_have_a_mask() -> None:
    images = population()
    policy = make_policy(images, Targets(), "v1").policy
    assert policy.pixel_model is not None
    assert 0 < policy.least_confidence < 1
    calibration = make_policy(images, Targets(flagged_rate=0.1), "v1")
    assert calibration.masked_rate <= 0.1
    assert calibration.policy.least_confidence > policy.least_confidence
    assert choose_confidence(policy, images, Targets(flagged_rate=0.0)) > 0.9
    assert choose_confidence(policy, images, Targets(flagged_rate=1.0)) == 0


def test_pixels_are_calibrated_with_the_score_of_their_image() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(0, 2, 2000).astype(np.float32)
    images = []
    for score in rng.normal(0, 1, 200):
        odds = 2 * cells + 3 * score - 1
        hits = cells[rng.random(len(cells)) < 1 / (1 + np.exp(-odds))]
        for forged in (True, False):
            result = image(forged, float(score), logits=cells.tolist())
            images.append(dataclasses.replace(result, hits=histogram(hits)))
    model = fit_pixel_model(images, [""] * len(images))
    assert (model.scale, model.offset, model.score) == pytest.approx((2, -1, 3), abs=0.15)
    assert model.probabilities(CENTRES[256:257], 0.0) == pytest.approx(0.27, abs=0.03)


def test_the_score_model_finds_what_tells_forged_from_authentic() -> None:
    rng = np.random.default_rng(0)
    images = []
    for index in range(400):
        tiles = rng.gumbel(0, 1, int(np.exp(rng.uniform(0, 4))))
        tiles[tiles.argmax()] += 2 * (index % 2)
        result = image(index % 2 == 1, float(tiles.max()))
        statistics = dataclasses.replace(result.statistics, tiles=(tuple(tiles.tolist()),))
        images.append(dataclasses.replace(result, photo=str(index), statistics=statistics))
    sets = [str(index % 3) for index in range(400)]
    fitted = fit_score_model(images, sets, ("max", "log_tiles"))
    assert fitted is not None
    assert fitted.model.weights["max"] > 0 > fitted.model.weights["log_tiles"]
    forged = np.array([each.forged for each in images])
    largest = np.array([each.score_raw for each in images])
    assert auc(fitted.logits, forged) > auc(largest, forged) + 0.02
    assert fit_score_model(images[:60], sets[:60]) is None


def test_an_image_is_scored_by_a_model_without_its_photograph() -> None:
    rng = np.random.default_rng(0)
    images = [image(index % 2 == 1, float(x)) for index, x in enumerate(rng.normal(0, 1, 200))]
    twins = [dataclasses.replace(each, photo=str(i // 2)) for i, each in enumerate(images)]
    fitted = fit_score_model(twins, ["a"] * 200, ("max",))
    assert fitted is not None
    again = [fitted.model.logit(each.statistics.features()) for each in twins]
    assert not np.allclose(fitted.logits, again)


def test_sets_and_classes_weigh_the_same() -> None:
    forged = np.array([True, True, True, False, False, False, False])
    sets = ["a", "a", "b", "a", "b", "c", "c"]
    weights = set_weights(forged, sets, [1] * 7)
    assert weights == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 6, 1 / 6, 1 / 12, 1 / 12])
    # The last two are of a size of which no forged image is there.
    weights = set_weights(forged, sets, [1] * 5 + [2] * 2)
    assert weights == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4, 0, 0])
    # Neither size has both.
    weights = set_weights(forged, ["a"] * 7, [1] * 3 + [2] * 4)
    assert weights == pytest.approx([1 / 6] * 3 + [1 / 8] * 4)


def test_both_classes_are_needed() -> None:
    with pytest.raises(UsageError, match="forged and authentic"):
        make_policy([image(True, 1.0)], Targets(), "v1")


def test_the_mask_threshold_is_the_best_that_masks_few() -> None:
    rising = np.linspace(0, 1, len(MASK_THRESHOLDS))
    falls = dataclasses.replace(image(True, 1.0), f1_at=1 - rising)
    quiet_late = dataclasses.replace(
        image(False, 0.0), masked_at=np.where(MASK_THRESHOLDS < 0.7, 0.02, 0.001)
    )
    assert choose_mask_rule([falls, quiet_late], 0.1) == (0.7, 0.0)
    assert choose_mask_rule([falls, quiet_late], 1.0) == (0.05, 0.0)
    loud = dataclasses.replace(quiet_late, masked_at=np.ones(len(MASK_THRESHOLDS)))
    assert choose_mask_rule([falls, loud], 0.1) == (0.05, 0.0)
    assert choose_mask_rule([image(True, 1.0, f1=0.3), quiet_late], 1.0) == (0.5, 0.0)


def test_images_that_peak_apart_share_a_rule() -> None:
    def right_at(threshold: float, peak: float) -> ImageResult:
        f1 = np.isclose(MASK_THRESHOLDS, threshold).astype(float)
        return dataclasses.replace(image(True, 1.0), f1_at=f1, peak=peak)

    images = [right_at(0.54, 0.9), right_at(0.30, 0.4), image(False, 0.0)]
    threshold, share = choose_mask_rule(images, 1.0)
    assert (threshold, share) == (0.3, 0.6)
    assert mask_rates(images, threshold, share) == (1.0, 0.0)
    assert mask_rates(images, 0.3, 0.0)[0] == 0.5
