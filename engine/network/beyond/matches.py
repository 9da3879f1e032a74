"""Matches: places where an image repeats itself, as after a copy-move.

Each place is compared with all places that are not near it. In a copy, unlike in chance matches,
neighbouring places have the same displacement to their matches.

Paper (P): it has no such search.
Choices (C):
    Dense matching and the vote of the neighbourhood are those of copy-move detectors (Cozzolino,
        Poggi and Verdoliva, "Efficient dense-field copy-move forgery detection", 2015).
    The search has no parameters; two convolutions interpret its result. They add nothing at first,
        so that they can join a trained network.
Letters: B images, H W rows and columns of a map (of pixels, cells or queries), C channels, P cells
of a descriptor, S cells that are searched, Q queries, N neighbours, R rings, F features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.beyond.jpeg_view import BLOCK, LUMA

SIDE = 256  # pixels of both axes of the scaled image: a search always costs the same
CELL = 4  # pixels between cells; queries are a JPEG block apart
BLUR, BLUR_SIZE = 2.0, 13  # sigma and taps: a match may be half a cell off the grid of cells
PATCH = 5  # cells of a descriptor along each axis
NEAR = 8  # cells along each axis within which matches are excluded: a place resembles itself
AGREE = 1  # cells by which displacements of neighbours may differ: a copy may be scaled or turned
RINGS = 3  # rings of queries around a query whose displacements are compared with its own
FLAT = 0.1  # grey levels of contrast up to which a query has no match
NOISE = 0.05  # grey levels added to the contrast, so that noise is not normalised to a pattern
NO_MATCH = 1e4  # cells: displacement of a query without a match
FEATURES = RINGS + 3


class Matches(nn.Module):
    """The search for repeated places: pixels (B, 3, H, W), 0..255 -> (B, H/8, W/8, C)."""

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
        neighbours = one_hot_kernels(2 * RINGS + 1).repeat(2, 1, 1, 1)  # for rows, and for columns
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.register_buffer("rings", rings(), persistent=False)
        self.hidden = nn.Conv2d(FEATURES, width, 3, padding=1)
        self.out = nn.Conv2d(width, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast("Tensor", self.out.bias))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the embedded result of the search, an addition to the map of stride 8."""
        with torch.autocast(image_B3HW.device.type, enabled=False):
            found_BFHW = self.search(image_B3HW)
        size = image_B3HW.shape[2] // BLOCK, image_B3HW.shape[3] // BLOCK
        found_BFHW = functional.interpolate(found_BFHW.to(self.out.weight.dtype), size)
        out_BCHW: Tensor = self.out(functional.relu(self.hidden(found_BFHW)))
        return out_BCHW.permute(0, 2, 3, 1)

    def search(self, image_B3HW: Tensor) -> Tensor:
        """Return (B, F, 32, 32) float32. A query's features are the correlation with its match,
        the shares of neighbours (3x3, 5x5, 7x7) with the same displacement, the product of
        correlation and second share, and the logarithm of its contrast."""
        luma_B1HW = (image_B3HW * self.luma).sum(1, keepdim=True)
        luma_B1HW = functional.interpolate(luma_B1HW, (SIDE, SIDE), mode="bilinear")
        descriptors_BPHW, contrast_B1HW = self.descriptors(luma_B1HW)
        contrast_B1HW = _queries(contrast_B1HW)
        correlation_BHW, displacement_B2HW = best_matches(descriptors_BPHW)
        textured_B1HW = contrast_B1HW > FLAT
        correlation_B1HW = correlation_BHW[:, None] * textured_B1HW
        agreeing_BRHW = self.agreement(torch.where(textured_B1HW, displacement_B2HW, NO_MATCH))
        agreeing_BRHW = agreeing_BRHW * textured_B1HW
        both_B1HW = correlation_B1HW * agreeing_BRHW[:, 1:2]
        return torch.cat([correlation_B1HW, agreeing_BRHW, both_B1HW, contrast_B1HW.log1p()], 1)

    def descriptors(self, luma_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, P, 64, 64), the cells around each cell with mean 0 and length 1 (less where
        contrast is very low), and (B, 1, 64, 64), the contrast in grey levels."""
        cells_B1HW = functional.conv2d(_extended(luma_B1HW, BLUR_SIZE), self.blur, stride=CELL)
        descriptors_BPHW = functional.conv2d(_extended(cells_B1HW, PATCH), self.patches)
        contrast_B1HW = descriptors_BPHW.pow(2).mean(1, keepdim=True).sqrt()
        return descriptors_BPHW / (PATCH * (contrast_B1HW + NOISE)), contrast_B1HW

    def agreement(self, displacement_B2HW: Tensor) -> Tensor:
        """Return (B, R, H, W): share of neighbours within each ring with the same displacement."""
        padded_B2HW = functional.pad(displacement_B2HW, [RINGS] * 4, value=-NO_MATCH)
        theirs = functional.conv2d(padded_B2HW, self.neighbours, groups=2)
        theirs_B2NHW = torch.unflatten(theirs, 1, (2, -1))
        agree_BNHW = (theirs_B2NHW - displacement_B2HW[:, :, None]).abs().amax(1) <= AGREE
        return functional.conv2d(agree_BNHW.to(displacement_B2HW.dtype), self.rings)


def best_matches(descriptors_BPHW: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each query the cell with the highest correlation that is not near.

    Args:
        descriptors_BPHW: descriptors of all cells, as `Matches.descriptors` returns them.

    Returns:
        Correlations, (B, H/2, W/2), and displacements in rows and columns from the query to
        its match, (B, 2, H/2, W/2); H and W are those of the descriptors.
    """
    queries_BPHW = _queries(descriptors_BPHW)
    height, width = queries_BPHW.shape[2:]
    queries_BQP, descriptors_BPS = queries_BPHW.flatten(2).mT, descriptors_BPHW.flatten(2)
    near_QS = _near(height, width, descriptors_BPS.device).to(descriptors_BPS.dtype)
    # -2: below any correlation, which is -1 to 1
    correlation_BQS = torch.baddbmm(-2 * near_QS, queries_BQP, descriptors_BPS)
    correlation_BQHW = torch.unflatten(correlation_BQS, 2, (-1, 2 * width))
    # The row first, then the column: runtimes search two short axes much faster than one long.
    correlation_BQ, row_BQ = correlation_BQHW.amax(3).max(2)
    row_BQ1W = row_BQ[:, :, None, None].expand(-1, -1, 1, 2 * width)
    column_BQ = correlation_BQHW.gather(2, row_BQ1W)[:, :, 0].argmax(2)
    here_H, here_W = (2 * torch.arange(n, device=row_BQ.device) + 1 for n in (height, width))
    there_B2HW = torch.unflatten(torch.stack([row_BQ, column_BQ], 1), 2, (height, width))
    here_2HW = torch.stack([here_H[:, None].expand(height, width), here_W.expand(height, width)])
    displacement_B2HW = (there_B2HW - here_2HW).to(correlation_BQ.dtype)
    return torch.unflatten(correlation_BQ, 1, (height, width)), displacement_B2HW


def _queries(map_BCHW: Tensor) -> Tensor:
    """Return the queries: every second cell along both axes, at the centres of blocks."""
    return map_BCHW[:, :, 1::2, 1::2]


def _near(height: int, width: int, device: torch.device) -> Tensor:
    """Return (Q, S) bool: true where query and cell are within `NEAR` cells along both axes;
    `height` and `width` count queries."""
    rows, columns = (
        (2 * torch.arange(n, device=device)[:, None] + 1 - torch.arange(2 * n, device=device)).abs()
        < NEAR
        for n in (height, width)
    )
    near = rows[:, None, :, None] & columns[None, :, None, :]
    return near.flatten(2).flatten(0, 1)


def _extended(map_BCHW: Tensor, taps: int) -> Tensor:
    """Mirror a map at its border, so that a convolution of so many taps keeps its size."""
    return functional.pad(map_BCHW, [taps // 2] * 4, mode="reflect")


def gaussian(size: int, sigma: float) -> Tensor:
    """Return a Gaussian kernel, (size, size) float32 with sum 1."""
    distance = torch.arange(size) - size // 2
    taps = (-(distance**2) / (2 * sigma**2)).exp()
    taps = taps / taps.sum()
    return taps[:, None] * taps


def one_hot_kernels(size: int) -> Tensor:
    """Return (size**2, 1, size, size) float32, a convolution that puts neighbours into channels."""
    return torch.eye(size**2).reshape(-1, 1, size, size)


def rings() -> Tensor:
    """Return (R, N, 1, 1) float32: 1/n for the n neighbours within each ring, 0 for the centre."""
    place = torch.arange(-RINGS, RINGS + 1)
    ring_N = torch.maximum(place[:, None].abs(), place.abs()).flatten()
    inside_RN = (ring_N > 0) & (ring_N <= torch.arange(1, RINGS + 1)[:, None])
    return (inside_RN / inside_RN.sum(1, keepdim=True))[:, :, None, None]
