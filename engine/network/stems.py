"""The two stems, which turn patches into tokens: (B, 3, H, W) -> (B, H/patch, W/patch, C).

Paper (P):
    3.2, equation 1: semantic stem, Norm(Conv(X)) + a learnable position embedding.
    3.2, equation 2: high-frequency stem, the concatenation of BayarConvs of 3x3, 5x5 and 7x7 taps.
Choices (C):
    The position embedding is off by default: the stock Swin, whose weights we load, has none.
    Each BayarConv has 3 -> 3 channels at full resolution, since a stride would skip pixels. A patch
        embedding and norm like the other stem's follow on the 9 channels, so that both branches
        have the same tokens.
    Bayar and Stamm's constraint (every 2-D slice has -1 at its centre and other taps that sum to
        1) is applied in every forward pass, so that no optimiser step can violate it.
    BayarConvs and the patch embedding after them run in float32, also under autocast: residuals are
        small differences of large values.
Letters: B images, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.cells import cells_of_planes, grid


def pad_to_patches(image_B3HW: Tensor, patch: int) -> Tensor:
    """Pad right and bottom with zeros to whole patches, as the official Swin does."""
    right, bottom = -image_B3HW.shape[3] % patch, -image_B3HW.shape[2] % patch
    return functional.pad(image_B3HW, (0, right, 0, bottom)) if right or bottom else image_B3HW


def tokens(x_BCHW: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return normalised tokens (B, H, W, C) of what a convolution made."""
    x_BSC = cells_of_planes(x_BCHW).to(norm.weight.dtype)
    return grid(norm(x_BSC), (x_BCHW.shape[2], x_BCHW.shape[3]))


class PatchEmbedding(nn.Module):
    """Semantic stem (P eq. 1): patch embedding, norm, and optionally a position embedding."""

    def __init__(self, channels: int, patch: int = 4, position_grid: int = 0) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, channels, patch, patch)
        self.norm = nn.LayerNorm(channels)
        if position_grid:
            self.position = nn.Parameter(torch.zeros(1, channels, position_grid, position_grid))
        else:
            self.register_parameter("position", None)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return tokens (B, H/patch, W/patch, C); the position embedding is scaled to their map."""
        patches_BCHW = self.proj(pad_to_patches(image_B3HW.to(self.proj.weight.dtype), self.patch))
        tokens_BHWC = tokens(patches_BCHW, self.norm)
        if self.position is None:
            return tokens_BHWC
        position_1CHW = functional.interpolate(
            self.position, patches_BCHW.shape[2:], mode="bilinear", align_corners=False
        )
        return tokens_BHWC + position_1CHW.permute(0, 2, 3, 1)


class BayarKernel(nn.Module):
    """Weights of a BayarConv of 3 -> 3 channels, which predicts a pixel from its neighbours."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        # C: positive, so that the initial sum is far from 0
        self.taps = nn.Parameter(torch.empty(3, 3, size * size - 1).uniform_(0.5, 1.5))

    def forward(self) -> Tensor:
        """Return (3, 3, size, size) float32: centre -1, the other taps sum to 1."""
        taps = self.taps.to(torch.promote_types(self.taps.dtype, torch.float32))
        total = taps.sum(-1, keepdim=True)
        taps = taps / torch.where(total < 0, total.clamp(max=-1e-3), total.clamp(min=1e-3))
        middle = taps.shape[-1] // 2
        centre = -torch.ones_like(total)
        kernel = torch.cat([taps[..., :middle], centre, taps[..., middle:]], -1)
        return kernel.reshape(3, 3, self.size, self.size)


class BayarPatches(nn.Module):
    """Three BayarConvs side by side (P eq. 2), then a patch embedding of their 9 channels (C).

    Both are linear, so they run as one strided convolution.

    Args:
        channels: C of the output.
        stride: side of the patches, in pixels.
        multiple: H and W are padded to multiples of so many pixels.
    """

    sizes = (3, 5, 7)

    def __init__(self, channels: int, stride: int, multiple: int) -> None:
        super().__init__()
        self.stride, self.multiple = stride, multiple
        self.bayar = nn.ModuleList(BayarKernel(size) for size in self.sizes)
        self.proj = nn.Conv2d(3 * len(self.sizes), channels, stride, stride)

    def kernel(self) -> Tensor:
        """Return (C, 3, stride + 6, stride + 6) float32: BayarConvs and patch embedding in one."""
        largest = max(self.sizes)
        bayar_9377 = torch.cat(
            [
                functional.pad(kernel(), [(largest - size) // 2] * 4)
                for size, kernel in zip(self.sizes, self.bayar, strict=True)
            ]
        )
        return functional.conv_transpose2d(self.proj.weight.to(bayar_9377.dtype), bayar_9377)

    def residuals(self, image_B3HW: Tensor, gain: float = 1.0) -> Tensor:
        """Return `gain` times (B, C, H/stride, W/stride) float32, also under autocast."""
        with torch.autocast(image_B3HW.device.type, enabled=False):
            kernel = gain * self.kernel()
            return functional.conv2d(
                pad_to_patches(image_B3HW.to(kernel.dtype), self.multiple),
                kernel,
                gain * cast("Tensor", self.proj.bias).to(kernel.dtype),
                stride=self.stride,
                padding=max(self.sizes) // 2,
            )


class HighFrequencyStem(BayarPatches):
    """High-frequency stem (P eq. 2): BayarConvs, patch embedding, norm."""

    def __init__(self, channels: int, patch: int = 4) -> None:
        super().__init__(channels, patch, patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return tokens (B, H/patch, W/patch, C)."""
        return tokens(self.residuals(image_B3HW), self.norm)
