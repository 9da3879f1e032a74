"""Labelled sets for the calibration and the evaluation of a version, from held-back pictures.

    photographs, held back ----------> cluster.training.validation: posted, png, ..., full
    screenshots and scans, held back -> negatives-calibration, negatives-evaluation
    clones of originals.csv ----------> originals-calibration, originals-evaluation,
                                        originals-large -> closer-101, closer-102

`originals.csv` names photographs as their cameras saved them, in public repositories: of cameras
and repositories that training has not, no camera in both sets. Those of `large`, above 12.6
megapixels, are forged in one window each, and some are of other sets or of cameras that training
has.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders
from prompt_iml.cluster.training.validation import full_size_pairs, write_set, write_sets
from prompt_iml.pipeline.forgery.generator import Generator
from prompt_iml.pipeline.forgery.photos import Photo, is_large, list_photos, split

ORIGINALS = Path(__file__).with_name("originals.csv")
SETS = ("calibration", "evaluation")
LARGE_SEEDS = (101, 102)  # of the forgeries of `large`
LEAST_FORGED = 3_000_000  # pixels of a photograph that the set `full` forges


def write_originals(clones: Path, output: Path) -> None:
    """Write the photographs of each set of `originals.csv` to `output/originals-SET`.

    Args:
        clones: folder with a clone of each repository, or its bare .git folder, as `owner/name`.
        output: folder of the sets.

    Raises:
        subprocess.CalledProcessError: a clone or its commit is missing.
    """
    with ORIGINALS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in (*SETS, "large"):
        folder = output / f"originals-{name}"
        folder.mkdir(parents=True)
        paths = []
        for number, row in enumerate(row for row in rows if row["set"] == name):
            blob = f"{row['commit']}:{row['path']}"
            git = ["git", "-C", str(clones / row["repository"]), "cat-file", "blob", blob]
            paths.append(folder / f"{number:02d}.jpg")
            paths[-1].write_bytes(subprocess.run(git, check=True, capture_output=True).stdout)
        _write_manifest(folder, paths)


def write_negatives(held_back: Iterable[Photo], output: Path) -> None:
    """Write the sets `negatives-calibration` and `-evaluation`; no source is in both."""
    sources = defaultdict[str, list[Path]](list)
    for photo in held_back:
        sources[photo.source].append(photo.path)
    shares: dict[str, list[Path]] = {name: [] for name in SETS}
    for source in sorted(sources, key=lambda source: (-len(sources[source]), source)):
        min(shares.values(), key=len).extend(sources[source])
    for name, paths in shares.items():
        folder = output / f"negatives-{name}"
        folder.mkdir(parents=True)
        _write_manifest(folder, paths)


def write_all(photos: Path, negatives: Path, autoencoders: str, clones: Path, output: Path) -> None:
    """Write all sets to folders in `output`; does nothing where the last of them is there."""
    if (output / "full").exists():
        return
    if output.exists():  # of a run that was interrupted
        shutil.rmtree(output)
    held_back = split(list_photos(photos, negatives))[1]
    write_negatives((photo for photo in held_back if photo.kind == "negative"), output)
    write_originals(clones, output)
    (hosts := output / "hosts").mkdir()
    for path in sorted((output / "originals-calibration").glob("*.jpg")):
        with Image.open(path) as image:
            if image.width * image.height >= LEAST_FORGED:
                (hosts / path.name).hardlink_to(path)
    write_closer(list_photos(photos), output)
    held = read_autoencoders(autoencoders, held_back=True)
    write_sets(list_photos(photos), output, autoencoders=held, full=hosts)


def write_closer(photos: Sequence[Photo], output: Path) -> None:
    """Write the sets `closer-SEED`: each photograph of `originals-large` forged, and its twin."""
    generator = Generator.read([photo for photo in split(photos)[1] if is_large(photo)], ())
    paths = sorted((output / "originals-large").glob("*.jpg"))
    for seed in LARGE_SEEDS:
        write_set(output / f"closer-{seed}", full_size_pairs(generator, paths, seed), seed)


def _write_manifest(folder: Path, paths: Iterable[Path]) -> None:
    """Write the manifest of a folder of authentic images."""
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mask", "kind", "photo"])
        writer.writerows([path.resolve(), "", "authentic", path.stem] for path in paths)
