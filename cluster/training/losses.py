"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

POSITIVE_WEIGHT = 4.0  # forged pixels are few
DICE_WEIGHT = 0.5
SCORE_WEIGHT = 0.5
LIKENESS_WEIGHT = 0.1


def training_loss(masks_BHW: Sequence[Tensor], score_B: Tensor, target_BHW: Tensor) -> Tensor:
    """Every mask the decoder predicts, each alike, and the image score.

    Args:
        masks_BHW: mask logits, at 1/4 of the target's size.
        score_B: score logits; an image is forged if any pixel of it is.
        target_BHW: bool, True where forged.
    """
    share_BHW = functional.avg_pool2d(target_BHW.float(), 4)
    forged_B = target_BHW.flatten(1).any(1)
    masks = torch.stack([mask_loss(mask, share_BHW, forged_B) for mask in masks_BHW]).mean()
    return masks + SCORE_WEIGHT * score_loss(score_B, forged_B)


def score_loss(score_B: Tensor, forged_B: Tensor) -> Tensor:
    """Cross-entropy, and the variance of the authentic scores.

    A picture saved twice shows that all of it was, one saved once shows nothing: cross-entropy
    gives the first a lower score. That is right of our examples, whose histories say nothing about
    the label, and wrong of an archive where the authentic were saved once and the forged again. So
    authentic scores shall be alike, and only a trace of a forgery raise one.

    Args:
        score_B: logits.
        forged_B: bool.
    """
    entropy = functional.binary_cross_entropy_with_logits(score_B, forged_B.float())
    authentic = score_B.float()[~forged_B]
    if len(authentic) < 2:
        return entropy
    return entropy + LIKENESS_WEIGHT * authentic.var()


def mask_loss(mask_BHW: Tensor, share_BHW: Tensor, forged_B: Tensor) -> Tensor:
    """Weighted pixel cross-entropy, and dice on the forged images.

    Args:
        mask_BHW: logits.
        share_BHW: how much of each pixel is forged, 0..1.
        forged_B: bool.
    """
    weight = torch.tensor(POSITIVE_WEIGHT, device=mask_BHW.device)
    pixels = functional.binary_cross_entropy_with_logits(mask_BHW, share_BHW, pos_weight=weight)
    dice_B = 1 - soft_dice(mask_BHW.sigmoid(), share_BHW)
    forged_B = forged_B.to(dice_B.dtype)
    return pixels + DICE_WEIGHT * (dice_B * forged_B).sum() / forged_B.sum().clamp(min=1)


def soft_dice(probability_BHW: Tensor, share_BHW: Tensor) -> Tensor:
    """(B,) overlap 0..1; 1 where both are empty."""
    both_B = (probability_BHW * share_BHW).flatten(1).sum(1)
    sum_B = (probability_BHW + share_BHW).flatten(1).sum(1)
    return (2 * both_B + 1) / (sum_B + 1)
