"""Masks and regions of maps of logits."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prompt_iml.engine.detection import postprocess, views
from prompt_iml.engine.detection.postprocess import localize
from prompt_iml.engine.detection.views import LogitMap, probability_map


def _map(cells: NDArray[np.float64]) -> LogitMap:
    """Return a map with one cell for each pixel, so that nothing is interpolated."""
    return LogitMap(cells.astype(np.float32), cells.shape, cells.shape)


def _squares(*corners: tuple[int, int, int]) -> NDArray[np.float64]:
    cells = np.full((60, 80), -2.0)
    for y, x, side in corners:
        cells[y : y + side, x : x + side] = 2.0
    return cells


def test_nothing_above_the_threshold() -> None:
    localization = localize(_map(np.zeros((60, 80))), 0.5)
    assert localization.mask is None
    assert localization.manipulated_fraction == 0
    assert localization.regions == ()


def test_two_regions_largest_first() -> None:
    localization = localize(_map(_squares((2, 3, 4), (30, 40, 10))), 0.5)
    assert [astuple(region)[:5] for region in localization.regions] == [
        (40, 30, 10, 10, 100),
        (3, 2, 4, 4, 16),
    ]
    assert localization.manipulated_fraction == pytest.approx(116 / 4800)


def test_scores_are_of_the_region_alone() -> None:
    cells = _squares((2, 3, 2), (30, 40, 10))
    cells[2:4, 3:5] = [[1, 2], [3, 4]]
    region = localize(_map(cells), 0.5).regions[1]
    probabilities = 1 / (1 + np.exp(-np.array([1, 2, 3, 4])))
    assert region.mean_score == pytest.approx(probabilities.mean())
    assert region.max_score == pytest.approx(probabilities.max())


def test_a_region_around_another() -> None:
    cells = _squares((10, 10, 20))
    cells[12:28, 12:28] = -2
    cells[18:20, 18:20] = 1
    ring, speck = localize(_map(cells), 0.5).regions
    assert (ring.area, ring.width, ring.mean_score) == (144, 20, ring.max_score)
    assert (speck.x, speck.y, speck.area) == (18, 18, 4)
    assert speck.max_score < ring.max_score


def test_corners_connect() -> None:
    (region,) = localize(_map(_squares((10, 10, 5), (15, 15, 5))), 0.5).regions
    assert (region.width, region.height, region.area) == (10, 10, 50)


def test_equal_areas_come_from_the_top() -> None:
    regions = localize(_map(_squares((30, 5, 3), (10, 50, 3), (10, 20, 3))), 0.5).regions
    assert [(region.y, region.x) for region in regions] == [(10, 20), (10, 50), (30, 5)]


def test_at_most_sixteen_regions() -> None:
    specks = [(4 * (i % 10), 10 * (i // 10), 1 + (i == 19)) for i in range(20)]
    localization = localize(_map(_squares(*specks)), 0.5)
    assert len(localization.regions) == 16
    assert localization.regions[0].area == 4
    assert localization.manipulated_fraction == pytest.approx(23 / 4800)


def test_threshold_is_a_probability() -> None:
    cells = _squares((2, 3, 4))
    assert localize(_map(cells), 0.88).mask is not None
    assert localize(_map(cells), 0.89).mask is None


def test_a_peak_between_pixel_centres() -> None:
    cells = np.full((8, 8), -9.0, np.float32)
    cells[4, 4] = 0.1
    assert localize(LogitMap(cells, (8, 8), (32, 32)), 0.5).mask is None


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (5, 90), (37, 41), (64, 100)]))
def test_the_mask_is_the_thresholded_map(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.normal(-2, 1.5, rng.integers(1, 20, 2)).astype(np.float32)
    extent = cells.shape[0] - rng.integers(0, 4) / 4, cells.shape[1] - rng.integers(0, 4) / 4
    logits = LogitMap(cells, extent, shape)
    mask = localize(logits, 0.6).mask
    probabilities = probability_map(logits)
    doubtful = abs(probabilities - 0.6) < 1e-6
    expected = (probabilities > 0.6) & ~doubtful
    np.testing.assert_array_equal(False if mask is None else mask & ~doubtful, expected)


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    logits = LogitMap(cells, (20, 30), (80, 120))
    whole = localize(logits, 0.5)
    monkeypatch.setattr(views, "STRIP_PIXELS", 700)
    monkeypatch.setattr(postprocess, "CHUNK", 900)
    strips = localize(logits, 0.5)
    np.testing.assert_array_equal(whole.mask, strips.mask)
    for a, b in zip(whole.regions, strips.regions, strict=True):
        assert a.mean_score == pytest.approx(b.mean_score)
        assert a.max_score == pytest.approx(b.max_score)
        assert a.area == b.area
