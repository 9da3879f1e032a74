"""Score head: one logit for the whole image, from its mask, the query and the feature maps.

Paper (P): it has no score; its training has no labels of images.
Choices (C):
    The score begins as the evidence in the mask (its soft maxima) alone, so that the other inputs
        add no noise, and learns to weigh it against the query, the fused maps, and the features
        inside and outside of the mask. The maximum alone would turn the noise of one pixel into an
        alarm.
    The activation is GELU: with ReLU, all units died within 10,000 samples.
    Gradients flow through the evidence, and not through the weights of inside and outside.
Letters: B images, H W rows and columns of the mask, S cells of the mask, D channels of the decoder,
C channels of a fused map, K sharpnesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prompt_iml.engine.network.decoder import MaskFeatures

SHARPNESS = (0.5, 1.0, 4.0)  # of three soft maxima: near the mean, of the odds, near the maximum


class ScoreHead(nn.Module):
    """Score logits from the mask, the query, the features and the fused maps."""

    def __init__(self, hidden: int, channels: Sequence[int]) -> None:
        super().__init__()
        width = 3 * hidden + sum(channels)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.evidence = nn.Linear(len(SHARPNESS), 1)
        nn.init.zeros_(cast("nn.Linear", self.layers[2]).weight)
        nn.init.constant_(self.evidence.weight, 1 / len(SHARPNESS))

    def forward(
        self,
        query_BD: Tensor,
        features: MaskFeatures,
        mask_BHW: Tensor,
        fused_BHWC: Sequence[Tensor],
    ) -> Tensor:
        """Return score logits (B,)."""
        logits_BS = mask_BHW.flatten(1)
        inside_BHW = mask_BHW.detach().sigmoid()
        inside_BD, outside_BD = (
            features.sums(share_BHW) / (share_BHW.sum((1, 2))[:, None] + 1)
            for share_BHW in (inside_BHW, 1 - inside_BHW)
        )
        pooled = [map_BHWC.flatten(1, 2).mean(1) for map_BHWC in fused_BHWC]
        found = torch.cat([query_BD, inside_BD, outside_BD, *pooled], 1)
        evidence_BK = torch.stack([soft_maximum(logits_BS, r) for r in SHARPNESS], 1)
        y: Tensor = self.layers(self.norm(found)) + self.evidence(evidence_BK)
        return y[:, 0]


def soft_maximum(x_BS: Tensor, sharpness: float) -> Tensor:
    """Return the log mean exp, (B,): near the mean for a small sharpness, else near the maximum.

    An exported graph would fix the size in `logsumexp` minus the logarithm of the size.
    """
    x_BS = sharpness * x_BS
    highest_B1 = x_BS.detach().amax(1, keepdim=True)
    return ((x_BS - highest_B1).exp().mean(1).log() + highest_B1[:, 0]) / sharpness
