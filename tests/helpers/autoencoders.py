"""A folder of untrained autoencoders, one to train with and one that is held back."""

from __future__ import annotations

from pathlib import Path

import torch

from prompt_iml.cluster.pretraining.autoencoder import HELD_BACK, Autoencoder, Sizes


def write_autoencoders(folder: Path) -> Path:
    """Write two small autoencoders with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    Autoencoder(Sizes(("nearest", "shuffle"), 8, 4)).save(folder / "small.safetensors")
    held_back = Autoencoder(Sizes(("transposed",) * 3, 8, 4))
    held_back.save(folder / f"{HELD_BACK}small.safetensors")
    return folder
