"""Statistics of a picture, the expected F1 of a mask, and the calibration of pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prompt_iml.engine.detection.score import (
    CENTRES,
    FEATURES,
    PixelModel,
    Statistics,
    best_threshold,
    expected_f1,
    histogram,
)


def test_a_histogram_counts_every_cell_once() -> None:
    cells = np.array([[-99, -16, 0.0], [0.06, 15.99, 99]], np.float32)
    counts = histogram(cells)
    assert counts.sum() == 6
    assert (counts[0], counts[len(counts) // 2], counts[-1]) == (2, 2, 2)
    values = np.random.default_rng(0).normal(0, 4, 10_000).astype(np.float32)
    found = np.repeat(CENTRES, histogram(values))
    assert np.abs(np.sort(values) - found).max() <= 1 / 32 + 1e-5


def test_features_have_their_names_and_are_finite() -> None:
    for logits in (np.zeros(4), np.full(4, -99.0), np.full(4, 99.0)):
        cells = histogram(logits.astype(np.float32))
        features = Statistics(((1.0, 3.0),), cells, 0.25).features()
        assert tuple(features) == FEATURES
        assert np.isfinite(list(features.values())).all()
    assert features["max"] == 3
    assert features["mean"] == 2
    assert features["log_tiles"] == pytest.approx(np.log(2))
    assert features["log_mean_exp"] == pytest.approx(np.log((np.exp(1) + np.exp(3)) / 2))


def test_the_expected_f1_is_that_of_the_best_of_all_masks() -> None:
    """Compare with the F1 of sum of hits over sum of sizes, for every mask of six pixels."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        probabilities = np.sort(rng.random(6))
        best = max(
            2 * probabilities[list(mask)].sum() / (len(mask) + probabilities.sum())
            for size in range(1, 7)
            for mask in itertools.combinations(range(6), size)
        )
        found = expected_f1(np.ones(6, np.int64), probabilities)
        assert found == pytest.approx(best)
        inside = probabilities > best_threshold(found)
        assert 2 * probabilities[inside].sum() / (inside.sum() + probabilities.sum()) == (
            pytest.approx(best)
        )


def test_calibrated_logits_are_those_of_the_probabilities() -> None:
    model = PixelModel(2.0, -1.0, 0.5)
    cells = np.array([[-1.0, 0.25]], np.float32)
    logits = model.calibrated(cells, score_logit=3.0)
    assert logits.dtype == np.float32
    expected = model.probabilities(cells.astype(float), 3.0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, rtol=1e-6)


def test_a_picture_of_a_high_score_has_a_mask_of_more_confidence() -> None:
    cells = histogram(np.linspace(-4, 2, 1000, dtype=np.float32))
    model = PixelModel(1.0, 0.0, 1.0)
    found = [model.confidence(cells, score) for score in (-5.0, 0.0, 5.0)]
    assert found == sorted(found)
    assert 0 < found[0] < 0.1 < 0.9 < found[2] <= 1
    assert best_threshold(0.0) > 0
