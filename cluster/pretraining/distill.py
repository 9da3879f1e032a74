"""Distil the frozen semantic branch of the default model from a MobileNetV2.

    python -m prompt_iml.cluster.pretraining.distill --photos DIR --teacher FILE \
        --output FILE --samples 40000

The student is the preset's Swin without prompts. Each of its layers predicts the standardised
features of the teacher at the same stride through a linear head, which is not kept. The Swin's
weights are written under their official names.

Letters: B images, H W rows and columns, C channels, s stride.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.cluster.pretraining.pretrain import normalised, pretrain, semantic_branch
from prompt_iml.engine.network.config import PRESETS, SwinConfig
from prompt_iml.engine.network.swin import Swin
from prompt_iml.pipeline.forgery.photos import Photo, list_photos

# MobileNetV2 1.0: stride of each block, and the block whose output is the feature map of a stride.
STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
TAPS = {4: 2, 8: 5, 16: 12, 32: 16}  # stride: last block
CHANNELS = {4: 24, 8: 32, 16: 96, 32: 320, 64: 320}


class Student(nn.Module):
    """A semantic branch, and a linear head for each of its maps that predicts the teacher's."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.swin = semantic_branch(config)
        self.heads = nn.ModuleList(
            nn.Linear(c, CHANNELS[stride])
            for c, stride in zip(config.stage_channels, config.strides, strict=True)
        )

    def forward(self, image_BHW3: Tensor) -> list[Tensor]:
        """Predict the teacher's maps, (B, H/s, W/s, C), from RGB (B, H, W, 3) in 0..255."""
        maps_BHWC = self.swin(normalised(image_BHW3))
        return [head(x) for head, x in zip(self.heads, maps_BHWC, strict=True)]


def teacher_features(
    weights: Mapping[str, Tensor], image_BHW3: Tensor, strides: Sequence[int] = (4, 8, 16, 32)
) -> list[Tensor]:
    """Return MobileNetV2's maps, (B, H/s, W/s, C), at each of `strides`.

    MobileNetV2 has no map at stride 64; that one is the mean of 2 x 2 values at stride 32.

    Args:
        weights: with batch norm folded: `stem`, `blocks.0..16.{expand,dw,project}`.
        image_BHW3: RGB, 0..255.
        strides: some of 4, 8, 16, 32 and 64.
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
    """Convolve with TensorFlow's SAME padding: stride 2 pads even sides only right and bottom."""
    kernel = weights[f"{name}.weight"]
    around = kernel.shape[2] // 2
    if stride == 2:
        x, around = functional.pad(x, (0, around, 0, around)), 0
    return functional.conv2d(x, kernel, weights[f"{name}.bias"], stride, around, groups=groups)


def unexplained_variance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
    """Return the share of the variance of each teacher's map that the student does not explain."""
    return [
        functional.mse_loss(predicted, standardised(map_BHWC))
        for predicted, map_BHWC in zip(student, teacher, strict=True)
    ]


def standardised(map_BHWC: Tensor) -> Tensor:
    """Scale each channel to mean 0 and variance 1 over the batch."""
    return functional.layer_norm(map_BHWC.flatten(0, 2).T, [map_BHWC[..., 0].numel()]).T.reshape(
        map_BHWC.shape
    )


def distil(
    config: SwinConfig,
    photos: Sequence[Photo],
    teacher: Mapping[str, Tensor],
    samples: int,
    start: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Swin:
    """Train a semantic branch on `samples` crops; print its losses.

    Args:
        config: of the branch.
        photos: to train and to evaluate on.
        teacher: weights, as for `teacher_features`.
        samples: number of crops.
        start: weights of the branch to start from; without them, random weights.
        seed: of the weights and the crops.
    """
    torch.manual_seed(seed)
    student = Student(config)
    if start is not None:
        student.swin.load_state_dict(start)

    def losses(image_BHW3: Tensor) -> list[Tensor]:
        with torch.no_grad():
            target = teacher_features(teacher, image_BHW3, config.strides)
        return unexplained_variance(student(image_BHW3), target)

    pretrain(student, losses, photos, samples, seed)
    return student.swin


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights of an earlier run to start from")
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
