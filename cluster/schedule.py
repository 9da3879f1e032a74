"""What every optimisation here shares: the learning rate, and what weight decay spares."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def learning_rate(
    progress: float, peak: float, warm_up: float = 0.05, floor: float = 0.01
) -> float:
    """Linear warm-up, then cosine to `floor * peak`; `progress` is 0..1 of the whole run."""
    if progress < warm_up:
        return peak * max(progress / warm_up, floor)
    cosine = (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2
    return peak * (floor + (1 - floor) * cosine)


def weight_decay_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of what trains: the weights of linear layers and convolutions decay.

    Spared are biases, norms, gates, prompts, queries, embeddings, position-bias tables and the
    constrained kernels.
    """
    matrices = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    training = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in training if id(p) in matrices], "weight_decay": decay},
        {"params": [p for p in training if id(p) not in matrices], "weight_decay": 0.0},
    ]
