"""The frozen semantic branch of the embedded default, distilled from a MobileNetV2.

    python -m cluster.distill --photos DIR --teacher FILE --output FILE --samples 40000

The student is the preset's Swin without prompts; each of its layers predicts, through a linear
head that is thrown away, the standardised features of the teacher at the same stride. Writes
the Swin's weights under their official names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cluster.photos import Photo, list_photos, load_pixels, split
from cluster.schedule import learning_rate, weight_decay_groups
from engine.config import PRESETS, SwinConfig
from engine.network.model import MEAN, STD
from engine.network.stems import PatchEmbedding
from engine.network.swin import Swin

# MobileNetV2 1.0: stride of each block, and what is taken as its features at a stride
STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
TAPS = {4: 2, 8: 5, 16: 12, 32: 16}  # stride: last block
CHANNELS = {4: 24, 8: 32, 16: 96, 32: 320, 64: 320}


class Student(nn.Module):
    """A semantic branch and the heads that speak the teacher's language."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.swin = Swin(
            config, PatchEmbedding(config.channels, config.patch, config.position_grid)
        )
        self.heads = nn.ModuleList(
            nn.Linear(c, CHANNELS[stride])
            for c, stride in zip(config.stage_channels, config.strides, strict=True)
        )

    def forward(self, image_BHW3: Tensor) -> list[Tensor]:
        """(B, H, W, 3) RGB, 0..255 -> (B, H/s, W/s, C of the teacher) at the branch's strides."""
        normal = (image_BHW3 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        maps_BHWC = self.swin(normal.permute(0, 3, 1, 2))
        return [head(x) for head, x in zip(self.heads, maps_BHWC, strict=True)]


def teacher_features(
    weights: Mapping[str, Tensor], image_BHW3: Tensor, strides: Sequence[int] = (4, 8, 16, 32)
) -> list[Tensor]:
    """MobileNetV2's maps (B, H/s, W/s, C) at `strides`, from RGB 0..255.

    It has none at stride 64: that is the mean of four at 32.
    `weights` have batch norm folded: `stem`, `blocks.0..16.{expand,dw,project}`.
    """
    x = _relu6(weights, "stem", image_BHW3.permute(0, 3, 1, 2) / 127.5 - 1, 2)
    taps = {}
    for index, stride in enumerate(STRIDES):
        block = f"blocks.{index}"
        y = _relu6(weights, f"{block}.expand", x) if index else x
        y = _relu6(weights, f"{block}.dw", y, stride, groups=y.shape[1])
        y = _conv(weights, f"{block}.project", y)
        x = x + y if y.shape == x.shape else y
        taps[index] = x
    maps = {stride: taps[block] for stride, block in TAPS.items()}
    maps[64] = functional.avg_pool2d(maps[32], 2)
    return [maps[stride].permute(0, 2, 3, 1) for stride in strides]


def _relu6(
    weights: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1, groups: int = 1
) -> Tensor:
    return functional.relu6(_conv(weights, name, x, stride, groups))


def _conv(
    weights: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1, groups: int = 1
) -> Tensor:
    """TensorFlow's SAME padding: on an even side, stride 2 pads only right and bottom."""
    kernel = weights[f"{name}.weight"]
    around = kernel.shape[2] // 2
    if stride == 2:
        x, around = functional.pad(x, (0, around, 0, around)), 0
    return functional.conv2d(x, kernel, weights[f"{name}.bias"], stride, around, groups=groups)


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Share of the teacher's variance that the student does not explain, mean over the maps."""
    losses = [
        functional.mse_loss(mine, standardised(his))
        for mine, his in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).mean()


def standardised(map_BHWC: Tensor) -> Tensor:
    """Each channel to mean 0 and variance 1 over the batch."""
    return functional.layer_norm(map_BHWC.flatten(0, 2).T, [map_BHWC[..., 0].numel()]).T.reshape(
        map_BHWC.shape
    )


def crops(
    photos: Sequence[Photo], side: int, batch: int, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Endless batches (N, side, side, 3) at native size or shrunk, flipped at random."""
    cached = [load_pixels(photo) for photo in photos]
    while True:
        yield np.stack([_crop(cached[i], side, rng) for i in rng.integers(len(cached), size=batch)])


def _crop(pixels: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shrinking lets a crop show whole objects, as most pictures do that people post."""
    shortest = min(pixels.shape[:2])
    box = int(rng.uniform(side, max(side + 1, shortest)))
    box = min(box, shortest) if rng.random() < 0.7 else min(side, shortest)
    y, x = (int(rng.integers(size - box + 1)) for size in pixels.shape[:2])
    patch = Image.fromarray(pixels[y : y + box, x : x + box])
    if box != side:
        patch = patch.resize((side, side), Image.Resampling.BILINEAR)
    out = np.asarray(patch)
    return out[:, ::-1] if rng.random() < 0.5 else out


def distil(
    config: SwinConfig,
    photos: Sequence[Photo],
    teacher: Mapping[str, Tensor],
    samples: int,
    start: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    batch: int = 8,
    side: int = 256,
) -> Swin:
    """Train a semantic branch on `samples` crops, from `start` if given; prints the losses."""
    torch.manual_seed(seed)
    train, validation = split(photos)
    student = Student(config)
    if start is not None:
        student.swin.load_state_dict(start)
    optimiser = torch.optim.AdamW(weight_decay_groups(student, 0.05), betas=(0.9, 0.98))
    held_back = torch.from_numpy(next(crops(validation, side, 48, np.random.default_rng(seed))))
    stream = crops(train, side, batch, np.random.default_rng(seed + 1))
    for step in range(samples // batch):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step * batch / samples, peak=2e-3)
        image_BHW3 = torch.from_numpy(next(stream))
        with torch.no_grad():
            target = teacher_features(teacher, image_BHW3, config.strides)
        loss = distillation_loss(student(image_BHW3), target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        optimiser.step()
        if step % 100 == 99 or step == samples // batch - 1:
            unexplained = _held_back(student, teacher, held_back, config.strides)
            print(f"{(step + 1) * batch} {loss:.4f} {unexplained}", flush=True)
    return student.swin


@torch.no_grad()
def _held_back(
    student: Student,
    teacher: Mapping[str, Tensor],
    image_BHW3: Tensor,
    strides: Sequence[int],
) -> list[float]:
    """Unexplained share of each map, on photographs held back."""
    pairs = zip(student(image_BHW3), teacher_features(teacher, image_BHW3, strides), strict=True)
    return [round(functional.mse_loss(mine, standardised(his)).item(), 4) for mine, his in pairs]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="go on from the weights of an earlier run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="prompt-iml-micro")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = {name: tensor.float() for name, tensor in load_file(args.teacher).items()}
    swin = distil(
        PRESETS[args.preset].swin,
        list_photos(args.photos),
        teacher,
        args.samples,
        start=load_file(args.start) if args.start else None,
        seed=args.seed,
    )
    save_file(swin.state_dict(), args.output)


if __name__ == "__main__":
    main()
