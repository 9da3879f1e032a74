"""Feature alignment and fusion (FAF): two maps become two aligned maps and a fused one.

Paper (P):
    3.2, equation 4: channel weights of both branches from an MLP on their average-pooled maps.
    3.2, equation 5: spatial weights from two 1x1 convolutions with a ReLU between.
    3.2, equation 6: each branch adds the other's map, under the other's weights.
    3.2, equation 7: each branch queries the other by deformable attention (Zhu et al., arXiv
        2010.04159); the fused map is a learnable weighting of the two sums.
Choices (C):
    Both weights end in a sigmoid and begin near 0.1: with 0.5 and 0.5, each branch would begin with
        as much of the other map as of its own.
    Equation 7 takes layer norms of the aligned maps, so that neither branch dominates by its
        scale; the maps for the next layers are not normalised.
    The value of its second attention is F_sem of layer i. The paper has i + 1, which does not
        exist yet and has another size; we take it for a misprint.
    Deformable attention has the usual sizes: four points, 32 channels a head (as many heads as
        Swin's), and reference points at the cells' own centres. The gates of both branches begin
        at 0.5.
Letters: B images, H W rows and columns, C channels, M heads, D channels of a head, L levels (the
maps of one image), S cells of all levels, Q queries, P points of a head and level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prompt_iml.engine.network.cells import Size, cells, grid
from prompt_iml.engine.operator.torch_op import ms_deform_attn


class Fusion(nn.Module):
    """One FAF module, after one layer of the branches."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        c = channels
        self.channel_weights = nn.Sequential(
            nn.Linear(2 * c, 2 * c), nn.ReLU(), nn.Linear(2 * c, 2 * c), nn.Sigmoid()
        )
        self.spatial_weights = nn.Sequential(  # 1x1 convolutions, channels last
            nn.Linear(2 * c, c), nn.ReLU(), nn.Linear(c, 2), nn.Sigmoid()
        )
        self.norm_sem, self.norm_hfq = nn.LayerNorm(c), nn.LayerNorm(c)
        self.attend_sem = DeformableAttention(c, heads, levels=1, points=points)
        self.attend_hfq = DeformableAttention(c, heads, levels=1, points=points)
        self.gate_sem = nn.Parameter(torch.tensor(0.5))
        self.gate_hfq = nn.Parameter(torch.tensor(0.5))
        for weights in (self.channel_weights, self.spatial_weights):
            nn.init.constant_(cast("nn.Linear", weights[2]).bias, -2.0)

    def forward(self, sem_BHWC: Tensor, hfq_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the aligned semantic and high-frequency maps and the fused map, (B, H, W, C)."""
        (sem_BSC, size), (hfq_BSC, _) = cells(sem_BHWC), cells(hfq_BHWC)
        sem_BSC, hfq_BSC = self.align(sem_BSC, hfq_BSC)
        both_BSC = self.fuse(self.norm_sem(sem_BSC), self.norm_hfq(hfq_BSC), size)
        return grid(sem_BSC, size), grid(hfq_BSC, size), grid(both_BSC, size)

    def align(self, sem_BSC: Tensor, hfq_BSC: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps (B, S, C), each plus the other, weighted by channel and by cell."""
        both = torch.cat([sem_BSC, hfq_BSC], -1)
        channel = self.channel_weights(both.mean(1))[:, None]  # P eq. 4
        channel_sem, channel_hfq = channel.chunk(2, -1)  # (B, 1, C)
        spatial_sem, spatial_hfq = self.spatial_weights(both).chunk(2, -1)  # P eq. 5: (B, S, 1)
        return (  # P eq. 6
            sem_BSC + (channel_hfq + spatial_hfq) * hfq_BSC,
            hfq_BSC + (channel_sem + spatial_sem) * sem_BSC,
        )

    def fuse(self, sem_BSC: Tensor, hfq_BSC: Tensor, size: Size) -> Tensor:
        """Return the fused map (B, S, C), by attention in both directions (P eq. 7)."""
        centres = cell_centres(*size, sem_BSC.device)
        from_hfq = self.attend_sem(sem_BSC, centres, hfq_BSC, [size])
        from_sem = self.attend_hfq(hfq_BSC, centres, sem_BSC, [size])
        sem, hfq = sem_BSC + from_hfq, hfq_BSC + from_sem
        fused: Tensor = self.gate_sem * sem + self.gate_hfq * hfq
        return fused


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159)."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise the offsets: each head has its own direction, each point is a cell further."""
        angle_M = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_M2 = torch.stack([angle_M.cos(), angle_M.sin()], -1)
        steps_P = torch.arange(1.0, self.points + 1)
        offsets = direction_M2[:, None, None] * steps_P[:, None]
        offsets_MLP2 = offsets.expand(self.heads, self.levels, self.points, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets_MLP2.flatten())

    def forward(
        self,
        query_BQC: Tensor,
        reference_Q2: Tensor,
        value_BSC: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Sample values around each query's reference point.

        Args:
            query_BQC: queries, from which offsets and weights are computed.
            reference_Q2: (x, y) in 0..1, float32.
            value_BSC: the levels' maps, flattened row by row, one after the other.
            sizes: rows and columns of each level.

        Returns:
            (B, Q, C).
        """
        b, q, c = query_BQC.shape
        m, n_levels, p = self.heads, self.levels, self.points
        value_BSMD = self.value_proj(value_BSC).reshape(b, -1, m, c // m)
        offsets = self.sampling_offsets(query_BQC).reshape(b, q, m, n_levels, p, 2)
        weights = self.attention_weights(query_BQC).reshape(b, q, m, n_levels * p).softmax(-1)
        # Always float32: over 128 columns, float16 is off by 0.06 columns and bfloat16 by 0.5.
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        cells_L12 = torch.stack([_width_height(h, w, offsets) for h, w in sizes])[:, None]
        locations = reference_Q2[:, None, None, None] + offsets / cells_L12
        out = ms_deform_attn(value_BSMD, sizes, locations, weights.reshape(b, q, m, n_levels, p))
        y: Tensor = self.output_proj(out)
        return y


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return (H*W, 2) float32: (x, y) of each cell's centre, row by row, 0..1 over the map."""
    y_H = (torch.arange(height, device=device) + 0.5) / height
    x_W = (torch.arange(width, device=device) + 0.5) / width
    columns, rows = x_W[None, :].expand(height, width), y_H[:, None].expand(height, width)
    return torch.stack([columns, rows], -1).reshape(height * width, 2)


def _width_height(height: int, width: int, like: Tensor) -> Tensor:
    """Return (2,): width and height, which may be symbolic."""
    sizes = torch.stack([torch.scalar_tensor(size, device=like.device) for size in (width, height)])
    return sizes.to(like.dtype)
