"""The JPEG view against scipy's DCT, real JPEG files, and histograms counted directly."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from scipy.fft import dctn
from torch.nn import functional

from prompt_iml.engine.network.beyond.dct import LUMA, dct_basis, zigzag
from prompt_iml.engine.network.beyond.jpeg_view import JpegView, first_save_ratios
from prompt_iml.engine.network.config import JpegViewConfig


def _blocks(luma_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the orthonormal DCT of each 8x8 block, (H/8, W/8, 64)."""
    rows, columns = luma_HW.shape[0] // 8, luma_HW.shape[1] // 8
    blocks = luma_HW.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3)
    transformed: NDArray[np.float64] = dctn(blocks, axes=(2, 3), norm="ortho")
    return transformed.reshape(rows, columns, 64)


def _saved(
    quality: int, pixels: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return pixels (default: a photograph) after JPEG, and the luma table in natural order."""
    sink = io.BytesIO()
    image = Image.fromarray(skimage.data.astronaut() if pixels is None else pixels)
    image.save(sink, "JPEG", quality=quality, subsampling=0)
    with Image.open(sink) as file:
        assert isinstance(file, JpegImageFile)
        return np.asarray(file), np.array(file.quantization[0], np.float32)


def test_basis_is_the_orthonormal_dct() -> None:
    block = np.random.default_rng(0).standard_normal((8, 8))
    found = np.einsum("krc,rc->k", dct_basis(), block)
    np.testing.assert_allclose(found, dctn(block, norm="ortho").ravel(), atol=1e-12)


def test_zigzag_is_the_standards() -> None:
    assert zigzag()[:15] == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4]
    assert zigzag()[-3:] == [55, 62, 63]
    assert sorted(zigzag()) == list(range(64))


def test_coefficients_equal_scipys() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (32, 48, 3))
    table = random.integers(1, 60, 64).astype(np.float32)
    view = JpegView(JpegViewConfig(), 8).double()
    image_B3HW = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    found = view.coefficients(image_B3HW, torch.from_numpy(table)[None].double())[0]
    expected = (_blocks(np.round(image @ np.array(LUMA)) - 128) / table)[..., zigzag()[1:21]]
    np.testing.assert_allclose(found.reshape(4, 6, 20).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("quality", "closeness"), [(50, 0.03), (75, 0.05), (90, 0.12)])
def test_coefficients_of_a_jpeg_are_whole_numbers(quality: int, closeness: float) -> None:
    pixels, table = _saved(quality)
    view = JpegView(JpegViewConfig(), 8)
    image_B3HW = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
    found = view.coefficients(image_B3HW, torch.from_numpy(table)[None])
    shifted = view.coefficients(image_B3HW[..., 3:-5, 5:-3], torch.from_numpy(table)[None])
    assert (found - found.round()).abs().mean() < closeness  # 0.25 by chance
    assert (shifted - shifted.round()).abs().mean() > 1.5 * closeness


def test_histograms_equal_those_counted_directly() -> None:
    torch.manual_seed(0)
    view = JpegView(JpegViewConfig(coefficients=3, bins=4, channels=8), 5).double()
    image = torch.randint(0, 256, (2, 3, 64, 80)).double()
    table = torch.randint(1, 60, (2, 64)).double()
    bins_BSK = view.coefficients(image, table).abs().round().clamp(max=3).long()
    onehot_BSX = functional.one_hot(bins_BSK, 4).flatten(2).double()
    onehot = onehot_BSX.mT.unflatten(2, (8, 10))
    around = [
        functional.avg_pool2d(onehot, side, 1, side // 2, count_include_pad=False)
        for side in (1, 3, 7)
    ]
    local = torch.cat([view.embed(x.flatten(2).mT) for x in around], 2)
    whole = torch.cat([view.embed(onehot_BSX.mean(1)), table.log2() / 8], 1)
    hidden = functional.relu(view.local(local) + view.whole(whole)[:, None])
    shares = torch.unflatten(onehot_BSX.mean(1), 1, (3, 4))
    expected = view.out(hidden).reshape(2, 8, 10, 5)
    torch.testing.assert_close(view(image, table, shares), expected)


def _ratios(pixels: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the likelihood ratios of an image, (2 x coefficients, H/8, W/8)."""
    view = JpegView(JpegViewConfig(likelihood_ratios=True), 8)
    image_B3HW = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
    table_B64 = torch.from_numpy(table)[None]
    bins_BKS = view.coefficients(image_B3HW, table_B64).abs().round().clamp(max=15).long().mT
    shares = functional.one_hot(bins_BKS, 16).float().mean(2)
    tables = view.likelihood_ratios(shares, table_B64[:, view.order])
    found = tables.gather(2, bins_BKS.repeat(1, 2, 1))[0]
    blocks = pixels.shape[0] // 8, pixels.shape[1] // 8
    ratios: NDArray[np.float32] = found.unflatten(1, blocks).numpy()
    return ratios


def test_ratios_of_gaps_equal_those_counted_directly() -> None:
    pixels, table = _saved(90, _saved(70)[0])
    values = np.abs(np.round(_blocks(np.round(pixels @ np.array(LUMA)) - 128) / table))
    found = _ratios(pixels, table)
    for place, coefficient in enumerate(zigzag()[1:21]):
        sizes = values[..., coefficient]
        share = {n: (sizes == n).mean() / (1 if n == 0 else 2) for n in range(15)}
        for n in range(15):
            near = [share[abs(m)] for m in range(n - 2, n + 3) if abs(m) in share]
            expected = np.log((np.mean(near) + 1e-3) / (share[n] + 1e-3))
            np.testing.assert_allclose(found[place][sizes == n], expected, atol=1e-4)
        assert not found[place][sizes > 14].any()


def test_what_was_saved_once_is_unlikely_where_all_else_was_saved_twice() -> None:
    twice = _saved(70)[0].copy()
    twice[128:256, 256:384] = skimage.data.astronaut()[128:256, 256:384]
    ratios = _ratios(*_saved(95, twice))
    gaps, steps = ratios[:20].mean(0), ratios[20:].mean(0)
    inside = np.zeros((64, 64), bool)
    inside[16:32, 32:48] = True
    assert gaps[inside].mean() > 0.1
    assert gaps[~inside].mean() < -0.1
    assert steps[inside].mean() < 0.5 * steps[~inside].mean()


@pytest.mark.parametrize(("first", "last"), [(60, 95), (50, 90), (75, 100)])
def test_the_steps_of_a_coarser_first_save_are_found(first: int, last: int) -> None:
    pixels, coarse = _saved(first)
    _, fine = _saved(last, pixels)
    order = zigzag()[1:5]
    ratios = _table_of_steps(_saved(last, pixels)[0], fine)[:4]
    for ratio, step, again in zip(ratios, coarse[order], fine[order], strict=True):
        values = np.arange(15) * again
        on = [round(n * step / again) for n in range(1, 15) if n * step / again < 14.5]
        assert (ratio[on] > 0).all()
        off = [n for n in range(2, 15) if n not in on and values[n] > step / 2]
        assert (ratio[off] < ratio[on].min()).all()


@pytest.mark.parametrize(("first", "last"), [(None, 90), (95, 75)])
def test_no_first_steps_where_there_were_none_or_finer_ones(first: int | None, last: int) -> None:
    pixels, table = _saved(last, _saved(first)[0] if first else None)
    found = _table_of_steps(pixels, table)
    assert (found != 0).any(1).mean() < 0.2


def _table_of_steps(pixels: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `first_save_ratios` of an image, (coefficients, bins)."""
    values = np.abs(np.round(_blocks(np.round(pixels @ np.array(LUMA)) - 128) / table))
    sizes = torch.from_numpy(values.clip(max=15))[..., zigzag()[1:21]].long()
    shares = functional.one_hot(sizes, 16).float().mean((0, 1))[None]
    step = torch.from_numpy(table[zigzag()[1:21]])[None]
    ratios: NDArray[np.float32] = first_save_ratios(shares, step)[0].numpy()
    return ratios


def test_the_table_changes_the_output() -> None:
    pixels, table = _saved(75)
    view = JpegView(JpegViewConfig(), 8)
    image_B3HW = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
    histogram = torch.full((1, 20, 16), 1 / 16)
    with_table = view(image_B3HW, torch.from_numpy(table)[None], histogram)
    assert with_table.shape == (1, 64, 64, 8)
    assert not torch.allclose(with_table, view(image_B3HW, torch.ones(1, 64), histogram))
