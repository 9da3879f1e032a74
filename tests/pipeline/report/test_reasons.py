"""Why an image is uncertain, against the policy that labelled it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from prompt_iml.engine.model.policy import UNTRAINED, Policy
from prompt_iml.pipeline.report.reasons import believed, reasons_of, sentences

POLICY = Policy(
    "p",
    manipulated_at=0.9,
    authentic_below=0.3,
    manipulated_at_sizes=((0.0, 0.7),),
    min_side=128,
    min_jpeg_quality=50,
)


def row_of(
    policy: Policy, score: float, size: tuple[int, int], quality: int | None, view: str = ""
) -> dict[str, Any]:
    width, height = size
    megapixels = width * height / 1e6
    label, threshold = policy.label(
        score, side=min(size), jpeg_quality=quality, megapixels=megapixels
    )
    return {
        "label": label,
        "width": width,
        "height": height,
        "jpeg_quality": quality,
        "threshold": None if threshold is None else float(np.float32(threshold)),
        "preprocess": f"native-256-512{view}",
    }


@pytest.mark.parametrize("policy", [POLICY, UNTRAINED], ids=lambda policy: policy.id)
def test_what_is_uncertain_has_a_reason_and_nothing_else_has(policy: Policy) -> None:
    cases = product((0.0, 0.3, 0.69, 0.7, 1.0), ((127, 500), (500, 128)), (None, 49, 50))
    rows = [row_of(policy, *case) for case in cases]
    for row, names in zip(rows, reasons_of(rows, policy.to_dict()), strict=True):
        assert bool(names) == (row["label"] == "uncertain"), row


@pytest.mark.parametrize(
    ("size", "quality", "view", "said"),
    [
        ((200, 300), None, "", ["Between the thresholds 0.300 and 0.700."]),
        ((200, 127), None, "", ["Too small: the shorter side has 127 pixels and needs 128."]),
        ((200, 300), 49, "", ["Too compressed: its JPEG quality is 49 and must be 50."]),
        ((127, 300), 49, "", ["Too small", "Too compressed"]),
        ((9000, 9000), None, "-scaled", ["Between the thresholds", "Too large for the network"]),
        (
            (9000, 9000),
            None,
            "-scaled-closer",
            ["Between the thresholds", "Too large for the network"],
        ),
        ((200, 200), None, "-enlarged", ["Between the thresholds", "Small and no JPEG"]),
    ],
)
def test_reasons_have_their_numbers(
    size: tuple[int, int], quality: int | None, view: str, said: list[str]
) -> None:
    row, policy = row_of(POLICY, 0.5, size, quality, view), POLICY.to_dict()
    (names,) = reasons_of([row], policy)
    found = sentences(names, row, policy)
    assert [each[: len(wanted)] for each, wanted in zip(found, said, strict=True)] == said


def test_a_run_that_follows_a_registry_has_reasons_without_numbers() -> None:
    between, beyond = row_of(POLICY, 0.5, (200, 200), None), row_of(POLICY, 0.5, (9, 9), None)
    assert reasons_of([between, beyond], {}) == [["between"], ["unlabelled"]]
    assert sentences(["between"], between, {}) == ["Between the thresholds."]


@pytest.mark.parametrize(
    ("label", "confidence", "least", "shown"),
    [
        ("manipulated", None, 0.0, True),
        ("manipulated", 0.3, 0.3, True),
        ("manipulated", 0.2, 0.3, False),
        ("uncertain", 0.9, 0.0, False),
        ("authentic", None, 0.0, False),
    ],
)
def test_a_mask_is_believed_where_the_label_and_its_confidence_allow(
    label: str, confidence: float | None, least: float, shown: bool
) -> None:
    row = {"label": label, "mask_confidence": confidence}
    assert believed(row, {"least_confidence": least}) == shown
