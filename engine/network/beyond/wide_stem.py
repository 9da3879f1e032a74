"""Wide stem: the high-frequency stem with a ReLU and residual blocks between two convolutions.

Paper (P): its stem is linear (equation 2, `engine.network.stems`).
Choices (C):
    Patches of 4 become many channels after a ReLU, from which a second convolution makes the
        tokens. Regions differ in the strength of their noise, which a linear map from a patch to
        fewer numbers than it has pixels does not keep.
    A new block begins as the identity, so that it can be added to a trained network. Between its
        convolutions it may have fewer channels: they run at a stride of 4 pixels, where channels
        are dearest.
Letters: B images, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.stems import BayarPatches, tokens

PATCH = 4  # pixels: the paper's patch; the second convolution merges them into larger ones
GAIN = 16.0  # brings residuals, a twentieth of the standard deviation of pixels, to about 1


class WideStem(BayarPatches):
    """BayarConvs, patch embedding to `width` channels, ReLU, blocks, convolution, norm.

    Args:
        channels: C of the tokens.
        patch: stride of the tokens, in pixels.
        width: channels between the two convolutions.
        blocks: number of residual blocks there.
        inner: channels inside a block; 0: as many as `width`.
    """

    def __init__(
        self, channels: int, patch: int, width: int, blocks: int = 0, inner: int = 0
    ) -> None:
        super().__init__(width, PATCH, patch)
        self.blocks = nn.Sequential(*(ResidualBlock(width, inner or width) for _ in range(blocks)))
        self.merge = nn.Conv2d(width, channels, 3, patch // PATCH, padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return tokens (B, H/patch, W/patch, C)."""
        hidden_BCHW = functional.relu(self.residuals(image_B3HW, GAIN))
        return tokens(self.merge(self.blocks(hidden_BCHW)), self.norm)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, with `inner` channels between, whose output is added to their input."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast("Tensor", self.conv2.bias))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        y: Tensor = x_BCHW + self.conv2(functional.relu(self.conv1(x_BCHW)))
        return y
