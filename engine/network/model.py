"""The whole network: an RGB image in, mask logits and a score logit out.

Paper (P):
    3.1, figure 2: a feature extraction network of two branches, joined by a fusion module after
        each of four layers, then a manipulation localization network over the four fused maps.
    3.2: both branches are Swins of the same structure; the semantic one is pretrained and frozen.
    3.4: of the semantic branch only the prompts train, and every block has its own.
Choices (C):
    Pixels are normalised by ImageNet's mean and deviation, in both branches: the frozen weights
        were trained on such images.
    Patches are merged after the fusion, so that a fused map has the resolution of its layer.
    Prompts begin with random values as in VPT (Jia et al., arXiv 2203.12119).
Beyond the paper, off in `prompt-iml-s`: the wide stem and the prompts of the high-frequency
    branch, and what the JPEG view and the matches add to its map of stride 8. The score head, which
    the paper lacks too, is always on.
Letters: B images, H W rows and columns, s pixels between the tokens of a layer, C channels,
D channels of the decoder, K blocks of a layer, P prompts of a block, A AC coefficients, N absolute
values of a coefficient, F features of the matches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from prompt_iml.engine.network.beyond.dct import BLOCK
from prompt_iml.engine.network.beyond.jpeg_view import JpegView
from prompt_iml.engine.network.beyond.matches import Matches
from prompt_iml.engine.network.beyond.score_head import ScoreHead
from prompt_iml.engine.network.beyond.wide_stem import WideStem
from prompt_iml.engine.network.cells import added
from prompt_iml.engine.network.config import NetworkConfig, SwinConfig
from prompt_iml.engine.network.decoder import MASK_STRIDE, MaskDecoder, PixelDecoder
from prompt_iml.engine.network.fusion import Fusion
from prompt_iml.engine.network.stems import HighFrequencyStem, PatchEmbedding
from prompt_iml.engine.network.swin import Swin, SwinLayer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # C: ImageNet's, of values 0..1

Layer = tuple[SwinLayer, SwinLayer, nn.Module, Tensor, Tensor | None]


class PromptIML(nn.Module):
    """Two Swin branches, fused after each layer, and a decoder with one query."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        swin, channels = config.swin, config.swin.stage_channels
        self.semantic = Swin(swin, PatchEmbedding(swin.channels, swin.patch, swin.position_grid))
        self.high_frequency = Swin(swin, _high_frequency_stem(config))
        self.prompts = nn.ParameterList(
            _prompts(shape, config.swin) for shape in config.prompt_shapes
        )
        self.block_stage = swin.strides.index(BLOCK)
        block_channels = channels[self.block_stage]
        self.jpeg_view = JpegView(config.jpeg_view, block_channels) if config.jpeg_view else None
        self.matches = Matches(block_channels) if config.match_map else None
        self.fusion = nn.ModuleList(
            Fusion(c, heads, config.fusion_points)
            for c, heads in zip(channels, swin.heads, strict=True)
        )
        self.pixel_decoder = PixelDecoder(config.decoder, channels, swin.patch // MASK_STRIDE)
        self.mask_decoder = MaskDecoder(config.decoder)
        self.score_head = ScoreHead(config.decoder.hidden, channels)
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)
        self.semantic.layers.requires_grad_(False)  # P 3.2: it remains untrained
        self.semantic.patch_embed.proj.requires_grad_(False)
        self.semantic.patch_embed.norm.requires_grad_(False)

    def forward(
        self,
        image_BHW3: Tensor,
        qtable_B64: Tensor | None = None,
        histogram_BAN: Tensor | None = None,
        matches_BFHW: Tensor | None = None,
        prompts: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Locate manipulated pixels, and score the image.

        Args:
            image_BHW3: RGB, 0..255, uint8 or floating.
            qtable_B64: JPEG luma quantisation tables in natural order, ones where there is
                none; needed where the JPEG view is on.
            histogram_BAN: (B, 20, 16), for each coefficient the share, 0..1, of the picture's
                blocks at each absolute value in units of the table; the last is open. Needed where
                the JPEG view is on.
            matches_BFHW: (B, 6, H/8, W/8), how each block of 8x8 pixels resembles another place
                (`find_matches` in `engine.detection.context`); needed where the match map is on.
            prompts: (K, P, C) a layer, of the semantic branch and then, if it has prompts, of the
                high-frequency branch; instead of the network's own.

        Returns:
            Mask logits (B, H/4, W/4), above 0 means manipulated, and score logits (B,).
        """
        context = qtable_B64, histogram_BAN, matches_BFHW
        masks, score_B = self.localize(self.extract(image_BHW3, *context, prompts))
        return masks[-1], score_B

    def extract(
        self,
        image_BHW3: Tensor,
        qtable_B64: Tensor | None = None,
        histogram_BAN: Tensor | None = None,
        matches_BFHW: Tensor | None = None,
        prompts: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the fused map (B, H/s, W/s, C) of each layer: the feature extraction network of
        P 3.2. Arguments are those of `forward`."""
        pixels_B3HW = image_BHW3.permute(0, 3, 1, 2).to(self.mean.dtype)
        normal_B3HW = (pixels_B3HW - self.mean) / self.std
        additions_BHWC: list[Tensor] = []
        if self.jpeg_view is not None:
            additions_BHWC.append(self.jpeg_view(pixels_B3HW, qtable_B64, histogram_BAN))
        if self.matches is not None:
            additions_BHWC.append(self.matches(matches_BFHW))
        sem = self.semantic.patch_embed(normal_B3HW)  # P eq. 1
        hfq = self.high_frequency.patch_embed(normal_B3HW)  # P eq. 2
        fused: list[Tensor] = []
        # Prompts enter the high-frequency branch as they do the semantic one; the paper's has none.
        for stage, (sem_layer, hfq_layer, fuse, prompts_KPC, hfq_prompts_KPC) in enumerate(
            self._layers(prompts)
        ):
            if stage == self.block_stage:
                hfq = added(hfq, *additions_BHWC)
            sem, hfq = sem_layer(sem, prompts_KPC), hfq_layer(hfq, hfq_prompts_KPC)  # P eq. 8, 3
            sem, hfq, both = fuse(sem, hfq)  # P eq. 4 to 7
            sem, hfq = sem_layer.downsample(sem), hfq_layer.downsample(hfq)
            fused.append(both)
        return fused

    def localize(self, fused_BHWC: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return mask logits (B, H/4, W/4) before the first and after each decoder layer, and score
        logits (B,): the manipulation localization network of P 3.3. The last mask is the result."""
        features, maps = self.pixel_decoder(fused_BHWC)
        masks_BHW, query_BD = self.mask_decoder(features, maps)
        return masks_BHW, self.score_head(query_BD, features, masks_BHW[-1], fused_BHWC)

    def _layers(self, prompts: Sequence[Tensor] | None) -> Iterator[Layer]:
        """Return for each stage: semantic layer, high-frequency layer, fusion, and the prompts of
        both layers."""
        semantic, high_frequency = self.semantic.stages(), self.high_frequency.stages()
        tensors, stages = list(prompts or self.prompts), len(semantic)
        hfq_prompts = tensors[stages:] or [None] * stages
        return zip(
            semantic, high_frequency, self.fusion, tensors[:stages], hfq_prompts, strict=True
        )


def _high_frequency_stem(config: NetworkConfig) -> nn.Module:
    """Return the paper's stem, or the wide one if the config has a width for it."""
    channels, patch = config.swin.channels, config.swin.patch
    if config.stem_width:
        width, blocks, inner = config.stem_width, config.stem_blocks, config.stem_inner
        return WideStem(channels, patch, width, blocks, inner)
    return HighFrequencyStem(channels, patch)


def _prompts(shape: tuple[int, int, int], swin: SwinConfig) -> nn.Parameter:
    """Return random prompts (K, P, C); they do not train if P = 0."""
    limit = math.sqrt(6 / (3 * swin.patch**2 + swin.channels))
    return nn.Parameter(torch.empty(shape).uniform_(-limit, limit), requires_grad=shape[1] > 0)
