"""What the ways to a semantic branch share: crops of photographs, and the steps.

The branch is frozen from then on. `cluster.pretraining.distill` learns from a teacher,
`cluster.pretraining.masked` from the photographs alone; `cluster.training.ablation`
measures what either is worth (`--variant semantic`).
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
PEAK, DECAY, CLIP = 2e-3, 0.05, 2.0
HELD_BACK = 48  # crops
REPORT_STEPS = 100
MIXED = 0.5  # share of the crops that another one shines through


def semantic_branch(config: SwinConfig) -> Swin:
    """As it is in the network, without prompts."""
    return Swin(config, PatchEmbedding(config.channels, config.patch, config.position_grid))


def normalised(image_BHW3: Tensor) -> Tensor:
    """RGB 0..255 (B, H, W, 3) -> (B, 3, H, W), as the network gives it to the branch."""
    return ((image_BHW3 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def pretrain(
    network: nn.Module,
    losses: Callable[[Tensor], list[Tensor]],
    photos: Sequence[Photo],
    samples: int,
    seed: int,
) -> None:
    """Train on so many crops; prints samples seen, the loss, and `losses` of crops held back.

    Args:
        network: what trains.
        losses: of (N, 256, 256, 3) RGB, 0..255: one a map; their mean is the loss.
        photos: those held back by `pipeline.forgery.photos` are judged on, the others trained on.
        samples: crops in all.
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
            group["lr"] = learning_rate(step / steps, PEAK)
        image_BHW3 = torch.from_numpy(varied(next(stream), rng))
        with precision("cpu"):
            loss = torch.stack(losses(image_BHW3)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        if step % REPORT_STEPS == REPORT_STEPS - 1 or step == steps - 1:
            with torch.no_grad():
                judged = [round(each.item(), 4) for each in losses(held_back)]
            print(f"{(step + 1) * BATCH} {loss:.4f} {judged}", flush=True)


def crops(
    photos: Sequence[Photo], batch: int, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Endless batches (N, 256, 256, 3) at native size or shrunk, flipped at random."""
    cached = [load_pixels(photo) for photo in photos]
    while True:
        yield np.stack([_crop(cached[i], rng) for i in rng.integers(len(cached), size=batch)])


def varied(crops_BHW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """In other tones and colours, and mixed with one another.

    Photographs are few, and a teacher has an answer to any picture: so the student is asked about
    many more of them (function matching: Beyer et al., arXiv 2106.05237).
    """
    toned_BHW3 = np.stack([_toned(crop, rng) for crop in crops_BHW3])
    count = len(toned_BHW3)
    share_B = np.where(rng.random(count) < MIXED, rng.uniform(0, 0.5, count), 0)
    share_B111 = share_B.astype(np.float32)[:, None, None, None]
    mixed_BHW3 = toned_BHW3 + share_B111 * (toned_BHW3[::-1].astype(np.float32) - toned_BHW3)
    return np.rint(mixed_BHW3).astype(np.uint8)


def _toned(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Each channel through a curve."""
    gamma, gain = np.exp(rng.normal(0, 0.2)), np.exp(rng.normal(0, 0.1, 3))
    curve = 255 * (np.arange(256) / 255) ** gamma
    curves = np.rint(np.clip(curve[:, None] * gain, 0, 255)).astype(np.uint8)
    toned: NDArray[np.uint8] = curves[pixels, np.arange(3)]
    return toned


def _crop(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shrinking lets a crop show whole objects, as most pictures do that people post."""
    shortest = min(pixels.shape[:2])
    box = int(rng.uniform(SIDE, max(SIDE + 1, shortest)))
    box = min(box, shortest) if rng.random() < 0.7 else min(SIDE, shortest)
    y, x = (int(rng.integers(size - box + 1)) for size in pixels.shape[:2])
    patch = Image.fromarray(pixels[y : y + box, x : x + box])
    if box != SIDE:
        patch = patch.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    out = np.asarray(patch)
    return out[:, ::-1] if rng.random() < 0.5 else out
