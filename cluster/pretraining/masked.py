"""Pretrain the frozen semantic branch without a teacher, by predicting hidden parts of photographs.

    python -m prompt_iml.cluster.pretraining.masked --photos DIR --output FILE --samples 24000

SimMIM (Xie et al., arXiv 2111.09886) for a Swin of four maps: half of the photograph is hidden in
blocks as large as the coarsest token, and each layer predicts the pixels of its hidden tokens
through a linear head, which is not kept. The Swin's weights are written under their official names,
as `cluster.pretraining.distill` does.

Letters: B images, H W rows and columns (of pixels or tokens), C channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.cluster.pretraining.pretrain import normalised, pretrain, semantic_branch
from prompt_iml.engine.network.config import PRESETS, SwinConfig
from prompt_iml.engine.network.swin import Swin
from prompt_iml.pipeline.forgery.photos import Photo, list_photos

HIDDEN_SHARE = 0.5
DETAIL = 4  # each token predicts 4 x 4 values of three colours


class MaskedPretraining(nn.Module):
    """A semantic branch, and a linear head for each of its maps that predicts pixels."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.strides = config.strides
        self.swin = semantic_branch(config)
        self.heads = nn.ModuleList(
            nn.Linear(channels, 3 * DETAIL**2) for channels in config.stage_channels
        )

    def losses(self, image_BHW3: Tensor) -> list[Tensor]:
        """Return the mean absolute error of each map over its hidden tokens, scalars in standard
        deviations of colour; each call samples the hidden tokens anew."""
        image_B3HW = normalised(image_BHW3)
        batch, _, height, width = image_B3HW.shape
        coarsest = self.strides[-1]
        hidden_B1HW = (
            torch.rand(batch, 1, height // coarsest, width // coarsest) < HIDDEN_SHARE
        ).float()
        visible = functional.interpolate(1 - hidden_B1HW, (height, width))
        maps_BHWC = self.swin(image_B3HW * visible)
        errors = []
        for stride, head, x in zip(self.strides, self.heads, maps_BHWC, strict=True):
            error_BHWC = (head(x) - targets(image_B3HW, stride)).abs()
            weights = functional.interpolate(hidden_B1HW, error_BHWC.shape[1:3])[:, 0, ..., None]
            errors.append((error_BHWC * weights).mean() / weights.mean().clamp(min=1e-6))
        return errors


def targets(image_B3HW: Tensor, stride: int) -> Tensor:
    """Return each token's pixels, averaged to 4 x 4 values of each colour:
    (B, H/stride, W/stride, 48)."""
    small = functional.avg_pool2d(image_B3HW, stride // DETAIL)
    return functional.pixel_unshuffle(small, DETAIL).permute(0, 2, 3, 1)


def train_masked(config: SwinConfig, photos: Sequence[Photo], samples: int, seed: int = 0) -> Swin:
    """Train a semantic branch on `samples` crops; print its losses."""
    torch.manual_seed(seed)
    pretraining = MaskedPretraining(config)
    pretrain(pretraining, pretraining.losses, photos, samples, seed)
    return pretraining.swin


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=24_000)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="prompt-iml-micro")
    args = parser.parse_args()
    torch.set_num_threads(1)
    swin = train_masked(
        PRESETS[args.preset].swin, list_photos(args.photos), args.samples, args.seed
    )
    save_file(swin.state_dict(), args.output)


if __name__ == "__main__":
    main()
