"""Score head: one number for the whole image, from the mask and from what led to it.

Paper (P): it locates and does not score; its training has no labels of images.
Choices (C):
    The score begins as the evidence in the mask alone, and learns to weigh that against the query,
        the fused maps, and the features inside and outside of the mask. The highest pixel alone
        would make one pixel's noise an alarm.
    GELU, not ReLU: all of its units died within 10,000 samples.
    Gradients pass the evidence, and not the weights of inside and outside.
Letters: B images, H W rows and columns of the mask, S cells of the mask, D channels of the decoder,
C channels of a fused map, K sharpnesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

SHARPNESS = (0.5, 1.0, 4.0)  # of three soft maxima: near the mean, by odds, near the highest


class ScoreHead(nn.Module):
    """Score logits from the mask, the query, the features and the fused maps."""

    def __init__(self, hidden: int, channels: Sequence[int]) -> None:
        super().__init__()
        width = 3 * hidden + sum(channels)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.evidence = nn.Linear(len(SHARPNESS), 1)
        # C: begins as the evidence alone; the rest has hundreds of numbers to be wrong about
        nn.init.zeros_(cast("nn.Linear", self.layers[2]).weight)
        nn.init.constant_(self.evidence.weight, 1 / len(SHARPNESS))

    def forward(
        self,
        query_BD: Tensor,
        features_BDHW: Tensor,
        mask_BHW: Tensor,
        fused_BHWC: Sequence[Tensor],
    ) -> Tensor:
        """Logits (B,)."""
        logits_BS = mask_BHW.flatten(1)
        inside_BS1 = logits_BS.detach().sigmoid()[:, :, None]
        features_BDS = features_BDHW.flatten(2)
        inside_BD = features_BDS @ (inside_BS1 / (inside_BS1.sum(1, keepdim=True) + 1))
        outside_BS1 = 1 - inside_BS1
        outside_BD = features_BDS @ (outside_BS1 / (outside_BS1.sum(1, keepdim=True) + 1))
        pooled = [map_BHWC.mean((1, 2)) for map_BHWC in fused_BHWC]
        found = torch.cat([query_BD, inside_BD[:, :, 0], outside_BD[:, :, 0], *pooled], 1)
        evidence_BK = torch.stack([soft_maximum(logits_BS, r) for r in SHARPNESS], 1)
        y: Tensor = self.layers(self.norm(found)) + self.evidence(evidence_BK)
        return y[:, 0]


def soft_maximum(x_BS: Tensor, sharpness: float) -> Tensor:
    """(B,) between the mean (sharpness 0) and the maximum: log mean exp.

    Not `logsumexp` less the logarithm of the size: an exported graph would keep that of one size.
    """
    x_BS = sharpness * x_BS
    highest_B1 = x_BS.detach().amax(1, keepdim=True)
    return ((x_BS - highest_B1).exp().mean(1).log() + highest_B1[:, 0]) / sharpness
