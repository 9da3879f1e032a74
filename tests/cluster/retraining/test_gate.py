"""The gate's rules, one at a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from prompt_iml.cluster.retraining.gate import Limits, decide
from prompt_iml.engine.model.policy import UNTRAINED, Policy
from prompt_iml.pipeline.evaluation import SetResult
from prompt_iml.pipeline.registry.documents import parse_verdict

LABELS = Policy("p", manipulated_at=0.5, authentic_below=0.2, false_positive_rate=0.01)
OLD = SetResult(
    set="dev",
    perturbation="none",
    forged=200,
    masked=200,
    authentic=300,
    failed=1,
    f1=0.5,
    best_f1=0.6,
    iou=0.4,
    pixel_auc=0.9,
    image_auc=0.75,
    false_positive_rate=0.02,
    true_positive_rate=0.4,
    flagged_rate=0.3,
    ece=0.1,
)


def reasons(policy: Policy = LABELS, old: SetResult = OLD, **new: float) -> list[str]:
    return list(decide([old], [replace(old, **new)], policy, Limits(min_gain=-1)).reasons)


@pytest.mark.parametrize(
    "new",
    [
        {},
        {"f1": 0.9, "image_auc": 0.9, "false_positive_rate": 0.0, "failed": 0},
        {"f1": 0.48, "image_auc": 0.73},
        {"false_positive_rate": 0.03},
        {"flagged_rate": 0.9, "best_f1": 0.0, "ece": 1.0},
    ],
)
def test_changes_within_the_margins_pass(new: dict[str, float]) -> None:
    assert reasons(**new) == []


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ({"f1": 0.4799}, "dev: f1 fell from 0.5 to 0.4799, below 0.48"),
        ({"image_auc": 0.72}, "dev: image_auc fell from 0.75 to 0.72, below 0.73"),
        (
            {"false_positive_rate": 0.031},
            "dev: false_positive_rate rose from 0.02 to 0.031, above 0.03",
        ),
        ({"failed": 2}, "dev: failed rose from 1 to 2, above 1"),
        ({"f1": math.nan}, "dev: f1 was 0.5 and cannot be measured any more"),
    ],
)
def test_worse_results_are_refused(new: dict[str, float], reason: str) -> None:
    assert reasons(**new) == [reason]


def test_above_its_limit_the_false_positive_rate_may_not_rise() -> None:
    near, above = replace(OLD, false_positive_rate=0.045), replace(OLD, false_positive_rate=0.2)
    assert reasons(old=near, false_positive_rate=0.05) == []
    assert "above 0.05" in reasons(old=near, false_positive_rate=0.0501)[0]
    assert reasons(old=above, false_positive_rate=0.2) == []
    assert "above 0.2" in reasons(old=above, false_positive_rate=0.201)[0]


def test_without_labels_masked_images_count() -> None:
    assert reasons(UNTRAINED, false_positive_rate=0.9) == []
    assert "flagged_rate rose" in reasons(UNTRAINED, flagged_rate=0.32)[0]


def test_without_a_gain_there_is_nothing_to_promote() -> None:
    labels = replace(OLD, set="labels")
    better = replace(labels, image_auc=OLD.image_auc + 0.005)
    assert decide([OLD, labels], [OLD, better], LABELS, Limits()).passed
    elsewhere = decide([OLD, labels], [replace(OLD, f1=0.9), labels], LABELS, Limits())
    assert elsewhere.reasons == (
        "nothing gained: labels f1 +0.0000, +0.005 needed; labels image_auc +0.0000, +0.005 needed",
    )
    assert decide([OLD], [replace(OLD, f1=0.9)], LABELS, Limits()).passed


def test_the_effect_of_one_image_is_no_gain() -> None:
    few = replace(OLD, set="labels", forged=10, masked=10, authentic=20)
    for measure in ("f1", "image_auc"):
        was = getattr(few, measure)
        lucky, better = (replace(few, **{measure: was + gain}) for gain in (0.099, 0.1))
        assert (
            "+0.1 needed, the effect of one image"
            in decide([few], [lucky], LABELS, Limits()).reasons[0]
        )
        assert decide([few], [better], LABELS, Limits()).passed


def test_only_images_with_a_mask_affect_f1() -> None:
    few = replace(OLD, set="labels", masked=10)
    assert not decide([few], [replace(few, f1=0.51)], LABELS, Limits()).passed
    assert decide([few], [replace(few, f1=0.6)], LABELS, Limits()).passed


def test_any_set_may_gain_if_labels_give_no_measure() -> None:
    nan = math.nan
    labels = replace(OLD, set="labels", forged=0, masked=0, f1=nan, iou=nan, image_auc=nan)
    assert decide([OLD, labels], [replace(OLD, f1=0.6), labels], LABELS, Limits()).passed
    assert not decide([OLD, labels], [OLD, labels], LABELS, Limits()).passed


def test_small_losses_do_not_add_up() -> None:
    """Each loss is within the margin of the prompts before."""
    once, twice = replace(OLD, f1=0.485), replace(OLD, f1=0.47)
    assert decide([OLD], [once], LABELS, Limits(min_gain=-1)).passed
    verdict = decide([once], [twice], LABELS, Limits(min_gain=-1), base=[OLD])
    assert verdict.reasons == (
        "dev: f1, compared with the base model, fell from 0.5 to 0.47, below 0.48",
    )


def test_measures_without_an_old_value_are_not_compared() -> None:
    forged_only = replace(OLD, authentic=0, false_positive_rate=math.nan, image_auc=math.nan)
    assert reasons(old=forged_only, image_auc=0.1) == []


def test_one_bad_set_is_enough_and_every_reason_is_reported() -> None:
    other = replace(OLD, set="other")
    new = [OLD, replace(other, f1=0.1, image_auc=0.1)]
    verdict = decide([OLD, other], new, LABELS, Limits(min_gain=-1), ["the graph differs"])
    assert not verdict.passed
    assert [reason[:12] for reason in verdict.reasons] == [
        "the graph di",
        "other: f1 fe",
        "other: image",
    ]
    assert len(verdict.comparisons) == 8


def test_a_verdict_of_any_reasons_is_read_back() -> None:
    sets = [replace(OLD, set=f"a set of a long name {n}" * 3) for n in range(60)]
    verdict = decide(sets, sets, LABELS, Limits(), ["two lines\nof \x1b[31m an error"])
    stored = parse_verdict(json.dumps(verdict.to_json()).encode(), "verdict.json")
    assert stored["reasons"][0] == "two lines of \\u001b[31m an error"
    assert stored["reasons"][1].startswith("nothing gained: ")


def test_a_set_too_small_for_its_margin_is_noted() -> None:
    small = replace(OLD, forged=10, masked=10, authentic=20)
    assert len(decide([small], [small], LABELS, Limits()).notes) == 2
    assert decide([OLD], [OLD], LABELS, Limits()).notes == ()


def test_different_sets_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same sets"):
        decide([OLD], [replace(OLD, set="other")], LABELS, Limits())
    with pytest.raises(ValueError, match="at least one"):
        decide([], [], LABELS, Limits())
