"""Matches: where an image lies in itself a second time, as after a copy-move.

Each place is compared with all that are not near it; what tells a copy from likeness by chance is
that neighbouring places find theirs in the same direction and distance. Beyond the paper; dense
matching and the vote of the neighbourhood are those of copy-move detectors (Cozzolino, Poggi and
Verdoliva, "Efficient dense-field copy-move forgery detection", 2015). Nothing of the search is
learned: what to make of its answers is.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.beyond.jpeg_view import BLOCK, LUMA

SIDE = 256  # pixels that an image is scaled to on both axes, so that a search always costs the same
CELL = 4  # pixels between the places that may be found; those that look are a block apart
BLUR, BLUR_SIZE = 2.0, 13  # sigma and taps: a place may be found half a cell beside where it is
PATCH = 5  # cells on either axis that a place is told by
NEAR = 8  # cells on either axis within which everything looks like itself
AGREE = 1  # cells by which the ways of neighbours may differ: of a copy that was scaled or turned
RINGS = 3  # blocks around a place whose ways are compared with its own
FLAT = 0.1  # grey levels of contrast below which nothing can be found
NOISE = 0.05  # grey levels: added to the contrast, so that noise is not blown up to a pattern
NOWHERE = 1e4  # cells: the way of a place that found nothing
FEATURES = RINGS + 3


class Matches(nn.Module):
    """(B, 3, H, W) pixels, 0..255 -> (B, H/8, W/8, out)."""

    luma: Tensor
    blur: Tensor
    patches: Tensor
    neighbours: Tensor
    rings: Tensor

    def __init__(self, out_channels: int, width: int = 32) -> None:
        super().__init__()
        cells = one_hot_kernels(PATCH)
        self.register_buffer("luma", torch.tensor(LUMA)[:, None, None], persistent=False)
        self.register_buffer("blur", gaussian(BLUR_SIZE, BLUR)[None, None], persistent=False)
        self.register_buffer("patches", cells - cells.mean(0), persistent=False)
        neighbours = one_hot_kernels(2 * RINGS + 1).repeat(2, 1, 1, 1)  # of rows, and of columns
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.register_buffer("rings", rings(), persistent=False)
        self.hidden = nn.Conv2d(FEATURES, width, 3, padding=1)
        self.out = nn.Conv2d(width, out_channels, 1)
        nn.init.zeros_(self.out.weight)  # it can be put into a network that is trained already
        nn.init.zeros_(cast("Tensor", self.out.bias))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """What the search found, as an addition to the map of stride 8."""
        with torch.autocast(image_B3HW.device.type, enabled=False):
            found_BFHW = self.search(image_B3HW)
        size = image_B3HW.shape[2] // BLOCK, image_B3HW.shape[3] // BLOCK
        found_BFHW = functional.interpolate(found_BFHW.to(self.out.weight.dtype), size)
        out_BCHW: Tensor = self.out(functional.relu(self.hidden(found_BFHW)))
        return out_BCHW.permute(0, 2, 3, 1)

    def search(self, image_B3HW: Tensor) -> Tensor:
        """(B, FEATURES, 32, 32) float32: of each place how alike its match is (a correlation), the
        share of its neighbours (3x3, 5x5, 7x7) whose match lies the same way from them, the product
        of likeness and the second share, and the logarithm of its contrast."""
        luma_B1HW = (image_B3HW * self.luma).sum(1, keepdim=True)
        luma_B1HW = functional.interpolate(luma_B1HW, (SIDE, SIDE), mode="bilinear")
        looks_BPHW, contrast_B1HW = self.looks(luma_B1HW)
        contrast_B1HW = _asking(contrast_B1HW)
        likeness_BHW, way_B2HW = best_matches(looks_BPHW)
        textured_B1HW = contrast_B1HW > FLAT
        likeness_B1HW = likeness_BHW[:, None] * textured_B1HW
        agreeing_BRHW = self.agreement(torch.where(textured_B1HW, way_B2HW, NOWHERE))
        agreeing_BRHW = agreeing_BRHW * textured_B1HW
        both_B1HW = likeness_B1HW * agreeing_BRHW[:, 1:2]
        return torch.cat([likeness_B1HW, agreeing_BRHW, both_B1HW, contrast_B1HW.log1p()], 1)

    def looks(self, luma_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 25, 64, 64): the cells around each cell, of mean 0 and length 1 unless there is next
        to no contrast; and (B, 1, 64, 64), the contrast in grey levels."""
        cells_B1HW = functional.conv2d(_extended(luma_B1HW, BLUR_SIZE), self.blur, stride=CELL)
        looks_BPHW = functional.conv2d(_extended(cells_B1HW, PATCH), self.patches)
        contrast_B1HW = looks_BPHW.pow(2).mean(1, keepdim=True).sqrt()
        return looks_BPHW / (PATCH * (contrast_B1HW + NOISE)), contrast_B1HW

    def agreement(self, way_B2HW: Tensor) -> Tensor:
        """(B, RINGS, H, W): share of the neighbours, up to each ring, with the same way."""
        padded_B2HW = functional.pad(way_B2HW, [RINGS] * 4, value=-NOWHERE)
        theirs = functional.conv2d(padded_B2HW, self.neighbours, groups=2)
        theirs_B2NHW = torch.unflatten(theirs, 1, (2, -1))
        agree_BNHW = (theirs_B2NHW - way_B2HW[:, :, None]).abs().amax(1) <= AGREE
        return functional.conv2d(agree_BNHW.to(way_B2HW.dtype), self.rings)


def best_matches(looks_BPHW: Tensor) -> tuple[Tensor, Tensor]:
    """For each place that asks, the one most like it that is not near.

    Args:
        looks_BPHW: of all places, as `Matches.looks` gives them.

    Returns:
        The correlation, (B, H/2, W/2), and rows and columns from here to there, (B, 2, H/2, W/2).
    """
    asking_BPHW = _asking(looks_BPHW)
    height, width = asking_BPHW.shape[2:]
    asking_BQP, looks_BPS = asking_BPHW.flatten(2).mT, looks_BPHW.flatten(2)
    near_QS = _near(height, width, looks_BPS.device).to(looks_BPS.dtype)
    likeness_BQS = torch.baddbmm(-2 * near_QS, asking_BQP, looks_BPS)  # a correlation is -1 to 1
    likeness_BQRC = torch.unflatten(likeness_BQS, 2, (-1, 2 * width))
    # First the row, then the column in it: runtimes find an index among few much faster.
    likeness_BQ, row_BQ = likeness_BQRC.amax(3).max(2)
    row_BQ1C = row_BQ[:, :, None, None].expand(-1, -1, 1, 2 * width)
    column_BQ = likeness_BQRC.gather(2, row_BQ1C)[:, :, 0].argmax(2)
    here_H, here_W = (2 * torch.arange(n, device=row_BQ.device) + 1 for n in (height, width))
    there_B2HW = torch.unflatten(torch.stack([row_BQ, column_BQ], 1), 2, (height, width))
    here_2HW = torch.stack([here_H[:, None].expand(height, width), here_W.expand(height, width)])
    way_B2HW = (there_B2HW - here_2HW).to(likeness_BQ.dtype)
    return torch.unflatten(likeness_BQ, 1, (height, width)), way_B2HW


def _asking(map_BCHW: Tensor) -> Tensor:
    """The cells at the centres of blocks: every second one on both axes, from the second on."""
    return map_BCHW[:, :, 1::2, 1::2]


def _near(height: int, width: int, device: torch.device) -> Tensor:
    """(H*W, 4*H*W) bool: whether two places are within `NEAR` cells on both axes."""
    rows_HS, columns_WS = (
        (2 * torch.arange(n, device=device)[:, None] + 1 - torch.arange(2 * n, device=device)).abs()
        < NEAR
        for n in (height, width)
    )
    near = rows_HS[:, None, :, None] & columns_WS[None, :, None, :]
    return near.flatten(2).flatten(0, 1)


def _extended(map_BCHW: Tensor, taps: int) -> Tensor:
    """Mirrored at the border, so that a convolution of so many taps keeps the size."""
    return functional.pad(map_BCHW, [taps // 2] * 4, mode="reflect")


def gaussian(size: int, sigma: float) -> Tensor:
    """(size, size) float32, of sum 1."""
    distance = torch.arange(size) - size // 2
    taps = (-(distance**2) / (2 * sigma**2)).exp()
    taps = taps / taps.sum()
    return taps[:, None] * taps


def one_hot_kernels(size: int) -> Tensor:
    """(size**2, 1, size, size) float32: a convolution that puts neighbours into channels."""
    return torch.eye(size**2).reshape(-1, 1, size, size)


def rings() -> Tensor:
    """(RINGS, N, 1, 1) float32: over the neighbours up to each ring, but the place itself, 1/n."""
    place = torch.arange(-RINGS, RINGS + 1)
    ring_N = torch.maximum(place[:, None].abs(), place.abs()).flatten()
    inside_RN = (ring_N > 0) & (ring_N <= torch.arange(1, RINGS + 1)[:, None])
    return (inside_RN / inside_RN.sum(1, keepdim=True))[:, :, None, None]
