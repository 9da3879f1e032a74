"""Manifests: CSV files that list images and the masks of their forged pixels."""

from __future__ import annotations

import csv
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import MissingInput, UsageError
from prompt_iml.pipeline.evaluation.comparison import BRIGHT, bright

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Image of a manifest, not read yet.

    Attributes:
        image: the file, or the tar shard that holds it.
        member: name inside the shard; None for a plain file.
        mask: image file whose bright pixels are forged; None when authentic.
        kind: kind of forgery; `authentic` without one, `forged` when the manifest has no kind.
        photo: photograph that it was made from, by the column `photo`; empty without that column.
    """

    image: Path
    member: str | None
    mask: Path | None
    kind: str
    photo: str = ""

    @property
    def name(self) -> str:
        """Name of the image in a manifest: `file`, or `shard.tar#member`."""
        return str(self.image) if self.member is None else f"{self.image}#{self.member}"


def read_manifest(path: Path, limit: int | None = None) -> list[Labelled]:
    """Read a CSV with the columns image and mask (empty: authentic), and optionally kind and photo.

    Paths are relative to the manifest; `image` may be `shard.tar#member`. The truth.csv of the
    demo is an example. With `limit`, at most that many rows, spread evenly over the manifest.

    Raises:
        MissingInput: the manifest, or a file that it names, does not exist.
        UsageError: a column is missing, or there are no rows.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        samples = _rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file in UTF-8 ({error})") from error
    if not samples:
        raise UsageError(f"{path} lists no image: add rows below its header")
    if limit is not None and limit < len(samples):
        samples = [samples[i * len(samples) // limit] for i in range(limit)]
    for file in dict.fromkeys(file for each in samples for file in (each.image, each.mask) if file):
        if not file.is_file():
            raise MissingInput(f"{file}: no such file, though {path} names it")
    return samples


def _rows(path: Path) -> list[Labelled]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := {"image", "mask"} - set(reader.fieldnames or ()):
            raise UsageError(f"{path}: add the column {', '.join(sorted(absent))}")
        return [_labelled(row, path.parent) for row in reader]


def read_payload(sample: Labelled) -> bytes:
    """Return the bytes of an image; raise `MissingInput` when its shard has no such member."""
    if sample.member is None:
        return sample.image.read_bytes()
    span = _members(sample.image).get(sample.member)
    if span is None:
        raise MissingInput(f"{sample.image} has no member {sample.member}")
    with sample.image.open("rb") as file:
        file.seek(span[0])
        return file.read(span[1])


def read_mask(sample: Labelled) -> Mask | None:
    """Return (H, W) bool, True where forged; None when authentic.

    Raises:
        UsageError: the mask is no image, or marks no pixel.
    """
    if sample.mask is None:
        return None
    try:
        with Image.open(sample.mask) as image:
            mask = bright(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{sample.mask} is no image: write the mask again") from error
    if not mask.any():
        raise UsageError(
            f"{sample.mask} has no pixel above {BRIGHT}: make forged pixels white, or leave the "
            "column empty for an authentic image"
        )
    return mask


def _labelled(row: dict[str, str], folder: Path) -> Labelled:
    image, _, member = row["image"].partition(".tar#")
    mask = folder / row["mask"] if row["mask"] else None
    kind = row.get("kind") or ("forged" if mask else "authentic")
    file = folder / (f"{image}.tar" if member else image)
    return Labelled(file, member or None, mask, kind, row.get("photo") or "")


@lru_cache(maxsize=64)
def _members(shard: Path) -> dict[str, tuple[int, int]]:
    """Return offset and size of every file in an uncompressed tar."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    except tarfile.TarError as error:
        raise UsageError(f"{shard} is no uncompressed tar ({error})") from error
