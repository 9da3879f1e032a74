"""Crops of photographs and the training loop, for both ways to pretrain the semantic branch.

`cluster.pretraining.distill` learns from a teacher, `cluster.pretraining.masked` from photographs
alone; `cluster.training.ablation --variant semantic` compares the two.

Letters: B images, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from prompt_iml.cluster.training.schedule import learning_rate, precision, weight_decay_groups
from prompt_iml.engine.network.config import SwinConfig
from prompt_iml.engine.network.model import MEAN, STD
from prompt_iml.engine.network.stems import PatchEmbedding
from prompt_iml.engine.network.swin import Swin
from prompt_iml.pipeline.forgery.photos import Photo, load_pixels, split

SIDE, BATCH = 256, 8
LEARNING_RATE, DECAY, CLIP = 2e-3, 0.05, 2.0
HELD_BACK = 48  # crops to evaluate on
REPORT_STEPS = 100
MIXED = 0.5  # share of the crops that are blended with another one


def semantic_branch(config: SwinConfig) -> Swin:
    """Return a semantic branch with random weights, as in the network, without prompts."""
    return Swin(config, PatchEmbedding(config.channels, config.patch, config.position_grid))


def normalised(image_BHW3: Tensor) -> Tensor:
    """Normalise RGB (B, H, W, 3) in 0..255 as the network does; returns (B, 3, H, W)."""
    return ((image_BHW3 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def pretrain(
    network: nn.Module,
    losses: Callable[[Tensor], list[Tensor]],
    photos: Sequence[Photo],
    samples: int,
    seed: int,
) -> None:
    """Train a network on crops; print samples seen, the loss, and the losses of held-back crops.

    Args:
        network: trained in place.
        losses: returns a loss for each map of RGB (B, 256, 256, 3) in 0..255; their mean is
            minimised.
        photos: to train on, and, where `pipeline.forgery.photos` holds them back, to evaluate on.
        samples: number of crops.
        seed: of the crops.
    """
    training, validation = split(photos)
    optimiser = torch.optim.AdamW(weight_decay_groups(network, DECAY), betas=(0.9, 0.98))
    held_back = torch.from_numpy(next(crops(validation, HELD_BACK, np.random.default_rng(seed))))
    rng = np.random.default_rng(seed + 1)
    stream = crops(training, BATCH, rng)
    steps = samples // BATCH
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step / steps, LEARNING_RATE)
        image_BHW3 = torch.from_numpy(varied(next(stream), rng))
        with precision("cpu"):
            loss = torch.stack(losses(image_BHW3)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        if step % REPORT_STEPS == REPORT_STEPS - 1 or step == steps - 1:
            with torch.no_grad():
                held_back_losses = [round(each.item(), 4) for each in losses(held_back)]
            print(f"{(step + 1) * BATCH} {loss:.4f} {held_back_losses}", flush=True)


def crops(
    photos: Sequence[Photo], batch: int, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Yield endless batches of crops, (B, 256, 256, 3), at native size or shrunk, some flipped."""
    cached = [load_pixels(photo) for photo in photos]
    while True:
        yield np.stack([_crop(cached[i], rng) for i in rng.integers(len(cached), size=batch)])


def varied(crops_BHW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change tones and colours of crops, and blend some with one another.

    There are few photographs, and a teacher answers for any picture: so the student sees many more
    (function matching: Beyer et al., arXiv 2106.05237).
    """
    toned_BHW3 = np.stack([_toned(crop, rng) for crop in crops_BHW3])
    count = len(toned_BHW3)
    share_B = np.where(rng.random(count) < MIXED, rng.uniform(0, 0.5, count), 0)
    share_B111 = share_B.astype(np.float32)[:, None, None, None]
    mixed_BHW3 = toned_BHW3 + share_B111 * (toned_BHW3[::-1].astype(np.float32) - toned_BHW3)
    return np.rint(mixed_BHW3).astype(np.uint8)


def _toned(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply a random tone curve to each channel."""
    gamma, gain = np.exp(rng.normal(0, 0.2)), np.exp(rng.normal(0, 0.1, 3))
    curve = 255 * (np.arange(256) / 255) ** gamma
    curves = np.rint(np.clip(curve[:, None] * gain, 0, 255)).astype(np.uint8)
    toned: NDArray[np.uint8] = curves[pixels, np.arange(3)]
    return toned


def _crop(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random crop, (256, 256, 3); some are shrunk, to show whole objects."""
    shortest = min(pixels.shape[:2])
    box = int(rng.uniform(SIDE, max(SIDE + 1, shortest)))
    box = min(box, shortest) if rng.random() < 0.7 else min(SIDE, shortest)
    y, x = (int(rng.integers(size - box + 1)) for size in pixels.shape[:2])
    patch = Image.fromarray(pixels[y : y + box, x : x + box])
    if box != SIDE:
        patch = patch.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    out = np.asarray(patch)
    return out[:, ::-1] if rng.random() < 0.5 else out
