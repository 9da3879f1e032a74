"""What reviewers' labels may do to the packaged network: `make train-proof`, a quarter of an hour.

Two cycles with real training on real photographs. Labels whose marks lie on other pictures must
not get through the gate; the same labels as they should be may.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from cluster.forgery import Example, Forger
from cluster.photos import list_photos, split
from cluster.retrain import retrain
from cluster.settings import RetrainSettings
from pipeline.run import Json

PHOTOS = Path(__file__).parents[2] / "shared/data/photos"
SEED = 7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.exists(), reason="needs ../shared/data/photos"),
]


def png(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
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


@pytest.mark.timeout(3600)
def test_shuffled_labels_do_not_get_through(cluster: None, tmp_path: Path) -> None:
    train, held_back = (Forger(photos) for photos in split(list_photos(PHOTOS)))
    labelled = [train.example(SEED, number, 4) for number in range(120)]
    judged = [held_back.example(SEED, number, 5) for number in range(120)]
    fixed = write_set(tmp_path / "fixed", judged)

    def cycle(name: str, order: list[int]) -> Json:
        return retrain(
            RetrainSettings(
                photos=str(PHOTOS),
                labels=write_labels(tmp_path / f"{name}.parquet", labelled, order),
                registry=str(tmp_path / f"registry-{name}"),
                output=str(tmp_path / f"output-{name}"),
                sets=[fixed],
                samples=1200,
            )
        )

    shuffled = [int(n) for n in np.random.default_rng(SEED).permutation(len(labelled))]
    refused = cycle("shuffled", shuffled)
    sound = cycle("sound", list(range(len(labelled))))
    for name, summary in (("shuffled", refused), ("sound", sound)):
        print(name, summary["verdict"], summary["reasons"])
        for when in ("old", "new"):
            print(" ", when, [(r["set"], r["f1"], r["image_auc"], r["false_positive_rate"])
                              for r in summary["results"][when]])  # fmt: skip
    assert refused["verdict"] == "refused"
