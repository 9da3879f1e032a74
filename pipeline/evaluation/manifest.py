"""Manifests: which images there are, and where each was forged."""

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
    """One image of a manifest, unread.

    Attributes:
        image: the file, or the tar shard it lies in.
        member: name inside the shard; None for a plain file.
        mask: image file whose bright pixels are forged; None when authentic.
        kind: how it was forged; `authentic` when it was not, `forged` when nobody says.
    """

    image: Path
    member: str | None
    mask: Path | None
    kind: str

    @property
    def name(self) -> str:
        """As a manifest names it: `file`, or `shard.tar#member`."""
        return str(self.image) if self.member is None else f"{self.image}#{self.member}"


def read_manifest(path: Path, limit: int | None = None) -> list[Labelled]:
    """Read a CSV with the columns image and mask (empty: authentic), and perhaps kind.

    Files lie relative to the manifest; `image` may be `shard.tar#member`. The truth.csv of the
    demo is one. With `limit`, at most so many rows, spread evenly over the manifest.

    Raises:
        MissingInput: no such file.
        UsageError: a column is missing, or there are no rows.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := {"image", "mask"} - set(reader.fieldnames or ()):
            raise UsageError(f"{path}: add the column {', '.join(sorted(absent))}")
        samples = [_labelled(row, path.parent) for row in reader]
    if not samples:
        raise UsageError(f"{path} lists no image: add rows below its header")
    if limit is None or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def read_payload(sample: Labelled) -> bytes:
    """The exact bytes of an image.

    Raises:
        MissingInput: the manifest names a file, or a member of a shard, that is not there.
    """
    if not sample.image.is_file():
        raise MissingInput(f"{sample.image}: no such file, though the manifest names it")
    if sample.member is None:
        return sample.image.read_bytes()
    span = _members(sample.image).get(sample.member)
    if span is None:
        raise MissingInput(f"{sample.image} has no member {sample.member}")
    with sample.image.open("rb") as file:
        file.seek(span[0])
        return file.read(span[1])


def read_mask(sample: Labelled) -> Mask | None:
    """(H, W) bool, True where forged; None when authentic.

    Raises:
        MissingInput: the mask's file is not there.
        UsageError: it is no image, or marks nothing.
    """
    if sample.mask is None:
        return None
    if not sample.mask.is_file():
        raise MissingInput(f"{sample.mask}: no such file, though the manifest names it")
    try:
        with Image.open(sample.mask) as image:
            mask = bright(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{sample.mask} is no image: write the mask again") from error
    if not mask.any():
        raise UsageError(
            f"{sample.mask} has no pixel above {BRIGHT}: draw what was forged in white, or leave "
            "the column empty where nothing was"
        )
    return mask


def _labelled(row: dict[str, str], folder: Path) -> Labelled:
    image, _, member = row["image"].partition(".tar#")
    mask = folder / row["mask"] if row["mask"] else None
    kind = row.get("kind") or ("forged" if mask else "authentic")
    return Labelled(folder / (f"{image}.tar" if member else image), member or None, mask, kind)


@lru_cache(maxsize=64)
def _members(shard: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every file in an uncompressed tar."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    except tarfile.TarError as error:
        raise UsageError(f"{shard} is no uncompressed tar ({error})") from error
