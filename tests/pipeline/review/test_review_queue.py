"""The queue of a review: its order, its random tenth, and its labels."""

from __future__ import annotations

from collections import Counter

import numpy as np

from prompt_iml.pipeline.review.review import subject_of
from prompt_iml.pipeline.settings import ReviewSettings
from tests.helpers.reviewed import POLICY, commit_many
from tests.helpers.stores import Folder


def test_the_queue_begins_at_the_thresholds_and_has_a_random_tenth(folder: Folder) -> None:
    commit_many(f"{folder.uri}/out", 200)
    shown = subject_of(ReviewSettings(output=f"{folder.uri}/out", limit=100)).queue
    assert len({each.row["image_id"] for each in shown}) == 100
    sample = [each.row["label"] for each in shown[9::10]]
    assert {each.shown_for for each in shown[9::10]} == {"sample"}
    assert Counter(sample) == {"manipulated": 4, "uncertain": 3, "authentic": 3}
    near = [each.row["score"] for each in shown if each.shown_for == "uncertainty"]

    def distance(score: float) -> float:
        logit = np.log(score / (1 - score))
        return float(min(abs(logit - np.log(at / (1 - at))) for at in POLICY.values()))

    assert len(near) == 90
    assert [distance(each) for each in near] == sorted(distance(each) for each in near)
    again = subject_of(ReviewSettings(output=f"{folder.uri}/out", limit=100)).queue
    assert [each.row["image_id"] for each in again] == [each.row["image_id"] for each in shown]


def test_the_queue_by_score_and_of_one_label(folder: Folder) -> None:
    commit_many(f"{folder.uri}/out", 200)
    flags = {"output": f"{folder.uri}/out", "order": "score", "label": ["uncertain"]}
    shown = subject_of(ReviewSettings(**flags)).queue
    scores = [each.row["score"] for each in shown]
    assert scores == sorted(scores, reverse=True)
    assert {each.row["label"] for each in shown} == {"uncertain"}
    assert {each.shown_for for each in shown} == {"score"}
    assert len(shown) == 120
