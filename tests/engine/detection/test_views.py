"""Cutting into tiles and assembling: outputs lie where the pixels of their tiles were."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import map_coordinates
from scipy.special import expit

from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.views import (
    BLOCK,
    OVERLAP,
    LogitMap,
    View,
    assemble,
    cut,
    cut_enlarged,
    mean,
    probability_map,
    tile,
    upsample,
)

NATIVE = View("native")
FIT = View("fit")
SHAPES = [
    (1, 1),
    (7, 500),
    (384, 256),
    (512, 512),
    (513, 512),
    (768, 1024),
    (700, 1500),
    (100, 600),
]


def _photo(height: int, width: int, seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 100, 64).astype(np.float32)
    return Image(rng.integers(0, 256, (height, width, 3), np.uint8), table)


def _cell_means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the output of a known network: the mean red of each 4x4 cell, scaled to -2..2."""
    height, width = pixels.shape[:2]
    red = pixels[..., 0].astype(np.float32).reshape(height // 4, 4, width // 4, 4)
    return np.asarray((red.mean(axis=(1, 3)) - 128) / 64, np.float32)


def _detect(image: Image, view: View) -> LogitMap:
    tiling = cut(image, view)
    return assemble(tiling, [_cell_means(tile(tiling, i)) for i in range(len(tiling))])


def _direct(image: Image) -> NDArray[np.float32]:
    """Return the output of the same network for the whole image at once."""
    height, width = image.pixels.shape[:2]
    grow = ((0, -height % 4), (0, -width % 4), (0, 0))
    return _cell_means(np.pad(image.pixels, grow, mode="edge"))


def _interpolate(
    cells: NDArray[np.float32], shape: tuple[int, int], scale: tuple[float, float]
) -> NDArray[np.float64]:
    """Interpolate bilinearly between half-pixel centres, constant beyond the outermost."""
    axes = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(shape, scale, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return np.asarray(map_coordinates(cells.astype(np.float64), grid, order=1, mode="nearest"))


@pytest.mark.parametrize("shape", SHAPES)
def test_native_is_the_identity(shape: tuple[int, int]) -> None:
    image = _photo(*shape)
    logits = _detect(image, NATIVE)
    np.testing.assert_allclose(logits.cells, _direct(image), atol=1e-5)
    expected = expit(_interpolate(_direct(image), shape, (0.25, 0.25)))
    np.testing.assert_allclose(probability_map(logits), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(128, 128), (384, 256), (700, 1500)])
def test_fit_maps_back_to_the_stored_size(shape: tuple[int, int]) -> None:
    cells = np.random.default_rng(1).normal(size=(128, 128)).astype(np.float32)
    logits = assemble(cut(_photo(*shape), FIT), [cells])
    expected = expit(_interpolate(cells, shape, (128 / shape[0], 128 / shape[1])))
    np.testing.assert_allclose(probability_map(logits), expected, atol=1e-5)


def test_pixels_larger_than_cells_average_them() -> None:
    cells = np.random.default_rng(1).normal(size=(128, 128)).astype(np.float32)
    probability = probability_map(assemble(cut(_photo(1, 1), FIT), [cells]))
    assert probability.shape == (1, 1)
    assert abs(probability.item() - 0.5) < 0.02


@pytest.mark.parametrize("view", [FIT, View("native", (128,), max_tiles=1)])
def test_scaling_keeps_positions(view: View) -> None:
    ramp = np.arange(250, dtype=np.uint8)
    image = Image(np.stack([np.broadcast_to(ramp, (200, 250))] * 3, axis=-1))
    values = upsample(_detect(image, view), (slice(0, 200), slice(20, 230)))
    error = values * 64 + 128 - ramp[20:230]
    assert abs(error.mean()) < 0.1  # a shift by one pixel would give 1
    assert abs(error).max() < 1


@pytest.mark.parametrize(
    ("shape", "tile_shape", "count"),
    [
        ((1, 1), (256, 256), 1),
        ((256, 257), (256, 256), 2),
        ((384, 256), (256, 256), 2),
        ((479, 480), (256, 512), 2),
        ((512, 200), (512, 256), 1),
        ((513, 512), (512, 512), 2),
        ((3000, 4000), (512, 512), 63),
        ((300, 20_000), (256, 512), 90),
        ((3024, 4032), (512, 512), 63),
    ],
)
def test_tiles(shape: tuple[int, int], tile_shape: tuple[int, int], count: int) -> None:
    tiling = cut(Image(np.zeros((*shape, 3), np.uint8)), NATIVE)
    assert tiling.tile_shape == tile_shape
    assert len(tiling) == count
    assert tiling.preprocess == "native-256-512"


@settings(derandomize=True, deadline=None)
@given(st.integers(257, 479) | st.integers(513, 20_000))
def test_offsets(length: int) -> None:
    tiling = cut(Image(np.zeros((1, length, 3), np.uint8)), NATIVE)
    steps, side = np.diff(tiling.lefts), tiling.tile_shape[1]
    overlap = side // OVERLAP
    assert tiling.lefts[0] == 0
    assert tiling.lefts[-1] + side == math.ceil(length / BLOCK) * BLOCK
    assert not any(left % BLOCK for left in tiling.lefts)
    assert steps.max() <= side - overlap
    assert steps.max() - steps.min() <= BLOCK
    assert (len(tiling) - 1) * (
        side - overlap
    ) + overlap < length + BLOCK  # fewer would not cover it


@given(st.integers(1, 2000))
def test_little_is_padded_and_tiles_have_no_more_pixels(length: int) -> None:
    tiling = cut(Image(np.zeros((1, length, 3), np.uint8)), NATIVE)
    width = tiling.tile_shape[1]
    padded = next((side for side in (256, 512) if length <= side), 512)
    of_largest = cut(Image(np.zeros((1, length, 3), np.uint8)), View("native", (padded,)))
    assert len(tiling) * width == len(of_largest) * padded
    assert length < 256 or width - length <= width // 16


@pytest.mark.parametrize("shape", [(1, 1), (7, 250), (9, 255), (255, 8), (130, 100)])
def test_padding_is_edge_then_mirror(shape: tuple[int, int]) -> None:
    image = _photo(*shape)
    to_block = [(0, -length % BLOCK) for length in shape]
    whole = np.pad(image.pixels, [*to_block, (0, 0)], mode="edge")
    to_tile = [(0, 256 - length) for length in whole.shape[:2]]
    expected = np.pad(whole, [*to_tile, (0, 0)], mode="symmetric")
    np.testing.assert_array_equal(tile(cut(image, NATIVE), 0), expected)


def _spectra(pixels: NDArray[np.uint8]) -> set[bytes]:
    height, width = pixels.shape[:2]
    red = pixels[..., 0].astype(float).reshape(height // 8, 8, width // 8, 8)
    spectrum = abs(dctn(red, axes=(1, 3), norm="ortho")).round(6) + 0.0
    return {block.tobytes() for block in spectrum.swapaxes(1, 2).reshape(-1, 64)}


def test_mirrored_blocks_keep_their_spectrum() -> None:
    image = _photo(40, 24)
    assert _spectra(tile(cut(image, NATIVE), 0)) == _spectra(image.pixels)


@pytest.mark.parametrize("shape", [(512, 520), (512, 968), (512, 1400)])
def test_blending_is_smooth(shape: tuple[int, int]) -> None:
    tiling = cut(_photo(*shape), NATIVE)
    tiles = [np.full((128, 128), i, np.float32) for i in range(len(tiling))]
    row = assemble(tiling, tiles).cells[0]
    assert row[0] == 0
    assert row[-1] == len(tiling) - 1
    assert (np.diff(row) >= -1e-6).all()
    assert np.diff(row).max() < 0.12


def test_the_table_belongs_to_the_stored_grid() -> None:
    image = _photo(100, 100)
    ones = np.ones(64, np.float32)
    assert cut(image, NATIVE).qtable is image.luma_table
    np.testing.assert_array_equal(cut(Image(image.pixels), NATIVE).qtable, ones)
    np.testing.assert_array_equal(cut(image, FIT).qtable, ones)
    np.testing.assert_array_equal(cut(_photo(300, 300), View("native", (128,), 4)).qtable, ones)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 9))
def test_the_cap_scales_down(height: int, width: int, max_tiles: int) -> None:
    image = Image(np.zeros((height, width, 3), np.uint8))
    tiling = cut(image, View("native", (128,), max_tiles))
    h, w = tiling.pixels.shape[:2]
    scaled = (h, w) != (height, width)
    assert len(tiling) <= max_tiles
    assert tiling.preprocess == ("native-128-scaled" if scaled else "native-128")
    assert abs(h * width - w * height) <= max(height, width)  # equal proportions, up to a pixel
    assert scaled == (_uncapped(height, width) > max_tiles)
    assert (
        not scaled or _uncapped(h + h // 50 + 1, w + w // 50 + 1) > max_tiles
    )  # a larger one has too many


def _uncapped(height: int, width: int) -> int:
    image = Image(np.zeros((height, width, 3), np.uint8))
    return len(cut(image, View("native", (128,), 10_000)))


def test_fit_names_itself() -> None:
    tiling = cut(_photo(100, 300), FIT)
    assert (tiling.tile_shape, tiling.preprocess) == ((512, 512), "fit-512")


@pytest.mark.parametrize(
    ("shape", "has_table", "enlarged"),
    [
        ((128, 192), False, (256, 384)),
        ((239, 2000), False, (478, 4000)),
        ((240, 2000), False, None),  # 1/16 of 256 is padded instead
        ((128, 192), True, None),
        ((8, 200_000), False, None),  # more tiles than an image may have
    ],
)
def test_small_pictures_without_a_table_get_an_enlarged_view(
    shape: tuple[int, int], has_table: bool, enlarged: tuple[int, int] | None
) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    image = Image(pixels, np.full(64, 4, np.float32)) if has_table else Image(pixels)
    tiling = cut_enlarged(image, NATIVE)
    assert (tiling and tiling.pixels.shape[:2]) == enlarged
    if tiling:
        assert (tiling.stored_shape, tiling.preprocess) == (shape, "native-256-512-enlarged")
    assert cut_enlarged(image, FIT) is None


@pytest.mark.parametrize("shape", [(128, 192), (129, 191), (31, 250)])
def test_the_mean_of_two_views_keeps_positions(shape: tuple[int, int]) -> None:
    """The image is a ramp, so both maps and their mean must be ramps."""
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) // 2
    image = Image(ramp.astype(np.uint8)[..., None].repeat(3, 2))
    tiling = cut_enlarged(image, NATIVE)
    assert tiling
    coarse = _detect(image, NATIVE)
    fine = assemble(tiling, [_cell_means(tile(tiling, i)) for i in range(len(tiling))])
    both = mean(coarse, fine)
    assert (both.cells.shape, both.extent, both.shape) == (fine.cells.shape, fine.extent, shape)
    whole = slice(0, shape[0]), slice(0, shape[1])
    found = upsample(both, whole)[8:-8, 8:-8] * 64 + 128
    assert np.abs(found - ramp[8:-8, 8:-8]).max() < 3


def test_the_mean_of_a_map_with_itself_is_itself() -> None:
    logits = LogitMap(np.arange(12, dtype=np.float32).reshape(3, 4), (2.5, 4.0), (10, 16))
    np.testing.assert_array_equal(mean(logits, logits).cells, logits.cells)
