"""Benchmark of the context: what the packaged network finds when parts of its inputs are withheld.

    python -m tests.bench.withheld --photos DIR [--negatives DIR] [--autoencoders DIR]

The same held-back examples are shown with the context of their picture, with the histogram of the
tile alone in place of the picture's, without the matches, and with neither. The network was trained
with both, so a loss says how much it relies on an input, and not what it would find had it been
trained without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders
from prompt_iml.cluster.training.evaluate import evaluate
from prompt_iml.engine.detection.context import Context, picture_context
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.torch_cpu import load_network
from prompt_iml.pipeline.forgery.generator import Example, Generator
from prompt_iml.pipeline.forgery.photos import list_photos, split

SEED, STREAM = 99, 3
GROUPS = ("all", "splice", "copy-move", "table", "no table")


def as_it_is(example: Example) -> Context:
    """Return the context of the picture."""
    return example.context


def without_histogram(example: Example) -> Context:
    """Return it with the histogram of the tile."""
    tile = picture_context(example.pixels, example.qtable)
    return Context(tile.histogram, example.context.matches)


def without_matches(example: Example) -> Context:
    """Return it as of a picture that repeats nothing."""
    return Context(example.context.histogram, np.zeros_like(example.context.matches))


def without_either(example: Example) -> Context:
    """Return what the tile alone tells."""
    return Context(without_histogram(example).histogram, without_matches(example).matches)


SHOWN: dict[str, Callable[[Example], Context]] = {
    "context of the picture": as_it_is,
    "the tile's own histogram": without_histogram,
    "no matches": without_matches,
    "neither": without_either,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--negatives", type=Path)
    parser.add_argument("--autoencoders")
    parser.add_argument("--examples", type=int, default=320)
    args = parser.parse_args()
    torch.set_num_threads(1)
    held_back = split(list_photos(args.photos, args.negatives))[1]
    generator = Generator.read(held_back, read_autoencoders(args.autoencoders, held_back=True))
    examples = [generator.example(SEED, number, STREAM) for number in range(args.examples)]
    network = load_network(load_model("prompt-iml-micro"))
    for name, context in SHOWN.items():
        found = evaluate(network, [replace(each, context=context(each)) for each in examples])
        f1 = "  ".join(f"{group} {found[group].f1:.3f}" for group in GROUPS)
        print(f"{name:26} F1 {f1}  image AUC {found['all'].score_auc:.3f}", flush=True)


if __name__ == "__main__":
    main()
