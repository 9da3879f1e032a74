"""How a network does on examples whose truth is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from prompt_iml.engine.network.model import PromptIML
from prompt_iml.pipeline.evaluation.comparison import MASKED_FRACTION, auc, f1_and_iou
from prompt_iml.pipeline.evaluation.metrics import mean
from prompt_iml.pipeline.forgery.generator import Example
from prompt_iml.pipeline.forgery.history import SIDE

BATCH = 16


@dataclass(frozen=True, slots=True)
class Judgement:
    """How held-back examples are judged; a mean over no examples is nan.

    Attributes:
        examples: how many.
        f1: mean pixel F1 at logit 0 over the forged.
        pixel_auc: over all pixels of the forged, pooled.
        score_auc: of the image score.
        flagged: share of the authentic with more than 0.5 % of their pixels above logit 0.
    """

    examples: int
    f1: float
    pixel_auc: float
    score_auc: float
    flagged: float


@torch.no_grad()
def judge(network: PromptIML, examples: Sequence[Example]) -> dict[str, Judgement]:
    """Judge a network on examples: `all`, by kind, and with and without a table."""
    found = [
        one
        for start in range(0, len(examples), BATCH)
        for one in _find(network, examples[start : start + BATCH])
    ]
    groups: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        table = "table" if one.example.qtable.max() > 1 else "no table"
        for name in ("all", one.example.kind, table):
            groups[name].append(one)
    return {name: _judgement(group) for name, group in sorted(groups.items())}


@dataclass(frozen=True, slots=True)
class Found:
    """What the network says of an example: (256, 256) mask logits, and the score logit."""

    example: Example
    mask: NDArray[np.float32]
    score: float


def _find(network: PromptIML, examples: Sequence[Example]) -> list[Found]:
    device = next(network.parameters()).device
    images = torch.from_numpy(np.stack([example.pixels for example in examples]))
    qtables = torch.from_numpy(np.stack([example.qtable for example in examples]))
    mask_BHW, score_B = network(images.to(device), qtables.to(device))
    mask_B1HW = functional.interpolate(mask_BHW[:, None], (SIDE, SIDE), mode="bilinear")
    answers = zip(examples, mask_B1HW[:, 0].cpu().numpy(), score_B.tolist(), strict=True)
    return [Found(example, mask, score) for example, mask, score in answers]


def _judgement(found: Sequence[Found]) -> Judgement:
    forged = [one for one in found if one.example.mask.any()]
    authentic = [one for one in found if not one.example.mask.any()]
    # one pixel in 16: as many as the network predicts
    pixels = np.array([one.mask[::4, ::4] for one in forged])
    truth = np.array([one.example.mask[::4, ::4] for one in forged], bool)
    return Judgement(
        examples=len(found),
        f1=mean([f1_and_iou(one.mask > 0, one.example.mask)[0] for one in forged]),
        pixel_auc=auc(pixels.ravel(), truth.ravel()),
        score_auc=auc(
            np.array([one.score for one in found]),
            np.array([one.example.mask.any() for one in found]),
        ),
        flagged=mean([float((one.mask > 0).mean() > MASKED_FRACTION) for one in authentic]),
    )
