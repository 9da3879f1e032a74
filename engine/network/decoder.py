"""Manipulation localization network: four fused maps in, mask logits out.

Paper (P):
    3.3: the architecture of Mask2Former (Cheng et al., arXiv 2112.01527): a pixel decoder that
        upsamples step by step, and a transformer decoder with masked attention over the maps.
    3.3: a single query.
Choices (C):
    With one query there is nothing to match and no class to predict: the mask logits are the
        product of the query's embedding and the mask features. Self-attention, a softmax over one
        query, is a projection.
    The masks of all layers are returned, for deep supervision as in Mask2Former.
    Where the finest map is coarser than the mask features (stride 4), a sub-pixel convolution
        (Shi et al., arXiv 1609.05158) makes several features from each cell.
    Group norm has 8 channels a group: Mask2Former's 256 channels in 32 groups.
    Mask features are never stored. They are linear in the cells, W x + b, and a logit is linear in
        them, q . (W x + b), so q W is computed first; see `MaskFeatures`.
Letters: B images, H W rows and columns of a map, s pixels between its cells, C input channels (of a
fused map, or D for mask features), D channels of the decoder, S cells of one map or of all maps
together, M heads, R mask features of a cell, one for each square of 4x4 pixels in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.cells import (
    CellNorm,
    Map,
    PointConv,
    Size,
    cells,
    cells_of_planes,
    planes,
    resize,
)
from prompt_iml.engine.network.config import DecoderConfig
from prompt_iml.engine.network.fusion import DeformableAttention, cell_centres

MASK_STRIDE = 4  # pixels between mask features, as in Mask2Former


class PixelDecoder(nn.Module):
    """Deformable encoder over the three coarser maps, then one step of a feature pyramid.

    Args:
        config: sizes of the decoder.
        channels: C of each fused map, the finest first.
        spread: number of mask features along each axis of a cell of the finest map.
    """

    def __init__(self, config: DecoderConfig, channels: Sequence[int], spread: int = 1) -> None:
        super().__init__()
        d = config.hidden
        self.spread = spread
        self.inputs = nn.ModuleList(_point_norm(c, d) for c in channels[1:])
        self.level_embed = nn.Parameter(torch.empty(len(channels) - 1, d).normal_())
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.lateral = _point_norm(channels[0], d)
        self.smooth = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(d, d, 3, padding=1, bias=False), CellNorm(d // 8, d)])]
        )
        self.mask_features = PointConv(d, d * spread**2)

    def forward(self, fused_BHWC: Sequence[Tensor]) -> tuple[MaskFeatures, list[Map]]:
        """Return the mask features, and the maps (B, S, D) of the three coarser strides.

        The finest is the first.
        """
        (finest_BSC, size), *coarse = (cells(map_BHWC) for map_BHWC in fused_BHWC)
        maps = self.encode(
            [(norm(x_BSC), size) for norm, (x_BSC, size) in zip(self.inputs, coarse, strict=True)]
        )
        both_BSD = self.lateral(finest_BSC) + resize(*maps[0], size)
        conv, norm = cast("nn.ModuleList", self.smooth[0])
        smooth_BSD = functional.relu(norm(cells_of_planes(conv(planes(both_BSD, size)))))
        return MaskFeatures(smooth_BSD, size, self.mask_features, self.spread), maps

    def encode(self, maps: Sequence[Map]) -> list[Map]:
        """Run the deformable encoder; maps keep their shapes."""
        sizes = [size for _, size in maps]
        x_BSD = torch.cat([map_BSD for map_BSD, _ in maps], 1)
        positions = [
            sine_position(h, w, x_BSD) + level_D
            for (h, w), level_D in zip(sizes, self.level_embed, strict=True)
        ]
        position_SD = torch.cat(positions)
        reference_S2 = torch.cat([cell_centres(h, w, x_BSD.device) for h, w in sizes])
        for layer in self.layers:
            x_BSD = layer(x_BSD, position_SD, reference_S2, sizes)
        ends = list(itertools.accumulate(h * w for h, w in sizes))
        # Slices, not a split: that exports as a sequence, which TensorRT does not read.
        return [
            (x_BSD[:, end - h * w : end], (h, w)) for end, (h, w) in zip(ends, sizes, strict=True)
        ]


class MaskFeatures:
    """Mask features of stride 4, as the cells and the 1x1 convolution that would make them.

    A logit is q . (W x + b) = (q W) . x + q . b, so q W is computed once for an image, and each
    cell gives R numbers instead of R*D. Weighted sums of features are likewise W applied to sums of
    cells.

    Args:
        x_BSC: cells.
        size: rows and columns of their map.
        conv: makes D*R channels of C.
        spread: number of features along each axis of a cell.
    """

    def __init__(self, x_BSC: Tensor, size: Size, conv: PointConv, spread: int) -> None:
        self.x_BSC, self.size, self.spread = x_BSC, size, spread
        self.weight_DRC = torch.unflatten(conv.matrix, 0, (-1, spread**2))
        self.bias_DR = torch.unflatten(cast("Tensor", conv.bias), 0, (-1, spread**2))

    def logits(self, query_BD: Tensor) -> Tensor:
        """Return the product of each feature with its image's query: (B, H, W), of stride 4."""
        weight_BX = query_BD @ self.weight_DRC.flatten(1)
        weight_BRC = torch.unflatten(weight_BX, 1, self.weight_DRC.shape[1:])
        logits_BSR = self.x_BSC @ weight_BRC.mT + (query_BD @ self.bias_DR)[:, None]
        squares = torch.unflatten(logits_BSR, 2, (self.spread, self.spread))
        rows = torch.unflatten(squares, 1, self.size).transpose(2, 3)
        return rows.flatten(3, 4).flatten(1, 2)

    def sums(self, share_BHW: Tensor) -> Tensor:
        """Return the sum of the features, weighted by shares (B, H, W): (B, D)."""
        (height, width), side = self.size, self.spread
        rows = torch.unflatten(torch.unflatten(share_BHW, 2, (width, side)), 1, (height, side))
        share_BSR = rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        read_BRC = share_BSR.mT.to(self.x_BSC.dtype) @ self.x_BSC
        sums_BD = read_BRC.flatten(1) @ self.weight_DRC.flatten(1).mT
        return sums_BD + share_BSR.sum(1) @ self.bias_DR.mT


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward, post-norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d = config.hidden
        self.attention = DeformableAttention(d, config.heads, levels=3, points=config.points)
        self.norm1 = nn.LayerNorm(d)
        self.ffn = _feed_forward(d, config.encoder_ffn)
        self.norm2 = nn.LayerNorm(d)

    def forward(
        self,
        x_BSD: Tensor,
        position_SD: Tensor,
        reference_S2: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Return (B, S, D), each cell after the layer.

        Args:
            x_BSD: cells of all levels.
            position_SD: position embeddings.
            reference_S2: (x, y) of the cells' centres, 0..1.
            sizes: rows and columns of each level.
        """
        x_BSD = self.norm1(x_BSD + self.attention(x_BSD + position_SD, reference_S2, x_BSD, sizes))
        y: Tensor = self.norm2(x_BSD + self.ffn(x_BSD))
        return y


class MaskDecoder(nn.Module):
    """One query (P 3.3), which attends to the maps, coarse to fine, inside its previous mask."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d = config.hidden
        self.query = nn.Parameter(torch.empty(1, 1, d).normal_())
        self.query_position = nn.Parameter(torch.empty(1, 1, d).normal_())
        self.level_embed = nn.Parameter(torch.empty(3, d).normal_())
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(d)
        self.mask_embed = nn.Sequential(
            nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)
        )

    def forward(self, features: MaskFeatures, maps: Sequence[Map]) -> tuple[list[Tensor], Tensor]:
        """Return mask logits (B, H, W), before the first and after each layer, and query (B, D)."""
        query_B1D = self.query.expand(features.x_BSC.shape[0], -1, -1)
        masks_BHW = [self.predict(query_B1D, features)]
        for index, layer in enumerate(self.layers):
            level = 2 - index % 3  # coarse to fine
            memory_BSD, size = maps[level]
            position_SD = sine_position(*size, memory_BSD)
            memory_BSD = memory_BSD + self.level_embed[level]
            attend_B1S = attention_mask(masks_BHW[-1], size)[:, None]
            query_B1D = layer(query_B1D, self.query_position, memory_BSD, position_SD, attend_B1S)
            masks_BHW.append(self.predict(query_B1D, features))
        return masks_BHW, self.norm(query_B1D)[:, 0]

    def predict(self, query_B1D: Tensor, features: MaskFeatures) -> Tensor:
        """Return mask logits (B, H, W), one for each mask feature."""
        return features.logits(self.mask_embed(self.norm(query_B1D))[:, 0])


class DecoderLayer(nn.Module):
    """Masked cross-attention (P 3.3), self-attention, feed-forward, post-norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.cross_query = nn.Linear(d, d)
        self.cross_key = nn.Linear(d, d)
        self.cross_value = nn.Linear(d, d)
        self.cross_out = nn.Linear(d, d)
        self.norm1 = nn.LayerNorm(d)
        self.self_attention = nn.Sequential(nn.Linear(d, d), nn.Linear(d, d))  # value, output
        self.norm2 = nn.LayerNorm(d)
        self.ffn = _feed_forward(d, config.decoder_ffn)
        self.norm3 = nn.LayerNorm(d)

    def forward(
        self,
        query_B1D: Tensor,
        query_position_11D: Tensor,
        memory_BSD: Tensor,
        position_SD: Tensor,
        attend_B1S: Tensor,
    ) -> Tensor:
        """Return the query (B, 1, D) after attention to the memory where `attend_B1S` is True."""
        read_B1D = functional.scaled_dot_product_attention(
            self._heads(self.cross_query(query_B1D + query_position_11D)),
            self._heads(self.cross_key(memory_BSD + position_SD)),
            self._heads(self.cross_value(memory_BSD)),
            attend_B1S[:, None],
        )
        read_B1D = self.cross_out(read_B1D.transpose(1, 2).flatten(2))
        query_B1D = self.norm1(query_B1D + read_B1D)
        query_B1D = self.norm2(query_B1D + self.self_attention(query_B1D))
        y: Tensor = self.norm3(query_B1D + self.ffn(query_B1D))
        return y

    def _heads(self, x_BSD: Tensor) -> Tensor:
        """Split channels into heads: (B, S, D) -> (B, M, S, D/M)."""
        b, s, d = x_BSD.shape
        return x_BSD.reshape(b, s, self.heads, d // self.heads).transpose(1, 2)


def attention_mask(mask_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, S) bool: the cells where the mask, scaled to `size`, is at least 0.

    If there is no such cell, all are True, as in Mask2Former: a softmax over none is NaN.
    """
    scaled_B1HW = functional.interpolate(
        mask_BHW.detach()[:, None], size, mode="bilinear", align_corners=False
    )
    attend_BS = scaled_B1HW.flatten(1) >= 0
    return attend_BS | ~attend_BS.any(1, keepdim=True)


def sine_position(height: int, width: int, like_BSD: Tensor) -> Tensor:
    """Return (S, D): sines and cosines of each cell's row, then of its column."""
    half, device = like_BSD.shape[2] // 2, like_BSD.device
    row, column = _sine(height, half, device), _sine(width, half, device)
    rows = row[:, None].expand(height, width, half)
    columns = column[None].expand(height, width, half)
    return torch.cat([rows, columns], -1).reshape(height * width, 2 * half).to(like_BSD.dtype)


def _sine(size: int, channels: int, device: torch.device) -> Tensor:
    """Return (size, channels): sines, then cosines, of the positions along one axis."""
    position = 2 * math.pi * (torch.arange(size, device=device) + 1) / size
    period = 10000 ** (torch.arange(channels // 2, device=device) / (channels // 2))
    angle = position[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], -1)


def _point_norm(in_channels: int, channels: int) -> nn.Sequential:
    """Return a 1x1 convolution followed by group norm."""
    conv = PointConv(in_channels, channels, bias=False)
    return nn.Sequential(conv, CellNorm(channels // 8, channels))


def _feed_forward(channels: int, hidden: int) -> nn.Sequential:
    """Return two linear layers with a ReLU between."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
