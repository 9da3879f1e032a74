"""Training examples, made by Ray Data.

Input: numbers of examples. Output: forged and authentic images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

from prompt_iml.cluster.settings import TrainingFlags, TrainSettings
from prompt_iml.engine.detection.context import COEFFICIENTS, Context
from prompt_iml.engine.network.beyond.dct import zigzag
from prompt_iml.pipeline.forgery.generator import Example, Generator
from prompt_iml.pipeline.forgery.photos import Photo, list_photos, split
from prompt_iml.pipeline.storage.s3 import SIGNED, Access, use

if TYPE_CHECKING:  # imported late: PyTorch
    from prompt_iml.cluster.pretraining.autoencoder import Autoencoder

Columns = dict[str, NDArray[np.generic]]

LABELLED_SHARE = 0.25  # share of labelled images among the examples of a run with labels
# Elastic training takes all CPUs, and generators that need a CPU would wait for ever. So a training
# process asks for a thousandth of a CPU less than it uses, and a generator for that thousandth.
GENERATOR_CPUS = 0.001
TRAINING_CPUS = 1 - GENERATOR_CPUS
GENERATORS_PER_GPU = 8  # a generator makes some 40 examples a second
BLOCK = 64  # examples, 17 MB in all
PAUSE = 0.05  # seconds
NUMBER = "number"
BATCH = 16


class Examples(Protocol):
    """Source of examples; the same seed gives the same example."""

    def example(self, *seed: int) -> Example: ...


class GeneratedExamples:
    """A `Generator` for `Dataset.map_batches`, with labelled images mixed in.

    Example `i` of a seed is always the same, in any process and any order.

    Args:
        photos: authentic pictures to train on.
        labels: URI of a labels file, or None.
        seed: of all examples.
        autoencoders: folder of autoencoders for generated regions, or None.
        access: access to the labels and their images.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        labels: str | None,
        seed: int,
        autoencoders: str | None = None,
        access: Access = SIGNED,
    ) -> None:
        use(access)
        self._generator = Generator.read(photos, _autoencoders(autoencoders))
        self._labelled = _labelled(labels) if labels else None
        self._seed = seed

    def __call__(self, batch: Columns) -> Columns:
        """Make the examples of a batch of numbers, (N,).

        Returns:
            `image` (N, 256, 256, 3) uint8, `qtable` (N, 64) float32, `histogram` and `matches` as
            in `engine.runtimes.protocol.Batch`, `mask` (N, 256, 256) bool.
        """
        made = [self.example(int(number)) for number in batch[NUMBER]]
        return {
            "image": np.stack([example.pixels for example in made]),
            "qtable": np.stack([example.qtable for example in made]),
            "histogram": np.stack([example.context.histogram for example in made]),
            "matches": np.stack([example.context.matches for example in made]),
            "mask": np.stack([example.mask for example in made]),
        }

    def example(self, number: int) -> Example:
        """Return a generated or a labelled example, flipped and transposed at random."""
        rng = np.random.default_rng((self._seed, number, 1))
        source: Examples = self._generator
        if self._labelled and rng.random() < LABELLED_SHARE:
            source = self._labelled
        return augmented(source.example(self._seed, number, 0), rng)


def examples(settings: TrainSettings, first: int) -> Dataset:
    """Return the examples of a run from number `first` on, made while they are read."""
    numbers = np.arange(first, settings.samples)
    # Neither `range` nor `from_numpy`: each runs tasks that take a whole CPU.
    blocks = np.split(numbers, np.arange(BLOCK, len(numbers), BLOCK))
    tables = [pa.table({NUMBER: block}) for block in blocks]
    made: Dataset = ray.data.from_blocks(tables).map_batches(
        GeneratedExamples,
        fn_constructor_args=(
            training_photos(settings)[0],
            settings.labels,
            settings.seed,
            settings.autoencoders,
            settings.access,
        ),
        batch_size=BATCH,
        num_cpus=1.0 if settings.gpus else GENERATOR_CPUS,
        compute=ActorPoolStrategy(min_size=1, max_size=_generators(settings)),
    )
    made.context.custom_execution_callback_classes = [Paced]
    return made


class Paced(ExecutionCallback):
    """Pause between two rounds of Ray Data's scheduler.

    While all finished examples wait to be read, the scheduler polls without a pause and takes 40 %
    of a core from training (measured with Ray 2.60).
    """

    def on_execution_step(self, executor: object) -> None:
        """Sleep after a round."""
        time.sleep(PAUSE)


def training_photos(settings: TrainingFlags) -> tuple[list[Photo], list[Photo]]:
    """Return the authentic pictures of a run: those to train on, and those that are held back.

    Raises:
        FileNotFoundError: a folder's list of pictures is not there.
    """
    negatives = Path(settings.negatives) if settings.negatives else None
    return split(list_photos(Path(settings.photos), negatives))


def held_back_generator(settings: TrainingFlags) -> Generator:
    """Return a generator over what a run does not train on: photographs and autoencoders.

    Raises:
        FileNotFoundError, UsageError: as `training_photos` and `read_autoencoders` do.
    """
    autoencoders = _autoencoders(settings.autoencoders, held_back=True)
    return Generator.read(training_photos(settings)[1], autoencoders)


def _autoencoders(folder: str | None, held_back: bool = False) -> list[Autoencoder]:
    """Return the autoencoders of a folder, as `read_autoencoders` does.

    Without a folder a generator needs no PyTorch, which takes a second and 200 MB in each of them.
    """
    if folder is None:
        return []
    from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders

    return read_autoencoders(folder, held_back)


def _generators(settings: TrainSettings) -> int:
    """Return the number of generators that keep up with the training processes."""
    processes = settings.max_workers or settings.workers
    return processes * GENERATORS_PER_GPU if settings.gpus else max(1, processes // 4)


def augmented(example: Example, rng: np.random.Generator) -> Example:
    """Flip and transpose an example at random, with its quantisation table and its context."""
    pixels, mask, qtable = example.pixels, example.mask, example.qtable
    histogram, matches = example.context.histogram, example.context.matches
    across, down, transposed = rng.random(3) < 0.5
    if across:
        pixels, mask, matches = pixels[:, ::-1], mask[:, ::-1], matches[:, :, ::-1]
    if down:
        pixels, mask, matches = pixels[::-1], mask[::-1], matches[:, ::-1]
    if transposed:
        pixels, mask, matches = pixels.swapaxes(0, 1), mask.T, matches.swapaxes(1, 2)
        qtable = qtable.reshape(8, 8).T.reshape(64)
        histogram = histogram[_TRANSPOSED]
    return Example(pixels, qtable, mask, example.kind, Context(histogram, matches))


def _transposed_coefficients() -> list[int]:
    """Return the place among the histogram's coefficients of each one's transposed one."""
    order = zigzag()[1 : COEFFICIENTS + 1]
    return [order.index(natural % 8 * 8 + natural // 8) for natural in order]


_TRANSPOSED = _transposed_coefficients()


def _labelled(uri: str) -> Examples:
    from prompt_iml.cluster.retraining.labels import LabelledExamples

    return LabelledExamples(uri)
