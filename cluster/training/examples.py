"""Training examples through Ray Data: numbers in, forged and authentic images out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.pipeline.forgery.generator import Example, Generator
from prompt_iml.pipeline.forgery.photos import list_photos, split

Columns = dict[str, NDArray[np.generic]]

LABELLED_SHARE = 0.25  # of the examples, where reviewers' labels are mixed in
# Elastic training takes every CPU there is, and would wait for ever for examples that need one of
# their own: so its processes ask for a thousandth less than they use, and generators for that.
GENERATOR_CPUS = 0.001
TRAINING_CPUS = 1 - GENERATOR_CPUS
GENERATORS_PER_GPU = 8  # each makes some 40 examples a second
BLOCK = 64  # examples: 17 MB
PAUSE = 0.05  # seconds
NUMBER = "number"
BATCH = 16


class Examples(Protocol):
    """Where an example comes from: the same seed gives the same one."""

    def example(self, *seed: int) -> Example: ...


class GeneratedExamples:
    """A `Generator` as Ray Data calls it: a batch of numbers in, their examples out.

    Example `i` of a seed is always the same, whoever makes it and in whatever order.
    """

    def __init__(self, photos: str, labels: str | None, seed: int) -> None:
        self._generator = Generator.read(split(list_photos(Path(photos)))[0])
        self._labelled = _labelled(labels) if labels else None
        self._seed = seed

    def __call__(self, batch: Columns) -> Columns:
        """number (N,) -> image (N, 256, 256, 3) uint8, qtable (N, 64) float32 and mask
        (N, 256, 256) bool."""
        made = [self.example(int(number)) for number in batch[NUMBER]]
        return {
            "image": np.stack([example.pixels for example in made]),
            "qtable": np.stack([example.qtable for example in made]),
            "mask": np.stack([example.mask for example in made]),
        }

    def example(self, number: int) -> Example:
        """Made, or a reviewer's; turned at random."""
        rng = np.random.default_rng((self._seed, number, 1))
        source: Examples = self._generator
        if self._labelled and rng.random() < LABELLED_SHARE:
            source = self._labelled
        return turned(source.example(self._seed, number, 0), rng)


def examples(settings: TrainSettings, first: int) -> Dataset:
    """What a run sees from example number `first` on, made while it is being read."""
    numbers = np.arange(first, settings.samples)
    # Neither `range` nor `from_numpy`: each runs tasks that take a whole CPU.
    blocks = np.split(numbers, np.arange(BLOCK, len(numbers), BLOCK))
    tables = [pa.table({NUMBER: block}) for block in blocks]
    made: Dataset = ray.data.from_blocks(tables).map_batches(
        GeneratedExamples,
        fn_constructor_args=(settings.photos, settings.labels, settings.seed),
        batch_size=BATCH,
        num_cpus=1.0 if settings.gpus else GENERATOR_CPUS,
        compute=ActorPoolStrategy(min_size=1, max_size=_generators(settings)),
    )
    made.context.custom_execution_callback_classes = [Paced]
    return made


class Paced(ExecutionCallback):
    """Ray Data's scheduler, while all that was made waits to be read, asks again at once and takes
    40 % of a core from training (Ray 2.60, measured): so it rests between two rounds."""

    def on_execution_step(self, executor: object) -> None:
        """After every round."""
        time.sleep(PAUSE)


def _generators(settings: TrainSettings) -> int:
    """Return how many generators keep up with the training processes."""
    processes = settings.max_workers or settings.workers
    return processes * GENERATORS_PER_GPU if settings.gpus else max(1, processes // 4)


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


def _labelled(uri: str) -> Examples:
    from prompt_iml.cluster.retraining.labels import LabelledExamples

    return LabelledExamples(uri)
