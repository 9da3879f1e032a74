"""Calibration, labels, and the policy's file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from prompt_iml.engine.detection.score import PixelModel, ScoreModel, Statistics, histogram
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.policy import UNTRAINED, Policy

POLICY = Policy("fpr-1%", 0.5, -1.0, 0.9, 0.2, 0.4, 0.01)


@pytest.mark.parametrize(
    ("score", "label", "threshold"),
    [
        (0.0, "authentic", 0.2),
        (0.19, "authentic", 0.2),
        (0.2, "uncertain", 0.9),
        (0.89, "uncertain", 0.9),
        (0.9, "manipulated", 0.9),
        (1.0, "manipulated", 0.9),
    ],
)
def test_labels(score: float, label: str, threshold: float) -> None:
    assert POLICY.label(score) == (label, threshold)


def test_labels_hold_in_float32() -> None:
    assert POLICY.label(float(np.float32(0.9)))[0] == "manipulated"
    assert POLICY.label(float(np.float32(0.2)))[0] == "uncertain"


LIMITED = dataclasses.replace(POLICY, min_side=128, min_jpeg_quality=50)


@pytest.mark.parametrize(
    ("side", "jpeg_quality", "label"),
    [
        (128, 50, "manipulated"),
        (127, 50, "uncertain"),
        (128, 49, "uncertain"),
        (128, None, "manipulated"),  # no JPEG
        (None, None, "manipulated"),
    ],
)
def test_too_small_or_too_compressed_is_uncertain(
    side: int | None, jpeg_quality: int | None, label: str
) -> None:
    threshold = 0.9 if label == "manipulated" else None
    assert LIMITED.label(1.0, side=side, jpeg_quality=jpeg_quality) == (label, threshold)
    assert POLICY.label(1.0, side=1, jpeg_quality=1)[0] == "manipulated"


def test_a_policy_of_before_the_limits_is_still_read() -> None:
    old = {k: v for k, v in json.loads(POLICY.to_json()).items() if not k.startswith("min_")}
    assert Policy.from_json(json.dumps(old)) == POLICY


FITTED = dataclasses.replace(
    POLICY,
    score_model=ScoreModel({"log_mean_exp": 2.0, "log_megapixels": -1.0}, 0.5),
    pixel_model=PixelModel(1.5, -1.0, 0.5),
    least_confidence=0.3,
    manipulated_at_sizes=((0.0, 0.9), (1.0, 0.7)),
    closer_look=16,
)


def test_a_policy_without_models_is_written_as_before_them() -> None:
    assert set(json.loads(POLICY.to_json())) == {
        *("id", "scale", "offset", "manipulated_at", "authentic_below", "mask_threshold"),
        *("false_positive_rate", "min_side", "min_jpeg_quality", "mask_share"),
    }
    assert json.loads(FITTED.to_json()) == FITTED.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "p", "manipulated_at_sizes": null}',
        POLICY.to_json().replace('"scale": ', '"scale": 1' + "0" * 400),
        "[" * 100_000,
    ],
)
def test_odd_json_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="policy"):
        Policy.from_json(text)


@pytest.mark.parametrize(
    ("megapixels", "threshold"), [(None, 0.9), (0.99, 0.9), (1.0, 0.7), (24.0, 0.7)]
)
def test_each_size_has_its_threshold(megapixels: float | None, threshold: float) -> None:
    assert FITTED.manipulated_from(megapixels) == threshold
    label = "manipulated" if threshold == 0.7 else "uncertain"
    assert FITTED.label(0.8, megapixels=megapixels) == (label, threshold)
    assert POLICY.label(0.8, megapixels=megapixels) == ("uncertain", 0.9)


def test_the_score_is_that_of_the_model_or_of_the_highest_tile() -> None:
    cells = histogram(np.zeros((2, 2), np.float32))
    statistics = Statistics(((1.0, 3.0), (2.0,)), cells, np.e)
    assert POLICY.score_logit(statistics) == 2.5
    mean = np.log((np.exp(1) + np.exp(3)) / 2)
    assert FITTED.score_logit(statistics) == pytest.approx(2 * mean - 1 + 0.5)


def test_a_mask_must_be_believed() -> None:
    assert FITTED.believes("uncertain", 0.3)
    assert not FITTED.believes("manipulated", 0.29)
    assert not FITTED.believes("authentic", 0.9)
    assert POLICY.believes("authentic", None)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_untrained_claims_nothing(score: float) -> None:
    assert UNTRAINED.id == "untrained"
    assert UNTRAINED.label(score) == ("uncertain", None)
    assert UNTRAINED.false_positive_rate is None


def test_platt() -> None:
    assert POLICY.score(2.0) == 0.5
    assert POLICY.score(4.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert UNTRAINED.score(-1e30) == 0
    assert UNTRAINED.score(1e30) == 1


def test_scores_are_float32() -> None:
    score = POLICY.score(1.234)
    assert float(np.float32(score)) == score


@pytest.mark.parametrize("policy", [POLICY, LIMITED, UNTRAINED, FITTED])
def test_round_trip(policy: Policy) -> None:
    assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"treshold": 0.5}, "unknown treshold"),
        ({"id": ""}, "id must be a name"),
        ({"scale": 0}, "above 0"),
        ({"scale": None}, "finite number"),
        ({"offset": float("nan")}, "finite number"),
        ({"offset": "1"}, "finite number"),
        ({"mask_threshold": 1}, "between 0 and 1"),
        ({"mask_threshold": True}, "finite number"),
        ({"mask_share": 1}, "below 1"),
        ({"authentic_below": None}, "or neither"),
        ({"authentic_below": 0.95}, "authentic_below <= manipulated_at"),
        ({"manipulated_at": 1.5}, "<= 1"),
        ({"false_positive_rate": 2}, "0 to 1"),
        ({"manipulated_at": None, "authentic_below": None}, "needs thresholds"),
        ({"min_side": 0}, "whole pixels"),
        ({"min_side": 99.5}, "whole pixels"),
        ({"min_jpeg_quality": 101}, "1 to 100"),
        ({"min_jpeg_quality": "50"}, "finite number"),
        ({"score_model": {"weights": {"size": 1}, "offset": 0}}, "weights of max"),
        ({"score_model": {"weights": {"max": None}, "offset": 0}}, "finite number"),
        ({"score_model": []}, "object with weights, offset"),
        ({"pixel_model": {"scale": 0, "offset": 0}}, "above 0"),
        ({"pixel_model": {"scale": 1, "shift": 0}}, "object with scale, offset, score"),
        ({"least_confidence": 2}, "between 0 and 1"),
        ({"manipulated_at_sizes": [0.9]}, "pairs"),
        ({"closer_look": -1}, "number of tiles"),
        ({"closer_look": 1.5}, "number of tiles"),
        ({"manipulated_at_sizes": [[1, 0.8], [0, 0.9]]}, "ascend"),
        ({"manipulated_at_sizes": [[0, 0.95]]}, "<= manipulated_at"),
        ({"manipulated_at_sizes": [[0, 0.1]]}, "authentic_below <="),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Policy.from_json(json.dumps(json.loads(POLICY.to_json()) | change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{"])
def test_not_a_policy(text: str) -> None:
    with pytest.raises(UsageError, match="policy"):
        Policy.from_json(text)
