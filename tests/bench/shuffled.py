"""What reviewers' labels do to the packaged network, right ones and shuffled ones.

    python -m tests.bench.shuffled --photos DIR --samples 600 --learning-rate 0.1

Two re-training cycles with real training on real photographs: in one the marks of the labels lie on
other pictures. Prints what the gate says of each, and old and new on a set of held-back crops.
With --perturbation all crops have been through something that training does not know, say
jpeg2000-20, as if a platform had begun to do that to every picture.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image as PilImage

from prompt_iml.cluster.retraining.retrain import retrain
from prompt_iml.cluster.settings import RetrainSettings
from prompt_iml.engine.detection.image import Image
from prompt_iml.pipeline.evaluation.perturbations import perturb
from prompt_iml.pipeline.forgery.generator import Example, Generator
from prompt_iml.pipeline.forgery.photos import list_photos, split
from prompt_iml.pipeline.run.folder import Json

SEED = 7
TOLD = ("f1", "pixel_auc", "image_auc", "false_positive_rate", "flagged_rate")


def crop(generator: Generator, number: int, stream: int, perturbation: str) -> Example:
    """A crop that is none of training's, after the perturbation; of the same size."""
    example = generator.example(SEED, number, stream)
    image, _ = perturb(perturbation, Image(example.pixels), None, seed=number)
    return replace(example, pixels=image.pixels)


def png(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    PilImage.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def write_labels(path: Path, examples: list[Example], order: list[int]) -> str:
    """Each picture with the marks of the one that `order` names."""
    rows = []
    for number, (example, other) in enumerate(zip(examples, order, strict=True)):
        image, mask = path.with_name(f"{path.stem}-{number}.png"), examples[other].mask
        image.write_bytes(png(example.pixels))
        forged = bool(mask.any())
        rows.append(
            {
                "uri": str(image),
                "label": "manipulated" if forged else "authentic",
                "mask": png(mask.astype(np.uint8) * 255) if forged else None,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_set(folder: Path, examples: list[Example]) -> str:
    """As `evaluate` takes them."""
    folder.mkdir()
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "mask"])
        for number, example in enumerate(examples):
            (folder / f"{number}.png").write_bytes(png(example.pixels))
            (folder / f"{number}-mask.png").write_bytes(png(example.mask.astype(np.uint8) * 255))
            rows.writerow([f"{number}.png", f"{number}-mask.png" if example.mask.any() else ""])
    return str(folder / "manifest.csv")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--crops", type=int, default=120, help="labelled, and as many to judge on")
    parser.add_argument("--perturbation", default="none")
    parser.add_argument("--labels", default="right,shuffled")
    args = parser.parse_args()
    train, held_back = (Generator.read(photos) for photos in split(list_photos(args.photos)))
    labelled = [crop(train, number, 4, args.perturbation) for number in range(args.crops)]
    shuffled = np.random.default_rng(SEED).permutation(args.crops).tolist()
    orders = {"right": list(range(args.crops)), "shuffled": shuffled}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        judged = [crop(held_back, number, 5, args.perturbation) for number in range(args.crops)]
        fixed = write_set(folder / "fixed", judged)
        for kind, order in ((kind, orders[kind]) for kind in args.labels.split(",")):
            settings = RetrainSettings(
                photos=str(args.photos),
                labels=write_labels(folder / f"{kind}.parquet", labelled, order),
                registry=str(folder / f"registry-{kind}"),
                output=str(folder / f"output-{kind}"),
                eval_sets=[fixed],
                samples=args.samples,
                learning_rate=args.learning_rate,
                address="local",
            )
            show(kind, retrain(settings))


def show(kind: str, summary: Json) -> None:
    """The verdict, and each set before and after."""
    print(f"{kind} labels: {summary['verdict']} {summary['reasons']}")
    for when in ("old", "new"):
        for result in summary["results"][when]:
            told = "  ".join(f"{name} {result[name]:.3f}" for name in TOLD)
            print(f"  {when} {result['set']:8} {told}", flush=True)


if __name__ == "__main__":
    main()
