"""Context: histograms counted directly, copies found at their place, tiles of one picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from prompt_iml.engine.detection.context import (
    AGREE,
    MOST_PIXELS,
    NEAR,
    dct_histogram,
    find_matches,
    luma_of,
    picture_context,
    search_matches,
    tile_matches,
    whole_pictures,
)
from prompt_iml.engine.network.beyond.dct import zigzag
from prompt_iml.engine.operator import cpu

PHOTOGRAPH = skimage.data.astronaut()
COPY = slice(160, 232), slice(24, 96)  # rows and columns
DOWN, RIGHT = -133, 101  # from the copy to its source
NO_TABLE = np.ones(64, np.float32)
VECTORS = [16, 32, 64]  # bytes
needs_kernel = pytest.mark.skipif(not cpu.available(), reason="the CPU kernel was not compiled")


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


def test_a_histogram_equals_one_counted_directly() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (83, 1050, 3), np.uint8)  # with partial blocks
    table = random.integers(1, 60, 64).astype(np.float32)
    luma = np.rint(luma_of(pixels))[:80, :1048].reshape(10, 8, 131, 8).swapaxes(1, 2)
    sizes = np.abs(np.rint(dctn(luma, axes=(2, 3), norm="ortho").reshape(-1, 64) / table))
    found = dct_histogram(luma_of(pixels), table)
    for row, coefficient in zip(found, zigzag()[1:21], strict=True):
        counted = np.bincount(np.minimum(sizes[:, coefficient], 15).astype(int), minlength=16)
        np.testing.assert_allclose(row, counted / len(sizes), atol=5e-3)


def test_neighbours_in_a_copy_have_one_displacement_and_others_do_not() -> None:
    pixels = np.ascontiguousarray(PHOTOGRAPH[:256, 128:384])
    forged, authentic = (find_matches(luma_of(each)) for each in (_copied(pixels), pixels))
    inside = np.zeros((32, 32), bool)
    inside[22:27, 5:10] = True  # two blocks inside the copy
    assert forged[2][inside].mean() > 0.6
    assert authentic[2].mean() < 0.1
    assert forged[4][inside].mean() > 5 * authentic[4].mean()  # times the correlation


def test_a_copy_is_found_across_the_tiles_of_a_large_picture() -> None:
    pixels = np.array(Image.fromarray(PHOTOGRAPH).resize((1024, 1024)))
    authentic = tile_matches(picture_context(pixels, NO_TABLE), 768, 768, (256, 256))
    pixels[800:960, 800:960] = pixels[150:310, 380:540]  # two tiles away
    forged = tile_matches(picture_context(pixels, NO_TABLE), 768, 768, (256, 256))
    assert forged.shape == (6, 32, 32)
    assert forged[2][6:22, 6:22].mean() > 0.2 > 4 * authentic[2][6:22, 6:22].mean()


def _descriptors(*shape: int) -> NDArray[np.float32]:
    cells = np.random.default_rng(0).standard_normal((*shape, 25)).astype(np.float32)
    unit: NDArray[np.float32] = cells / np.linalg.norm(cells, axis=2, keepdims=True)
    return unit


@needs_kernel
@pytest.mark.parametrize("longest", VECTORS)
@pytest.mark.parametrize("shape", [(64, 64), (17, 61), (2, 9)])
def test_the_kernel_finds_what_numpy_finds(shape: tuple[int, int], longest: int) -> None:
    cells = _descriptors(*shape)
    value, place = cpu.best_matches(cells, NEAR, longest)
    expected, where = search_matches(cells, NEAR)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    excluded = expected == -2
    np.testing.assert_array_equal(place[~excluded], where[~excluded])


@needs_kernel
@pytest.mark.parametrize("longest", VECTORS)
def test_of_equal_matches_the_first_that_is_not_near_wins(longest: int) -> None:
    copies = np.tile(_descriptors(10, 12), (5, 6, 1))  # 5 x 6 equal cells for each query
    found = np.stack(np.divmod(cpu.best_matches(copies, NEAR, longest)[1], 72))
    query = 2 * np.indices((25, 36)) + 1
    of_first_tile = query % np.array([10, 12])[:, None, None]
    to_the_right = of_first_tile + np.array([0, 12])[:, None, None]
    near = (np.abs(of_first_tile - query) < NEAR).all(0)
    np.testing.assert_array_equal(found, np.where(near, to_the_right, of_first_tile))


def test_near_cells_are_no_match() -> None:
    cells = np.random.default_rng(0).standard_normal((24, 40, 25)).cumsum(0).cumsum(1)
    cells = (cells / np.linalg.norm(cells, axis=2, keepdims=True)).astype(np.float32)
    rows, columns = np.divmod(search_matches(cells, NEAR)[1], 40)
    down = rows - (2 * np.arange(12) + 1)[:, None]
    right = columns - (2 * np.arange(20) + 1)
    assert np.maximum(np.abs(down), np.abs(right)).min() >= NEAR > AGREE


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_picture_has_no_matches(level: int) -> None:
    assert not find_matches(luma_of(np.full((256, 256, 3), level, np.uint8)))[:5].any()


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (16, 9), (255, 257), (700, 900)])
def test_a_picture_of_any_size_has_a_context(shape: tuple[int, int]) -> None:
    assert shape != (700, 900) or np.prod(shape) > MOST_PIXELS
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    context = picture_context(pixels, NO_TABLE)
    assert context.matches.shape == (6, -(-shape[0] // 8), -(-shape[1] // 8))
    np.testing.assert_allclose(context.histogram.sum(1), 1, rtol=1e-5)
    assert tile_matches(context, 0, 0, (256, 512)).shape == (6, 32, 64)


def test_beyond_the_picture_matches_are_mirrored_as_its_pixels_are() -> None:
    batch = whole_pictures(PHOTOGRAPH[None, :64, :80], NO_TABLE[None])
    context = picture_context(PHOTOGRAPH[:64, :80], NO_TABLE)
    padded = tile_matches(context, 0, 0, (128, 96))
    np.testing.assert_array_equal(padded[:, :8, :10], batch.matches[0])
    np.testing.assert_array_equal(padded[:, 8:], padded[:, 7::-1])
    np.testing.assert_array_equal(padded[:, :, 10:], padded[:, :, 9:7:-1])
