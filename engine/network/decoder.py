"""Four fused maps in, one mask and one score out: Mask2Former's decoder with a single query.

Mask2Former: Cheng et al., arXiv 2112.01527. With one query there is nothing to match and no
class to tell, and self-attention, a softmax over one, is a projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.config import DecoderConfig
from prompt_iml.engine.network.fusion import DeformableAttention, cell_centres

MASK_STRIDE = 4
SHARPNESS = (0.5, 1.0, 4.0)  # of the score's looks at the mask: broad, by odds, at its peak


class PixelDecoder(nn.Module):
    """Deformable encoder over the three coarser maps, then a step of feature pyramid.

    The mask features have stride 4. Where the finest map's is `spread` times that, each of its
    cells has spread x spread of them, from a sub-pixel convolution (arXiv 1609.05158).
    """

    def __init__(self, config: DecoderConfig, channels: Sequence[int], spread: int = 1) -> None:
        super().__init__()
        d = config.hidden
        self.spread = spread
        self.inputs = nn.ModuleList(_conv_norm(c, d, 1) for c in channels[1:])
        self.level_embed = nn.Parameter(torch.empty(len(channels) - 1, d).normal_())
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.lateral = _conv_norm(channels[0], d, 1)
        self.smooth = nn.Sequential(_conv_norm(d, d, 3), nn.ReLU())
        self.mask_features = nn.Conv2d(d, d * spread**2, 1)

    def forward(self, maps_BHWC: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Mask features (B, D, H/4, W/4), and the coarser maps (B, D, H/s, W/s)."""
        finest, *coarse = (map_BHWC.permute(0, 3, 1, 2) for map_BHWC in maps_BHWC)
        maps = self.encode([conv(x) for conv, x in zip(self.inputs, coarse, strict=True)])
        lateral = self.lateral(finest)
        upsampled = functional.interpolate(
            maps[0], lateral.shape[2:], mode="bilinear", align_corners=False
        )
        features = self.mask_features(self.smooth(lateral + upsampled))
        return functional.pixel_shuffle(features, self.spread), maps

    def encode(self, maps_BDHW: Sequence[Tensor]) -> list[Tensor]:
        """The deformable encoder; same shapes out as in."""
        sizes = [(x.shape[2], x.shape[3]) for x in maps_BDHW]
        x_BSD = torch.cat([x.flatten(2).transpose(1, 2) for x in maps_BDHW], 1)
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
            torch.unflatten(x_BSD[:, end - h * w : end].transpose(1, 2), 2, (h, w))
            for end, (h, w) in zip(ends, sizes, strict=True)
        ]


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
        """(B, S, D) -> the same."""
        x_BSD = self.norm1(x_BSD + self.attention(x_BSD + position_SD, reference_S2, x_BSD, sizes))
        y: Tensor = self.norm2(x_BSD + self.ffn(x_BSD))
        return y


class MaskDecoder(nn.Module):
    """One query reads the maps, coarse to fine, each time only where its last mask was."""

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

    def forward(
        self, features_BDHW: Tensor, maps_BDHW: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Mask logits (B, H/4, W/4) before the first and after each layer, and the query (B, D).

        All of them may be trained (deep supervision); the last is the answer.
        """
        query_B1D = self.query.expand(features_BDHW.shape[0], -1, -1)
        masks = [self.predict(query_B1D, features_BDHW)]
        for index, layer in enumerate(self.layers):
            level = 2 - index % 3  # coarse to fine
            height, width = size = maps_BDHW[level].shape[2:]
            memory_BSD = maps_BDHW[level].flatten(2).transpose(1, 2)
            position_SD = sine_position(height, width, memory_BSD)
            memory_BSD = memory_BSD + self.level_embed[level]
            attend_B1S = attention_mask(masks[-1], (size[0], size[1]))[:, None]
            query_B1D = layer(query_B1D, self.query_position, memory_BSD, position_SD, attend_B1S)
            masks.append(self.predict(query_B1D, features_BDHW))
        return masks, self.norm(query_B1D)[:, 0]

    def predict(self, query_B1D: Tensor, features_BDHW: Tensor) -> Tensor:
        """Mask logits (B, H/4, W/4)."""
        embedding_B1D = self.mask_embed(self.norm(query_B1D))
        logits_B1S: Tensor = embedding_B1D @ features_BDHW.flatten(2)
        return logits_B1S.reshape(-1, *features_BDHW.shape[2:])


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward, post-norm."""

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
        """The query (B, 1, D) after reading the memory where `attend_B1S` is True."""
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
        """(B, S, D) -> (B, M, S, D/M)."""
        b, s, d = x_BSD.shape
        return x_BSD.reshape(b, s, self.heads, d // self.heads).transpose(1, 2)


class ScoreHead(nn.Module):
    """The image score: the evidence in the mask, weighed against what the query, the fused maps
    and the features inside and outside of the mask say."""

    def __init__(self, hidden: int, channels: Sequence[int]) -> None:
        super().__init__()
        width = 3 * hidden + sum(channels)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )  # not ReLU: all of its units died within 10,000 samples
        self.evidence = nn.Linear(len(SHARPNESS), 1)
        # Begins as the evidence alone: the rest has hundreds of numbers to be wrong about.
        nn.init.zeros_(cast("nn.Linear", self.layers[2]).weight)
        nn.init.constant_(self.evidence.weight, 1 / len(SHARPNESS))

    def forward(
        self,
        query_BD: Tensor,
        features_BDHW: Tensor,
        mask_BHW: Tensor,
        maps_BHWC: Sequence[Tensor],
    ) -> Tensor:
        """Logits (B,)."""
        logits_BS = mask_BHW.flatten(1)
        inside_BS1 = logits_BS.detach().sigmoid()[:, :, None]
        features_BDS = features_BDHW.flatten(2)
        inside_BD = features_BDS @ (inside_BS1 / (inside_BS1.sum(1, keepdim=True) + 1))
        outside_BS1 = 1 - inside_BS1
        outside_BD = features_BDS @ (outside_BS1 / (outside_BS1.sum(1, keepdim=True) + 1))
        pooled = [map_BHWC.mean((1, 2)) for map_BHWC in maps_BHWC]
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


def attention_mask(mask_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, S) bool: where the mask, scaled to `size`, is positive; everywhere if nowhere.

    An untouched image has an empty mask, and a softmax over nothing is not a number.
    """
    scaled_B1HW = functional.interpolate(
        mask_BHW.detach()[:, None], size, mode="bilinear", align_corners=False
    )
    attend_BS = scaled_B1HW.flatten(1) >= 0
    return attend_BS | ~attend_BS.any(1, keepdim=True)


def sine_position(height: int, width: int, like_BSC: Tensor) -> Tensor:
    """(H*W, C): sines and cosines of the row, then of the column, over the whole map."""
    c, device = like_BSC.shape[2] // 2, like_BSC.device
    row_HC, column_WC = _sine(height, c, device), _sine(width, c, device)
    rows = row_HC[:, None].expand(height, width, c)
    columns = column_WC[None].expand(height, width, c)
    return torch.cat([rows, columns], -1).reshape(height * width, 2 * c).to(like_BSC.dtype)


def _sine(size: int, channels: int, device: torch.device) -> Tensor:
    """(size, C): one axis."""
    position = 2 * math.pi * (torch.arange(size, device=device) + 1) / size
    period = 10000 ** (torch.arange(channels // 2, device=device) / (channels // 2))
    angle = position[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], -1)


def _conv_norm(in_channels: int, channels: int, size: int) -> nn.Sequential:
    """Convolution and group norm, 8 channels a group as Mask2Former's 256 in 32."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, size, padding=size // 2, bias=False),
        nn.GroupNorm(channels // 8, channels),
    )


def _feed_forward(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
