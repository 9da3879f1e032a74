"""Matches: places where the picture repeats itself, as after a copy-move.

`engine.detection.context` searches them once in the whole picture, and its result is an input of
the network. Two convolutions interpret it. They add nothing at first, so that they can join a
trained network.

Paper (P): it has no such search.
Letters: B images, H W rows and columns of blocks of 8 pixels, F features, C channels.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.cells import PointConv, cells_of_planes, grid
from prompt_iml.engine.network.config import MATCH_FEATURES


class Matches(nn.Module):
    """The features of the search (B, F, H, W) -> an addition (B, H, W, C) to a map."""

    def __init__(self, out_channels: int, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(MATCH_FEATURES, width, 3, padding=1)
        self.out = PointConv(width, out_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast("Tensor", self.out.bias))

    def forward(self, matches_BFHW: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        hidden_BCHW = functional.relu(self.hidden(matches_BFHW.to(self.out.weight.dtype)))
        size = (hidden_BCHW.shape[2], hidden_BCHW.shape[3])
        return grid(self.out(cells_of_planes(hidden_BCHW)), size)
