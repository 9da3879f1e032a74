"""JPEG view: histograms of the image's own DCT coefficients, in units of its quantisation table.

Saving twice leaves gaps and peaks in these histograms, and a region that came from elsewhere
has others than its surroundings. It needs pixels on their native 8x8 grid. Beyond the paper;
the idea is that of CAT-Net's DCT stream (Kwon et al., arXiv 2108.12947).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import JpegViewConfig

BLOCK = 8  # pixels
AROUND = 2  # bins on either side that a histogram is smoothed over
RARE = 1e-3  # a share of the coefficients below which it is chance how many there are
LUMA = (0.299, 0.587, 0.114)  # JFIF


def zigzag() -> list[int]:
    """Natural (row-major) index of each coefficient of an 8x8 block, in zig-zag order."""
    return sorted(
        range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)
    )


def dct_basis() -> Tensor:
    """(64, 8, 8) float64: the orthonormal DCT-II of an 8x8 block, coefficients in natural order."""
    frequency, position = torch.arange(8.0).double(), torch.arange(8.0).double()
    basis = torch.cos(math.pi * frequency[:, None] * (2 * position[None] + 1) / 16) / 2
    basis[0] /= math.sqrt(2)
    return torch.einsum("ur,vc->uvrc", basis, basis).reshape(64, 8, 8)


def smoothing(bins: int) -> Tensor:
    """(2, bins, bins): matrices from the shares of the sizes |c| = 0, 1, ... to those of the values
    c, of one sign, and to the same smoothed over `AROUND` values on either side. The last bin is
    open: it has neither."""
    shares = torch.zeros(2, bins, bins)
    for size in range(bins - 1):
        shares[0, size, size] = 1 if size == 0 else 0.5
        near = [abs(n) for n in range(size - AROUND, size + AROUND + 1) if abs(n) < bins - 1]
        for other in near:
            shares[1, size, other] += (1 if other == 0 else 0.5) / len(near)
    return shares


class JpegView(nn.Module):
    """(B, 3, H, W) pixels and (B, 64) tables -> (B, H/8, W/8, out)."""

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
        self.register_buffer("basis", dct_basis()[order][:, None].float(), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA)[:, None, None], persistent=False)
        self.embed = nn.Conv2d(config.coefficients * config.bins, width, 1, bias=False)
        self.ratios = None
        if config.likelihood_ratios:
            self.register_buffer("smoothing", smoothing(config.bins), persistent=False)
            self.ratios = nn.Conv2d(config.coefficients, width, 1, bias=False)
            nn.init.zeros_(self.ratios.weight)  # it can be put into a network that is trained
        self.local = nn.Conv2d(3 * width, width, 1)
        self.whole = nn.Linear(width + 64, width)
        self.out = nn.Conv2d(width, out_channels, 1)

    def coefficients(self, image_B3HW: Tensor, qtable_B64: Tensor) -> Tensor:
        """(B, coefficients, H/8, W/8): AC coefficients of the luma over the table, not rounded.

        Pixels are 0..255. The luma is rounded, which undoes most of the decoder's rounding of
        RGB. The level shift touches the DC alone, which is not among them.
        """
        luma_B1HW = (image_B3HW * self.luma).sum(1, keepdim=True).round()
        coefficients = functional.conv2d(luma_B1HW - 128, self.basis.to(luma_B1HW), stride=BLOCK)
        return coefficients / qtable_B64[:, self.order, None, None]

    def forward(self, image_B3HW: Tensor, qtable_B64: Tensor) -> Tensor:
        """Histograms at a block, around it (3x3, 7x7) and over the image, and the table.

        Histograms are means of one-hot vectors; as a mean commutes with a 1x1 convolution, the
        320 channels are brought down to 64 before anything is averaged.
        """
        with torch.autocast(image_B3HW.device.type, enabled=False):
            bin_BKHW = self.coefficients(image_B3HW, qtable_B64).abs().round()
            bin_BKHW = bin_BKHW.clamp(max=self.bins - 1)
        bin_N11 = torch.arange(self.bins, device=bin_BKHW.device)[:, None, None]
        onehot_BKNHW = bin_BKHW[:, :, None] == bin_N11
        block_BCHW = self.embed(onehot_BKNHW.flatten(1, 2).to(self.embed.weight.dtype))
        if self.ratios is not None:
            ratio_BKHW = self.likelihood_ratios(bin_BKHW, onehot_BKNHW)
            block_BCHW = block_BCHW + self.ratios(ratio_BKHW.to(self.ratios.weight.dtype))
        around = [_mean(block_BCHW, 3), _mean(block_BCHW, 7)]
        table_B64 = torch.log2(qtable_B64).to(block_BCHW.dtype) / 8
        whole_BC = self.whole(torch.cat([block_BCHW.mean((2, 3)), table_B64], 1))
        hidden = self.local(torch.cat([block_BCHW, *around], 1)) + whole_BC[:, :, None, None]
        out_BCHW: Tensor = self.out(functional.relu(hidden))
        return out_BCHW.permute(0, 2, 3, 1)

    def likelihood_ratios(self, bin_BKHW: Tensor, onehot_BKNHW: Tensor) -> Tensor:
        """(B, K, H, W) float32: log of how likely each coefficient is by its image's histogram,
        smoothed, over how likely by the histogram itself; 0 in the open bin.

        Saved twice, an image has a histogram with gaps and peaks; smoothed, it is that of a region
        which was saved once. So what lies in a gap is of such a region (Bianchi and Piva, "Image
        forgery localization via block-grained analysis of JPEG artifacts", 2012).
        """
        share_BKN = onehot_BKNHW.to(self.smoothing.dtype).mean((3, 4))
        as_they_are, smoothed = self.smoothing.mT
        ratio_BKN = ((share_BKN @ smoothed + RARE) / (share_BKN @ as_they_are + RARE)).log()
        ratio_BKS: Tensor = ratio_BKN.gather(2, bin_BKHW.flatten(2).long())
        return ratio_BKS.reshape(bin_BKHW.shape)


def _mean(x_BCHW: Tensor, size: int) -> Tensor:
    """Local mean over size x size; at the border, over what is there.

    As products of matrices, since PyTorch's pooling takes a tenth of a training step on a CPU.
    """
    rows_HH, columns_WW = (_band(n, size // 2, x_BCHW) for n in x_BCHW.shape[2:])
    return rows_HH @ (x_BCHW @ columns_WW.T)


def _band(n: int, half: int, like: Tensor) -> Tensor:
    """(n, n): each row the mean over what lies at most `half` away."""
    place_N = torch.arange(n, device=like.device)
    near_NN = ((place_N[:, None] - place_N[None]).abs() <= half).to(like.dtype)
    return near_NN / near_NN.sum(1, keepdim=True)
