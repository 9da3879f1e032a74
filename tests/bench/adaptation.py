"""Benchmark of adaptation: 200 crops of something new train the prompts, or all weights.

    python -m tests.bench.adaptation --photos DIR [--new warp] [--samples 1600]

Half of each batch are the labelled crops, the others are examples as training makes them. It prints
the results of the packaged network before and after, on held-back crops of the new thing and of
what training knows. The new thing is `warp`, a region that was pulled, pushed or turned (as by
Photoshop's Liquify), or a perturbation of every picture (`pipeline.evaluation.perturbations`), such
as dither-6.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from prompt_iml.cluster.training.evaluate import evaluate
from prompt_iml.cluster.training.examples import augmented
from prompt_iml.cluster.training.loop import Objective, Run
from prompt_iml.cluster.training.schedule import learning_rate, precision
from prompt_iml.engine.detection.context import Context, picture_context, tile_matches
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.runtimes.torch_cpu import load_network
from prompt_iml.pipeline.evaluation.perturbations import perturb
from prompt_iml.pipeline.forgery.edits import Edit
from prompt_iml.pipeline.forgery.generator import Example, Generator, Kind
from prompt_iml.pipeline.forgery.history import SIDE, Floats, PriorHistory
from prompt_iml.pipeline.forgery.photos import Scene, list_photos, split
from prompt_iml.pipeline.forgery.shapes import opacity

SEED, BATCH = 7, 16
RATES = {"prompts": 0.05, "all": 5e-4}  # what trains, and its learning rate
JUDGED, KNOWN = 200, 600  # crops to judge on, and examples of what training knows


class Warping(Generator):
    """A generator whose only manipulation is a warp."""

    def generate(
        self, kind: Kind, view: Scene, rng: np.random.Generator, prior: PriorHistory | None = None
    ) -> Edit:
        """Return the view with a region warped, unless it is authentic."""
        if kind == "authentic":
            return super().generate(kind, view, rng, prior)
        return warp(view, opacity(self._outline(view, rng), len(view.pixels), rng), rng)


def warp(view: Scene, alpha: Floats, rng: np.random.Generator) -> Edit:
    """Pull a region to its centre, push it away, or turn it; nothing moves at its border.

    Only what moves by a pixel or more is opaque.
    """
    if not alpha.any():
        return view.pixels, alpha
    place = np.indices(alpha.shape, np.float64)
    offset = place - np.array(ndimage.center_of_mass(alpha))[:, None, None]
    inside = ndimage.gaussian_filter(alpha, max(2, np.sqrt(alpha.sum()) / 8)) * (alpha > 0)
    sign = rng.choice([-1, 1])
    if rng.random() < 0.5:
        moved = offset * sign * rng.uniform(0.15, 0.5) * inside
    else:
        angle = sign * rng.uniform(0.3, 0.8) * inside
        turned = np.stack([offset[1], -offset[0]])
        moved = offset * (np.cos(angle) - 1) + turned * np.sin(angle)
    planes = [
        ndimage.map_coordinates(plane, place + moved, order=3, mode="nearest")
        for plane in np.moveaxis(view.pixels.astype(np.float64), 2, 0)
    ]
    pixels = np.where((alpha > 0)[..., None], np.stack(planes, 2), view.pixels)
    opaque = alpha * (np.hypot(*moved) >= 1)
    return pixels.clip(0, 255).round().astype(np.uint8), opaque


def crops(generator: Generator, new: str, count: int, stream: int) -> list[Example]:
    """Return examples of the new thing; training uses no such stream of seeds."""
    made = (generator.example(SEED, number, stream) for number in range(count))
    if new == "warp":
        return list(made)
    return [_perturbed(example, new, number) for number, example in enumerate(made)]


def _perturbed(example: Example, name: str, seed: int) -> Example:
    """Return the example after a perturbation, saved without a loss."""
    image, _ = perturb(name, Image(example.pixels), None, seed)
    table = np.ones(64, np.float32)
    picture = picture_context(image.pixels, table)
    context = Context(picture.histogram, tile_matches(picture, 0, 0, (SIDE, SIDE)))
    return replace(example, pixels=image.pixels, qtable=table, context=context)


def batches(
    labelled: Sequence[Example], known: Sequence[Example], steps: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the network's inputs and the masks of random examples, half of them labelled."""
    rng = np.random.default_rng(SEED)
    for _ in range(steps):
        sources = [labelled if rng.random() < 0.5 else known for _ in range(BATCH)]
        chosen = [augmented(source[rng.integers(len(source))], rng) for source in sources]
        inputs = zip(*(example.inputs for example in chosen), strict=True)
        masks = torch.from_numpy(np.stack([example.mask for example in chosen]))
        yield [torch.from_numpy(np.stack(each)) for each in inputs], masks


def trained(what: str, labelled: list[Example], known: list[Example], steps: int) -> PromptIML:
    """Return the packaged network after training on the crops."""
    network = load_network(load_model("prompt-iml-micro"))
    run, objective = Run(network, what), Objective(network)
    for number, (inputs, masks) in enumerate(batches(labelled, known, steps)):
        with precision("cpu"):
            loss = objective(inputs, masks)
        run.step(loss, learning_rate(number / steps, RATES[what]))
    return network.eval()


def show(name: str, network: PromptIML, sets: dict[str, list[Example]]) -> None:
    """Print the results of a network on each set."""
    for each, examples in sets.items():
        found = evaluate(network, examples)["all"]
        print(
            f"{name:8} {each:6} {found.examples} crops: F1 {found.f1:.3f}  pixel AUC "
            f"{found.pixel_auc:.3f}  image AUC {found.score_auc:.3f}",
            flush=True,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--new", default="warp")
    parser.add_argument("--crops", type=int, default=200, help="labelled crops to train on")
    parser.add_argument("--samples", type=int, default=1600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    photos = split(list_photos(args.photos))
    train, held_back = (Generator.read(each) for each in photos)
    maker = Warping if args.new == "warp" else Generator
    new, judged = (maker.read(each) for each in photos)
    labelled = crops(new, args.new, args.crops, 4)
    known = [train.example(SEED, number, 6) for number in range(KNOWN)]
    sets = {
        "new": crops(judged, args.new, JUDGED, 5),
        "known": [held_back.example(SEED, number, 3) for number in range(JUDGED)],
    }
    show("before", load_network(load_model("prompt-iml-micro")), sets)
    for what in RATES:
        show(what, trained(what, labelled, known, args.samples // BATCH), sets)


if __name__ == "__main__":
    main()
