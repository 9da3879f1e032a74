"""Calibration, labels, and the file that carries them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.errors import UsageError
from engine.policy import UNTRAINED, Policy

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


@pytest.mark.parametrize("policy", [POLICY, UNTRAINED])
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
        ({"authentic_below": None}, "or neither"),
        ({"authentic_below": 0.95}, "authentic_below <= manipulated_at"),
        ({"manipulated_at": 1.5}, "<= 1"),
        ({"false_positive_rate": 2}, "0 to 1"),
        ({"manipulated_at": None, "authentic_below": None}, "needs thresholds"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Policy.from_json(json.dumps(json.loads(POLICY.to_json()) | change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{"])
def test_not_a_policy(text: str) -> None:
    with pytest.raises(UsageError, match="policy"):
        Policy.from_json(text)
