"""Examples as batches of tensors, augmented."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cluster.forgery import Example, Forger
from cluster.history import SIDE

BATCH_PIXELS = 8 * 128**2


class TrainingExamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Example `i` of a seed, augmented: image (S, S, 3), table (64,), mask (S, S).

    Args:
        forger: makes them.
        seed: of the run.
        side: S, at most 256; smaller windows keep the 8x8 grid.
        first: number of the first one; what was seen before a checkpoint is not seen again.
    """

    def __init__(self, forger: Forger, seed: int, side: int, first: int) -> None:
        self.forger, self.seed, self.side, self.first = forger, seed, side, first

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        number = self.first + index
        rng = np.random.default_rng((self.seed, number, 1))
        example = window(self.forger.example(self.seed, number, 0), self.side, rng)
        return as_tensors(turned(example, rng))


def window(example: Example, side: int, rng: np.random.Generator) -> Example:
    """A part of an example on its 8x8 grid; of four, the one with most to tell apart."""
    if side == SIDE:
        return example
    corners = 8 * rng.integers(0, (SIDE - side) // 8 + 1, (4, 2))
    parts = [(slice(y, y + side), slice(x, x + side)) for y, x in corners]
    share = [float(example.mask[part].mean()) for part in parts]
    best = parts[int(np.argmax([s * (1 - s) for s in share]))]
    return Example(example.pixels[best], example.qtable, example.mask[best], example.kind)


def turned(example: Example, rng: np.random.Generator) -> Example:
    """Flipped and transposed at random; a transposed image has a transposed table."""
    pixels, mask, qtable = example.pixels, example.mask, example.qtable
    across, down, transposed = rng.random(3) < 0.5
    if across:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    if down:
        pixels, mask = pixels[::-1], mask[::-1]
    if transposed:
        pixels, mask = pixels.swapaxes(0, 1), mask.T
        qtable = qtable.reshape(8, 8).T.reshape(64)
    return Example(pixels, qtable, mask, example.kind)


def as_tensors(example: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Image uint8, table float32 and mask bool."""
    arrays = example.pixels, example.qtable, example.mask
    image, qtable, mask = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    return image, qtable, mask


def batches(
    forger: Forger, seed: int, side: int, first: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of equally many pixels, made by one process beside this one."""
    examples = TrainingExamples(forger, seed, side, first)
    return iter(DataLoader(examples, max(1, BATCH_PIXELS // side**2), num_workers=1))
