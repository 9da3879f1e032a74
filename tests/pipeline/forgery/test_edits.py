"""Edits hide their seams as editors do, and their masks cover what they changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from prompt_iml.pipeline.forgery.blending import Mask, harmonised, membrane, poisson
from prompt_iml.pipeline.forgery.edits import Edit, copy_move, remove, retouch
from prompt_iml.pipeline.forgery.fills import diffused, patched, shifted
from prompt_iml.pipeline.forgery.history import FRAME, Floats
from prompt_iml.pipeline.forgery.photos import Scene

HOST = skimage.data.astronaut()[:FRAME, :FRAME]
PATCH = skimage.data.coffee()[:FRAME, :FRAME].astype(np.float64)
OUTLINE = np.array([(90.0, 90.0), (190.0, 80.0), (200.0, 190.0), (80.0, 200.0)])


@pytest.fixture
def disc() -> Mask:
    row, column = np.mgrid[:FRAME, :FRAME]
    inside: Mask = (row - 150) ** 2 + (column - 140) ** 2 < 60**2
    return inside


def test_a_poisson_blend_has_the_patchs_gradients_inside_and_the_host_outside(disc: Mask) -> None:
    blended = poisson(HOST, PATCH, disc).astype(np.float64)
    np.testing.assert_array_equal(blended[~disc], HOST[~disc])
    plain = np.where(disc[..., None], PATCH, HOST)
    inside, seam = ndimage.binary_erosion(disc, iterations=9), disc[:, 1:] & ~disc[:, :-1]
    off, was = (np.abs(np.diff(image - PATCH, axis=1)) for image in (blended, HOST))
    assert off[inside[:, 1:]].mean() < 0.15 * was[inside[:, 1:]].mean()
    steps, pasted = (np.abs(np.diff(image, axis=1))[seam].mean() for image in (blended, plain))
    assert steps < 0.4 * pasted


def test_mixed_gradients_keep_the_hosts_strong_edges(disc: Mask) -> None:
    blended = poisson(HOST, np.full_like(PATCH, 128.0), disc, mixed=True).astype(np.float64)
    correlation = np.corrcoef(blended[disc].ravel(), HOST[disc].ravel())[0, 1]
    assert correlation > 0.95  # a flat patch leaves the host as it was


def test_a_membrane_continues_a_plane_exactly_enough(disc: Mask) -> None:
    plane = np.mgrid[:FRAME, :FRAME].sum(0)[..., None].astype(np.float64)
    holed = np.where(disc[..., None], 0.0, plane)
    assert np.abs(membrane(holed, ~disc) - plane).max() < 12  # of a range of 600


def test_harmonised_colours_are_nearer_to_their_surroundings(disc: Mask) -> None:
    around = ndimage.binary_dilation(disc, iterations=7) & ~disc
    matched = harmonised(PATCH, HOST, disc.astype(np.float64), np.random.default_rng(1))
    for moment in (np.mean, np.std):
        wanted = moment(HOST[around], axis=0)
        before, after = (np.abs(moment(p[disc], axis=0) - wanted).sum() for p in (PATCH, matched))
        assert after < before


@pytest.mark.parametrize("fill", [diffused, shifted, patched])
def test_a_fill_shows_nothing_of_what_is_removed(fill: Callable[..., Floats], disc: Mask) -> None:
    marked = np.where(disc[..., None], np.uint8([255, 0, 255]), np.uint8([90, 140, 60]))
    filled = fill(marked.astype(np.uint8), disc, np.random.default_rng(0))
    assert np.abs(filled[disc] - (90, 140, 60)).max() < 25


@pytest.mark.parametrize("edit", [copy_move, remove, retouch])
def test_a_mask_covers_what_every_way_of_an_edit_changed(edit: Callable[..., Edit]) -> None:
    for seed in range(24):
        pixels, alpha = edit(Scene(HOST, ()), OUTLINE, np.random.default_rng(seed))
        changed = np.abs(pixels.astype(int) - HOST).max(2) > 2
        assert not changed[alpha == 0].any()
        # What lies under half of the opacity is a feathered edge, a few pixels wide.
        assert not changed[~ndimage.binary_dilation(alpha >= 0.5, iterations=9)].any()
