"""Matches: a copy is found at its place, and nothing is found without one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prompt_iml.engine.network.beyond.matches import CELL, NEAR, Matches, best_matches

PHOTOGRAPH = skimage.data.astronaut()
COPY = slice(160, 232), slice(24, 96)  # rows and columns
DOWN, RIGHT = -133, 101  # from the copy to its source


def _search(pixels: NDArray[np.uint8]) -> Tensor:
    """Return the result of the search, (6, 32, 32)."""
    found: Tensor = Matches(8).search(_tensor(pixels))[0]
    return found


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None].float()


def _copied(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels with a part of themselves copied to `COPY`, saved as JPEG."""
    rows, columns = COPY
    forged = pixels.copy()
    forged[COPY] = pixels[
        rows.start + DOWN : rows.stop + DOWN, columns.start + RIGHT : columns.stop + RIGHT
    ]
    file = io.BytesIO()
    Image.fromarray(forged).save(file, "JPEG", quality=85)
    with Image.open(file) as saved:
        return np.asarray(saved)


def test_neighbours_in_a_copy_have_one_displacement_and_others_do_not() -> None:
    pixels = np.ascontiguousarray(PHOTOGRAPH[:256, 128:384])
    forged, authentic = _search(_copied(pixels)), _search(pixels)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[22:27, 5:10] = True  # two blocks inside the copy
    assert forged[2][inside].mean() > 0.6
    assert authentic[2].mean() < 0.1
    assert forged[4][inside].mean() > 5 * authentic[4].mean()  # times the correlation


def test_a_match_lies_where_it_was_copied_from() -> None:
    matches, pixels = Matches(8), np.ascontiguousarray(PHOTOGRAPH[:256, 128:384])
    luma_B1HW = (_tensor(_copied(pixels)) * matches.luma).sum(1, keepdim=True)
    descriptors_BPHW, _ = matches.descriptors(luma_B1HW)
    _, displacement_B2HW = best_matches(descriptors_BPHW)
    middle_2N = CELL * displacement_B2HW[0, :, 22:27, 5:10].flatten(1)
    found_2 = middle_2N.median(1).values
    assert (found_2 - torch.tensor([DOWN, RIGHT])).abs().max() <= CELL


def test_near_cells_are_no_match() -> None:
    torch.manual_seed(0)
    descriptors_BPHW = torch.randn(2, 25, 24, 40).cumsum(2).cumsum(3)  # neighbours are similar
    descriptors_BPHW = torch.nn.functional.normalize(descriptors_BPHW, dim=1)
    _, displacement_B2HW = best_matches(descriptors_BPHW)
    assert displacement_B2HW.shape == (2, 2, 12, 20)
    assert displacement_B2HW.abs().amax(1).min() >= NEAR


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_image_has_no_matches(level: int) -> None:
    assert not _search(np.full((256, 256, 3), level, np.uint8))[:5].any()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (512, 256), (512, 512)])
def test_a_search_always_has_the_same_size(height: int, width: int) -> None:
    matches, image_B3HW = Matches(8), torch.rand(2, 3, height, width) * 255
    assert matches.search(image_B3HW).shape == (2, 6, 32, 32)
    assert matches(image_B3HW).shape == (2, height // 8, width // 8, 8)


def test_the_search_is_float32_under_autocast() -> None:
    matches, image_B3HW = Matches(8), torch.rand(1, 3, 256, 256) * 255
    torch.nn.init.normal_(matches.out.weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = matches(image_B3HW)
    torch.testing.assert_close(found.float(), matches(image_B3HW), atol=0.05, rtol=0.05)
