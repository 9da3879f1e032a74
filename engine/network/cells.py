"""Maps as cells, (B, S, C): the layout in which norms, sums and products of matrices run.

A runtime gives maps of four dimensions a layout that suits convolutions, and changes it before and
after each product of matrices; on a CPU these changes took a third of the time. So maps are
flattened where only channels meet, 1x1 convolutions are products of matrices, and only what looks
at neighbours sees rows and columns. The sums are the same.
Letters: B images, H W rows and columns of a map, S = H*W cells row by row, C channels, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int]  # rows and columns
Map = tuple[Tensor, Size]  # cells (B, S, C), and the size of their map


def cells(map_BHWC: Tensor) -> Map:
    """Flatten a map (B, H, W, C)."""
    return map_BHWC.flatten(1, 2), (map_BHWC.shape[1], map_BHWC.shape[2])


def grid(x_BSC: Tensor, size: Size) -> Tensor:
    """Return cells as a map (B, H, W, C)."""
    return torch.unflatten(x_BSC, 1, size)


def planes(x_BSC: Tensor, size: Size) -> Tensor:
    """Return cells as a map (B, C, H, W), which convolutions take."""
    return grid(x_BSC, size).permute(0, 3, 1, 2)


def cells_of_planes(x_BCHW: Tensor) -> Tensor:
    """Return the cells (B, S, C) of what a convolution made."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def added(*maps_BHWC: Tensor) -> Tensor:
    """Return the sum of maps (B, H, W, C) of one size."""
    (first_BSC, size), *others = (cells(map_BHWC) for map_BHWC in maps_BHWC)
    return grid(sum((x_BSC for x_BSC, _ in others), first_BSC), size)


def resize(x_BSC: Tensor, size: Size, to: Size) -> Tensor:
    """Return a map of another size (B, S, C), by bilinear interpolation."""
    scaled_BCHW = functional.interpolate(
        planes(x_BSC, size), to, mode="bilinear", align_corners=False
    )
    return cells_of_planes(scaled_BCHW)


class PointConv(nn.Conv2d):
    """1x1 convolution over cells; its weight has the shape of a convolution's."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    @property
    def matrix(self) -> Tensor:
        """The weight, (output channels, input channels)."""
        return self.weight[:, :, 0, 0]

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return (B, S, output channels)."""
        return functional.linear(x_BSC, self.matrix, self.bias)


class CellNorm(nn.GroupNorm):
    """Group norm over cells, in float32."""

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return (B, S, C)."""
        x_BSC = x_BSC.to(torch.promote_types(x_BSC.dtype, torch.float32))
        centred = x_BSC - self._of_groups(x_BSC)
        return centred * (self.weight * (self._of_groups(centred * centred) + self.eps).rsqrt()) + (
            self.bias
        )

    def _of_groups(self, x_BSC: Tensor) -> Tensor:
        """Return (B, 1, C): each channel the mean over all cells of its group."""
        mean_BG1 = torch.unflatten(x_BSC.mean(1), 1, (self.num_groups, -1)).mean(2, keepdim=True)
        size = self.num_channels // self.num_groups
        return mean_BG1.expand(-1, -1, size).flatten(1)[:, None]
