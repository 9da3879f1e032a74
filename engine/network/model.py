"""Prompt-IML, whole. Liu et al., arXiv 2401.00653; each part's module says what is ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prompt_iml.engine.network.beyond.jpeg_view import BLOCK, JpegView
from prompt_iml.engine.network.beyond.matches import Matches
from prompt_iml.engine.network.config import NetworkConfig
from prompt_iml.engine.network.decoder import MASK_STRIDE, MaskDecoder, PixelDecoder, ScoreHead
from prompt_iml.engine.network.fusion import Fusion
from prompt_iml.engine.network.stems import HighFrequencyStem, PatchEmbedding
from prompt_iml.engine.network.swin import Swin

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the frozen weights saw


class PromptIML(nn.Module):
    """Two Swin branches, fused after each layer, and a one-query mask decoder.

    The semantic branch is frozen from the start: of it only the prompts train.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        swin, channels = config.swin, config.swin.stage_channels
        self.semantic = Swin(swin, PatchEmbedding(swin.channels, swin.patch, swin.position_grid))
        self.high_frequency = Swin(
            swin,
            HighFrequencyStem(swin.channels, swin.patch, config.stem_width, config.stem_blocks),
        )
        self.prompts = nn.ParameterList(_prompts(config))
        self.block_stage = swin.strides.index(BLOCK)
        beside = channels[self.block_stage]
        self.jpeg_view = JpegView(config.jpeg_view, beside) if config.jpeg_view else None
        self.matches = Matches(beside) if config.matches else None
        self.fusion = nn.ModuleList(
            Fusion(
                c,
                heads,
                config.fusion_points,
                aligns=config.fusion in ("align", "full"),
                fuses=config.fusion in ("fuse", "full"),
            )
            for c, heads in zip(channels, swin.heads, strict=True)
        )
        self.pixel_decoder = PixelDecoder(config.decoder, channels, swin.patch // MASK_STRIDE)
        self.mask_decoder = MaskDecoder(config.decoder)
        self.score_head = ScoreHead(config.decoder.hidden, channels)
        self.register_buffer("mean", 255 * torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD), persistent=False)
        self.semantic.layers.requires_grad_(False)
        self.semantic.patch_embed.proj.requires_grad_(False)
        self.semantic.patch_embed.norm.requires_grad_(False)
        for unused in self._unused():
            unused.requires_grad_(False)

    def _unused(self) -> list[nn.Module]:
        """What the config's way of fusion leaves out; nothing of the paper's."""
        if self.config.fusion == "semantic":
            views = [view for view in (self.jpeg_view, self.matches) if view is not None]
            return [self.high_frequency, self.fusion, *views]
        if self.config.fusion == "high_frequency":
            return [self.semantic, self.prompts, self.fusion]
        fusions = cast("list[Fusion]", list(self.fusion))
        return [part for fusion in fusions for part in fusion.unused()]

    def forward(
        self,
        image_BHW3: Tensor,
        qtable_B64: Tensor | None = None,
        prompts: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find what was manipulated.

        Args:
            image_BHW3: RGB, 0..255, uint8 or floating.
            qtable_B64: JPEG luma quantisation tables in natural order, ones where there is
                none; needed where the JPEG view is on.
            prompts: (depth, P, C) a stage, instead of the network's own.

        Returns:
            Mask logits (B, H/4, W/4), above 0 means manipulated, and score logits (B,).
        """
        masks, score_B = self.predictions(image_BHW3, qtable_B64, prompts)
        return masks[-1], score_B

    def predictions(
        self,
        image_BHW3: Tensor,
        qtable_B64: Tensor | None = None,
        prompts: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """As `forward`, with the mask logits of every decoder layer, for deep supervision."""
        maps_BHWC = self.fused_maps(image_BHW3, qtable_B64, prompts or list(self.prompts))
        features_BDHW, maps_BDHW = self.pixel_decoder(maps_BHWC)
        masks, query_BD = self.mask_decoder(features_BDHW, maps_BDHW)
        return masks, self.score_head(query_BD, features_BDHW, masks[-1], maps_BHWC)

    def fused_maps(
        self, image_BHW3: Tensor, qtable_B64: Tensor | None, prompts: Sequence[Tensor]
    ) -> list[Tensor]:
        """Both branches: (B, H/s, W/s, C), s the config's strides."""
        pixels_BHW3 = image_BHW3.to(self.mean.dtype)
        normal_B3HW = ((pixels_BHW3 - self.mean) / self.std).permute(0, 3, 1, 2)
        if self.config.fusion == "semantic":
            maps: list[Tensor] = self.semantic(normal_B3HW, prompts)
            return maps
        views_BHWC = self._views(pixels_BHW3.permute(0, 3, 1, 2), qtable_B64)
        if self.config.fusion == "high_frequency":
            return self._high_frequency_maps(normal_B3HW, views_BHWC)
        sem = self.semantic.patch_embed(normal_B3HW)
        hfq = self.high_frequency.patch_embed(normal_B3HW)
        stages = zip(
            self.semantic.stages(), self.high_frequency.stages(), self.fusion, prompts, strict=True
        )
        fused: list[Tensor] = []
        for stage, (sem_layer, hfq_layer, fuse, prompts_depthPC) in enumerate(stages):
            hfq = self._with_views(hfq, views_BHWC, stage)
            sem, hfq, both = fuse(sem_layer(sem, prompts_depthPC), hfq_layer(hfq))
            sem, hfq = sem_layer.downsample(sem), hfq_layer.downsample(hfq)
            fused.append(both)
        return fused

    def _views(self, pixels_B3HW: Tensor, qtable_B64: Tensor | None) -> list[Tensor]:
        """What is told besides the pixels, (B, H/8, W/8, C) each."""
        views: list[Tensor] = []
        if self.jpeg_view is not None:
            views.append(self.jpeg_view(pixels_B3HW, qtable_B64))
        if self.matches is not None:
            views.append(self.matches(pixels_B3HW))
        return views

    def _high_frequency_maps(
        self, image_B3HW: Tensor, views_BHWC: Sequence[Tensor]
    ) -> list[Tensor]:
        """The branch alone, as in the ablation."""
        x_BHWC, maps = self.high_frequency.patch_embed(image_B3HW), []
        for stage, layer in enumerate(self.high_frequency.stages()):
            maps.append(layer(self._with_views(x_BHWC, views_BHWC, stage)))
            x_BHWC = layer.downsample(maps[-1])
        return maps

    def _with_views(self, x_BHWC: Tensor, views_BHWC: Sequence[Tensor], stage: int) -> Tensor:
        """They join the high-frequency branch where its stride is a block's side."""
        return sum(views_BHWC, x_BHWC) if stage == self.block_stage else x_BHWC


def _prompts(config: NetworkConfig) -> list[nn.Parameter]:
    """(depth, P, C) a stage, drawn as VPT draws them; where there are none, nothing to train."""
    limit = math.sqrt(6 / (3 * config.swin.patch**2 + config.swin.channels))
    return [
        nn.Parameter(
            torch.empty(depth, config.prompts, channels).uniform_(-limit, limit),
            requires_grad=config.prompts > 0,
        )
        for depth, channels in zip(config.swin.depths, config.swin.stage_channels, strict=True)
    ]
