"""JPEG view: histograms of an image's DCT coefficients, in units of its own quantisation table.

Saving an image twice leaves gaps and peaks in these histograms, and a region from another image has
other histograms than its surroundings. The view needs pixels on their native 8x8 grid. The
histogram of the whole picture is an input (`engine.detection.context`), so that a tile knows what
is normal in its picture.

Paper (P): it has no such view.
Choices (C):
    The idea is that of CAT-Net's DCT stream (Kwon et al., arXiv 2108.12947).
    Likelihood ratios by gaps follow Bianchi and Piva, "Image forgery localization via block-grained
        analysis of JPEG artifacts", 2012: smoothing the histogram of an image saved twice gives
        that of a region saved once, so a coefficient in a gap is likely from such a region.
    Likelihood ratios by steps: where the first save was coarser, its quantisation step can be
        estimated, and a coefficient that is no multiple of it was not in the first save.
Letters: B images, H W rows and columns (of pixels if the name begins with image or luma, else of
blocks), C channels, K coefficients of a block, N magnitudes |c| of a coefficient, X = K*N,
S blocks, J both ratios of all coefficients, Q candidate steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.beyond.dct import BLOCK, LUMA, dct_basis, zigzag
from prompt_iml.engine.network.cells import PointConv, Size, cells, grid
from prompt_iml.engine.network.config import JpegViewConfig

SMOOTHING_RADIUS = 2  # a histogram is smoothed over so many bins on either side
SHARE_FLOOR = 1e-3  # added to shares of coefficients, since smaller shares are chance
FIRST_STEPS = 2, 34  # candidate quantisation steps of a first save: 2 to 33
OFF_STEP_SHARE = 0.15  # of coefficients that a second save moved off the first save's multiples
MIN_MEAN_RATIO = 0.03  # up to this mean log likelihood ratio no first save is assumed


def smoothing(bins: int) -> Tensor:
    """Return (2, N, N), two matrices for shares of the magnitudes |c| = 0, 1, ... in a histogram.

    The first gives the shares of the values c of one sign, the second these smoothed over
    `SMOOTHING_RADIUS` values on either side. Rows of the last bin, which is open, are zero.
    """
    shares = torch.zeros(2, bins, bins)
    for magnitude in range(bins - 1):
        shares[0, magnitude, magnitude] = 1 if magnitude == 0 else 0.5
        around = range(magnitude - SMOOTHING_RADIUS, magnitude + SMOOTHING_RADIUS + 1)
        near = [abs(n) for n in around if abs(n) < bins - 1]
        for other in near:
            shares[1, magnitude, other] += (1 if other == 0 else 0.5) / len(near)
    return shares


class JpegView(nn.Module):
    """The JPEG view: pixels (B, 3, H, W), tables (B, 64) and histograms of the whole pictures
    (B, K, N) -> (B, H/8, W/8, C)."""

    basis: Tensor
    order: Tensor
    luma: Tensor
    smoothing: Tensor

    def __init__(self, config: JpegViewConfig, out_channels: int) -> None:
        super().__init__()
        self.bins = config.bins
        width = config.channels
        order = torch.tensor(zigzag()[1 : config.coefficients + 1])  # without the DC
        self.register_buffer("order", order, persistent=False)
        basis = torch.from_numpy(dct_basis())[order].flatten(1).T.float()
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA), persistent=False)
        self.embed = PointConv(config.coefficients * config.bins, width, bias=False)
        self.ratios = None
        if config.likelihood_ratios:
            self.register_buffer("smoothing", smoothing(config.bins), persistent=False)
            self.ratios = PointConv(2 * config.coefficients, width, bias=False)
            nn.init.zeros_(self.ratios.weight)  # C: so that it can join a trained network
        self.local = PointConv(3 * width, width)
        self.whole = nn.Linear(width + 64, width)
        self.out = PointConv(width, out_channels)

    def coefficients(self, image_B3HW: Tensor, qtable_B64: Tensor) -> Tensor:
        """Return (B, S, K): AC coefficients of each block's luma over the table, not rounded.

        Pixels are 0..255. The luma is rounded, which undoes most of the decoder's rounding of
        RGB. The level shift changes only the DC coefficient, which is not among them.
        """
        luma_BHW = (image_B3HW * self.luma[:, None, None]).sum(1).round() - 128
        rows = torch.unflatten(torch.unflatten(luma_BHW, 2, (-1, BLOCK)), 1, (-1, BLOCK))
        pixels_BS64 = rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return pixels_BS64 @ self.basis.to(luma_BHW) / qtable_B64[:, None, self.order]

    def forward(self, image_B3HW: Tensor, qtable_B64: Tensor, histogram_BKN: Tensor) -> Tensor:
        """Return (B, H/8, W/8, C): histograms of a block, around it and of the picture, embedded.

        The surroundings are 3x3 and 7x7 blocks, and the table is embedded too. Histograms are means
        of one-hot vectors. As a mean commutes with a 1x1 convolution, the K*N channels are reduced
        to the width of the view before they are averaged.
        """
        size = image_B3HW.shape[2] // BLOCK, image_B3HW.shape[3] // BLOCK
        with torch.autocast(image_B3HW.device.type, enabled=False):
            bin_BSK = self.coefficients(image_B3HW, qtable_B64).abs().round()
            bin_BSK = bin_BSK.clamp(max=self.bins - 1)
        magnitude_N = torch.arange(self.bins, device=bin_BSK.device).to(bin_BSK.dtype)
        onehot_BSX = (bin_BSK[..., None] == magnitude_N).flatten(2).to(self.embed.weight.dtype)
        embed_BXC = self.embeddings(histogram_BKN, qtable_B64).to(onehot_BSX.dtype)
        block_BSC = onehot_BSX @ embed_BXC
        around = [_mean(block_BSC, size, 3), _mean(block_BSC, size, 7)]
        picture_BC = (histogram_BKN.flatten(1)[:, None].to(embed_BXC.dtype) @ embed_BXC)[:, 0]
        table_B64 = torch.log2(qtable_B64) / 8
        whole_BC = self.whole(torch.cat([picture_BC, table_B64.to(picture_BC.dtype)], 1))
        hidden_BSC = self.local(torch.cat([block_BSC, *around], 2)) + whole_BC[:, None]
        return grid(self.out(functional.relu(hidden_BSC)), size)

    def embeddings(self, histogram_BKN: Tensor, qtable_B64: Tensor) -> Tensor:
        """Return (B, K*N, C): what each magnitude of each coefficient adds to its block, in this
        picture."""
        embed_XC = self.embed.matrix.mT
        if self.ratios is None:
            return embed_XC[None].expand(histogram_BKN.shape[0], -1, -1)
        step_BK = qtable_B64[:, self.order].to(self.smoothing.dtype)
        ratios_BJN = self.likelihood_ratios(histogram_BKN.to(step_BK.dtype), step_BK)
        gaps_BKN, steps_BKN = ratios_BJN.chunk(2, 1)
        gap_KC, step_KC = self.ratios.matrix.mT.chunk(2)
        more = gaps_BKN[..., None] * gap_KC[:, None] + steps_BKN[..., None] * step_KC[:, None]
        return embed_XC + more.flatten(1, 2)

    def likelihood_ratios(self, share_BKN: Tensor, step_BK: Tensor) -> Tensor:
        """Return (B, 2K, N) float32: log likelihood ratios of each magnitude of each coefficient,
        by gaps (saved once to twice), then by steps (saved twice to once); 0 in the open bin."""
        as_they_are, smoothed = self.smoothing.mT
        gaps_BKN = (
            (share_BKN @ smoothed + SHARE_FLOOR) / (share_BKN @ as_they_are + SHARE_FLOOR)
        ).log()
        return torch.cat([gaps_BKN, first_save_ratios(share_BKN, step_BK)], 1)


def first_save_ratios(share_BKN: Tensor, step_BK: Tensor) -> Tensor:
    """Return (B, K, N): the log likelihood ratio of each magnitude between a first save and none.

    The first save has the step that explains the histogram best. The ratio is 0 where no step
    explains it well, and in the open bin.

    Args:
        share_BKN: share of the coefficients at each magnitude, in units of the last save's step.
        step_BK: step of the last save; 1 where none is known.
    """
    steps_Q = torch.arange(*FIRST_STEPS, device=step_BK.device).to(step_BK.dtype)
    last_BK11 = step_BK[:, :, None, None]
    magnitude_N1 = torch.arange(share_BKN.shape[2], device=step_BK.device)[:, None]
    value_BKN1 = magnitude_N1 * last_BK11
    first_BKNQ = (value_BKN1 / steps_Q).round() * steps_Q
    again_BKNQ = (first_BKNQ / last_BK11).round() * last_BK11
    sigma_BK11 = 0.45 + 0.1 * last_BK11  # noise of rounding to pixels, and of the last save
    close = (-((value_BKN1 - again_BKNQ) ** 2) / (2 * sigma_BK11**2)).exp() * (first_BKNQ > 0)
    peaks = steps_Q / last_BK11.clamp(min=1.25)  # fewer magnitudes share the same probability
    ratio_BKNQ = ((1 - OFF_STEP_SHARE) * peaks * close + OFF_STEP_SHARE).log()
    # Magnitudes near 0 are multiples of every step, and the open bin has no single magnitude.
    ratio_BKNQ = ratio_BKNQ * ((value_BKN1 > 1.7) & (magnitude_N1 < share_BKN.shape[2] - 1))
    gain_BKQ = (share_BKN[..., None] * ratio_BKNQ).sum(2)
    gain_BKQ = torch.where(steps_Q > step_BK[:, :, None], gain_BKQ, -1.0)
    gain_BK, best_BK = gain_BKQ.max(2)
    best_BKN1 = best_BK[:, :, None, None].expand(-1, -1, share_BKN.shape[2], 1)
    return ratio_BKNQ.gather(3, best_BKN1)[..., 0] * (gain_BK > MIN_MEAN_RATIO)[:, :, None]


def _mean(x_BSC: Tensor, size: Size, side: int) -> Tensor:
    """Return the mean over side x side cells around each; at the border, over the part inside.

    Computed as products of matrices, since PyTorch's pooling takes a tenth of a training step on a
    CPU.
    """
    rows_HH, columns_WW = (_band(n, side // 2, x_BSC) for n in size)
    rows_mean = rows_HH @ grid(x_BSC, size).flatten(2)
    return cells(columns_WW @ torch.unflatten(rows_mean, 2, (size[1], -1)))[0]


def _band(n: int, half: int, like: Tensor) -> Tensor:
    """Return (n, n): the matrix of the mean over positions at most `half` away."""
    place = torch.arange(n, device=like.device)
    near = ((place[:, None] - place[None]).abs() <= half).to(like.dtype)
    return near / near.sum(1, keepdim=True)
