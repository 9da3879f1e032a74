"""The two stems: pixels to tokens, a patch each, (B, 3, H, W) -> (B, H/patch, W/patch, C)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDE_PATCH = 4  # pixels: the paper's, and with `width` the first of two steps
GAIN = 16.0  # residuals are a few grey levels, a twentieth of the unit that images come in


def pad_to_patches(image_B3HW: Tensor, patch: int) -> Tensor:
    """Pad right and bottom with zeros to whole patches, as the official Swin."""
    right, bottom = -image_B3HW.shape[3] % patch, -image_B3HW.shape[2] % patch
    return functional.pad(image_B3HW, (0, right, 0, bottom)) if right or bottom else image_B3HW


class PatchEmbedding(nn.Module):
    """Semantic stem: patch embedding, norm, and a learnable position embedding if asked."""

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
        """(B, H/patch, W/patch, C); the position embedding is scaled to the map."""
        tokens_BCHW = self.proj(pad_to_patches(image_B3HW.to(self.proj.weight.dtype), self.patch))
        tokens_BHWC: Tensor = self.norm(tokens_BCHW.permute(0, 2, 3, 1))
        if self.position is None:
            return tokens_BHWC
        position_1CHW = functional.interpolate(
            self.position, tokens_BCHW.shape[2:], mode="bilinear", align_corners=False
        )
        return tokens_BHWC + position_1CHW.permute(0, 2, 3, 1)


class BayarKernel(nn.Module):
    """Weights of a constrained convolution 3 -> 3: every 2-D slice predicts its centre.

    Bayar and Stamm's constraint, held by construction in every forward, so that no optimiser
    step and no evaluation ever has to mend the weights.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.taps = nn.Parameter(torch.empty(3, 3, size * size - 1).uniform_(0.5, 1.5))

    def forward(self) -> Tensor:
        """(3, 3, size, size) float32: centre -1, the other taps sum to 1."""
        taps = self.taps.to(torch.promote_types(self.taps.dtype, torch.float32))
        total = taps.sum(-1, keepdim=True)
        taps = taps / torch.where(total < 0, total.clamp(max=-1e-3), total.clamp(min=1e-3))
        middle = taps.shape[-1] // 2
        centre = -torch.ones_like(total)
        kernel = torch.cat([taps[..., :middle], centre, taps[..., middle:]], -1)
        return kernel.reshape(3, 3, self.size, self.size)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose answer is added to what came in; at first the identity, so that
    it can be put into a network that is trained already."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast("Tensor", self.conv2.bias))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        y: Tensor = x_BCHW + self.conv2(functional.relu(self.conv1(x_BCHW)))
        return y


class HighFrequencyStem(nn.Module):
    """HF stem: three BayarConvs side by side, then the patch embedding and norm.

    The full-resolution BayarConvs (padding size // 2) and the patch embedding over their
    9 channels are both linear with nothing between, so they run as one strided convolution.

    With `width`, patches of 4 become `width` rectified channels, of which a second, strided
    convolution makes the tokens: what tells noise from noise is its strength, and no linear
    map of a patch to fewer numbers than it has keeps that. Between the two come `blocks`.
    """

    sizes = (3, 5, 7)

    def __init__(self, channels: int, patch: int = 4, width: int = 0, blocks: int = 0) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.stride = WIDE_PATCH if width else patch
        self.bayar = nn.ModuleList(BayarKernel(size) for size in self.sizes)
        self.proj = nn.Conv2d(3 * len(self.sizes), width or channels, self.stride, self.stride)
        if width:
            self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
            self.merge = nn.Conv2d(width, channels, 3, patch // WIDE_PATCH, padding=1)
        self.norm = nn.LayerNorm(channels)

    def kernel(self) -> Tensor:
        """(C, 3, stride + 6, stride + 6) float32: patch embedding after BayarConvs, as one."""
        largest = max(self.sizes)
        bayar_9377 = torch.cat(
            [
                functional.pad(kernel(), [(largest - size) // 2] * 4)
                for size, kernel in zip(self.sizes, self.bayar, strict=True)
            ]
        )
        return functional.conv_transpose2d(self.proj.weight.to(bayar_9377.dtype), bayar_9377)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """(B, H/patch, W/patch, C). Residuals are small differences: they are told in float32."""
        with torch.autocast(image_B3HW.device.type, enabled=False):
            tokens_BCHW = self.residuals(image_B3HW)
        if self.width:
            tokens_BCHW = self.merge(self.blocks(functional.relu(GAIN * tokens_BCHW)))
        tokens_BHWC: Tensor = self.norm(tokens_BCHW.permute(0, 2, 3, 1).to(self.norm.weight.dtype))
        return tokens_BHWC

    def residuals(self, image_B3HW: Tensor) -> Tensor:
        """(B, width or C, H/stride, W/stride), in float32."""
        kernel = self.kernel()
        return functional.conv2d(
            pad_to_patches(image_B3HW.to(kernel.dtype), self.patch),
            kernel,
            self.proj.bias.to(kernel.dtype) if self.proj.bias is not None else None,
            stride=self.stride,
            padding=max(self.sizes) // 2,
        )
