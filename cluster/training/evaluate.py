"""Evaluation of a network on examples with known masks."""

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
class Evaluation:
    """Metrics of a network on held-back examples, all 0..1; nan where there is no such example.

    Attributes:
        examples: number of examples.
        f1: mean pixel F1 of the forged examples, at logit 0.
        pixel_auc: AUC over the pooled pixels of the forged examples.
        score_auc: AUC of the image score.
        flagged: share of authentic examples with more than 0.5 % of their pixels above logit 0.
    """

    examples: int
    f1: float
    pixel_auc: float
    score_auc: float
    flagged: float


@torch.no_grad()
def evaluate(network: PromptIML, examples: Sequence[Example]) -> dict[str, Evaluation]:
    """Evaluate a network on examples.

    Returns:
        The metrics of `all` examples, of each kind, and of those with (`table`) and without
        (`no table`) a quantisation table.
    """
    results = [
        one
        for start in range(0, len(examples), BATCH)
        for one in _predict(network, examples[start : start + BATCH])
    ]
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for one in results:
        table = "table" if one.example.qtable.max() > 1 else "no table"
        for name in ("all", one.example.kind, table):
            groups[name].append(one)
    return {name: _metrics(group) for name, group in sorted(groups.items())}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction for one example: (256, 256) mask logits and the score logit."""

    example: Example
    mask: NDArray[np.float32]
    score: float


def _predict(network: PromptIML, examples: Sequence[Example]) -> list[Prediction]:
    device = next(network.parameters()).device
    columns = zip(*(each.inputs for each in examples), strict=True)
    mask_BHW, score_B = network(*(torch.from_numpy(np.stack(c)).to(device) for c in columns))
    mask_B1HW = functional.interpolate(mask_BHW[:, None], (SIDE, SIDE), mode="bilinear")
    masks = mask_B1HW[:, 0].cpu().numpy()
    return [Prediction(*each) for each in zip(examples, masks, score_B.tolist(), strict=True)]


def _metrics(predictions: Sequence[Prediction]) -> Evaluation:
    forged = [one for one in predictions if one.example.mask.any()]
    authentic = [one for one in predictions if not one.example.mask.any()]
    # One pixel in 16: the network predicts no more, the others are interpolated.
    pixels = np.array([one.mask[::4, ::4] for one in forged])
    truth = np.array([one.example.mask[::4, ::4] for one in forged], bool)
    return Evaluation(
        examples=len(predictions),
        f1=mean([f1_and_iou(one.mask > 0, one.example.mask)[0] for one in forged]),
        pixel_auc=auc(pixels.ravel(), truth.ravel()),
        score_auc=auc(
            np.array([one.score for one in predictions]),
            np.array([one.example.mask.any() for one in predictions]),
        ),
        flagged=mean([float((one.mask > 0).mean() > MASKED_FRACTION) for one in authentic]),
    )
