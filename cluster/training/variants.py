"""Variants of the network for the paper's ablation (section 4.4, table 2).

The network itself has no switches. A part that a variant leaves out gets another `forward`, which
returns its input or zeros, and is no longer trained. Its parameters keep their names, so weights of
one variant can start another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from prompt_iml.cluster.settings import Variant
from prompt_iml.engine.network.fusion import Fusion
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.network.swin import Swin


def make_variant(network: PromptIML, variant: Variant) -> None:
    """Turn a network into a variant, in place."""
    if variant == "semantic":
        _leave_out_branch(network.high_frequency)
        for view in (network.jpeg_view, network.matches):
            if view is not None:
                _replace(view, lambda *_: torch.zeros(1, 1, 1, 1))
        _pass_on(network, lambda sem, hfq: (sem, hfq, sem))
    elif variant == "high_frequency":
        _leave_out_branch(network.semantic)
        network.prompts.requires_grad_(False)
        _pass_on(network, lambda sem, hfq: (sem, hfq, hfq))
    for fusion in cast("list[Fusion]", list(network.fusion)):
        if variant in ("add", "fuse"):  # without alignment: weights of zero
            _replace(fusion.channel_weights, torch.zeros_like)
            _replace(fusion.spatial_weights, lambda both: torch.zeros_like(both[..., :2]))
        if variant in ("add", "align"):  # without deformable attention, the maps are only added
            for attention in (fusion.attend_sem, fusion.attend_hfq):
                _replace(attention, lambda query, *_: torch.zeros_like(query))


def _leave_out_branch(branch: Swin) -> None:
    """Make a branch return its input, without computing anything."""
    parts = [part for layer in branch.stages() for part in (layer, layer.downsample)]
    for part in (branch.patch_embed, *parts):
        _replace(part, lambda x, *_: x)
    branch.requires_grad_(False)


def _pass_on(network: PromptIML, fusion: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
    for module in network.fusion:
        _replace(module, fusion)


def _replace(module: nn.Module, forward: Callable[..., object]) -> None:
    module.forward = forward
    module.requires_grad_(False)
