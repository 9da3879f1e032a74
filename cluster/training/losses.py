"""Loss functions of training. Letters: B images, H rows, W columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

POSITIVE_WEIGHT = 4.0  # because few pixels are forged
DICE_WEIGHT = 0.5
SCORE_WEIGHT = 0.5
LIKENESS_WEIGHT = 0.1


def training_loss(masks_BHW: Sequence[Tensor], score_B: Tensor, target_BHW: Tensor) -> Tensor:
    """Return the loss of a batch, a scalar: the mean over the decoder's masks, and of the score.

    Args:
        masks_BHW: mask logits of each decoder layer, at 1/4 of the target's size.
        score_B: score logits; an image is forged if any pixel of it is.
        target_BHW: bool, True where forged.
    """
    share_BHW = functional.avg_pool2d(target_BHW.float(), 4)
    forged_B = target_BHW.flatten(1).any(1)
    masks = torch.stack([mask_loss(mask, share_BHW, forged_B) for mask in masks_BHW]).mean()
    return masks + SCORE_WEIGHT * score_loss(score_B, forged_B)


def score_loss(score_B: Tensor, forged_B: Tensor) -> Tensor:
    """Return the cross-entropy of the scores plus the variance of the authentic scores.

    An image saved twice shows the same traces everywhere, an image saved once shows none; with
    cross-entropy alone the network gives the first a lower score. That is right for our examples,
    whose histories do not depend on the label, and wrong for an archive whose authentic images were
    saved once and whose forged images were saved again. So authentic scores are pulled together,
    and only a trace of a forgery raises a score.

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
    """Return the weighted pixel cross-entropy plus the dice loss of the forged images.

    Args:
        mask_BHW: logits.
        share_BHW: forged share of each pixel, 0..1.
        forged_B: bool.
    """
    weight = torch.tensor(POSITIVE_WEIGHT, device=mask_BHW.device)
    pixels = functional.binary_cross_entropy_with_logits(mask_BHW, share_BHW, pos_weight=weight)
    dice_B = 1 - soft_dice(mask_BHW.sigmoid(), share_BHW)
    forged_B = forged_B.to(dice_B.dtype)
    return pixels + DICE_WEIGHT * (dice_B * forged_B).sum() / forged_B.sum().clamp(min=1)


def soft_dice(probability_BHW: Tensor, share_BHW: Tensor) -> Tensor:
    """Return the soft dice overlap of each image, (B,) in 0..1; 1 where both masks are empty."""
    both_B = (probability_BHW * share_BHW).flatten(1).sum(1)
    sum_B = (probability_BHW + share_BHW).flatten(1).sum(1)
    return (2 * both_B + 1) / (sum_B + 1)
