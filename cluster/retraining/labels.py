"""Reviewers' labels: what a person found, to train on and to be judged by.

A Parquet file (or S3 object) of one row an image:

    uri     string   the image, or the shard it lies in, as the results name it
    member  string   its name in a tar shard, its row in a Parquet shard, as the results name it;
                     null, or no such column, for a plain image
    label   string   authentic or manipulated
    mask    binary   a PNG of the image's stored size (before any EXIF rotation) whose pixels
                     above 127 are manipulated; null where nobody drew one

Every image is on one side of a split by its content: about a fifth is held back and judges, the
others train. A manipulated image without a mask has no pixel truth: it never trains and always
judges, by the score of the image alone. Re-saved copies of one picture are other content and may
lie on both sides.

The compressed images are held in memory, and decoded ones as far as `PIXEL_BYTES` go: this is
for thousands of labels, not for millions.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.errors import (
    BadLabels,
    EmptySource,
    ImageError,
    MissingInput,
    NotFound,
    UsageError,
)
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.protocol import Engine
from prompt_iml.pipeline.evaluation import (
    ImageResult,
    Labelled,
    SetResult,
    evaluate_images,
    summarize_set,
)
from prompt_iml.pipeline.evaluation.comparison import BRIGHT, bright
from prompt_iml.pipeline.forgery.generator import Example, Kind
from prompt_iml.pipeline.forgery.history import SIDE, Pixels, choose
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit

Verdict = Literal["authentic", "manipulated"]
Mask = NDArray[np.bool_]

HELD_BACK_SHARE = 0.2
PIXEL_BYTES = 512 << 20
FETCH_THREADS = 16
ROWS = 1000  # of a Parquet shard, read at a time
MAX_OBJECT_BYTES = 256 << 20
NO_MASK = "without mask"
LABELS = "labels"  # the set of what reviewers labelled and nobody trained on

_TYPES = {"uri": "string", "member": "string", "label": "string", "mask": "binary"}
_REQUIRED = ("uri", "label")


@dataclass(frozen=True, slots=True)
class Label:
    """One row of a labels file.

    Attributes:
        row: its number in the file, from 0.
        uri: canonical, of the image or its shard.
        member: name inside the shard, or None.
        label: what the reviewer says.
        mask: PNG, or None.
    """

    row: int
    uri: str
    member: str | None
    label: Verdict
    mask: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """A labelled image, fetched and checked.

    Attributes:
        label: its row.
        data: the exact bytes.
        sha256: of them.
        height, width: of the pixels.
    """

    label: Label
    data: bytes
    sha256: str
    height: int
    width: int

    @property
    def manipulated(self) -> bool:
        return self.label.label == "manipulated"

    @property
    def held_back(self) -> bool:
        """Whether it judges and must not train: the same answer for the same content."""
        if self.manipulated and self.label.mask is None:
            return True
        return int(self.sha256[:8], 16) < HELD_BACK_SHARE * 2**32

    @property
    def trains(self) -> bool:
        """Whether examples are cut from it."""
        return not self.held_back and min(self.height, self.width) >= SIDE


class LabelledExamples:
    """Examples of the labelled images that train; `Generator.example` of what reviewers saw.

    Args:
        labels: URI of a labels file.

    Raises:
        BadLabels: a row is wrong, or its image cannot be fetched or decoded, or none trains.
        MissingInput, UsageError: the file itself cannot be read.
    """

    def __init__(self, labels: str) -> None:
        images = training_images(labels, fetch_images(labels))
        self._classes = [
            group
            for manipulated in (False, True)
            if (group := [image for image in images if image.manipulated == manipulated])
        ]
        self._decoded: dict[str, tuple[Pixels, NDArray[np.float32]]] = {}
        self._room = PIXEL_BYTES

    def example(self, *seed: int) -> Example:
        """A window of a labelled image on its 8x8 grid: the same labels and seed, the same pixels.

        Authentic and manipulated ones take turns evenly; of a manipulated one the window holds a
        manipulated pixel, but for the last few rows and columns beyond the grid.
        """
        rng = np.random.default_rng(seed)
        image = choose(choose(self._classes, rng), rng)
        pixels, qtable = self._pixels(image)
        mask = mask_of(image)
        row, column = _corner(mask, rng)
        window = slice(row, row + SIDE), slice(column, column + SIDE)
        kind: Kind = "labelled" if image.manipulated else "authentic"
        return Example(pixels[window], qtable, mask[window], kind)

    def _pixels(self, image: LabelledImage) -> tuple[Pixels, NDArray[np.float32]]:
        if image.sha256 in self._decoded:
            return self._decoded[image.sha256]
        found = decode(image.data, DecodeLimits()).image
        table = np.ones(64, np.float32) if found.luma_table is None else found.luma_table
        if found.pixels.nbytes <= self._room:
            self._room -= found.pixels.nbytes
            self._decoded[image.sha256] = found.pixels, table
        return found.pixels, table


def read_labels(labels: str) -> list[Label]:
    """Read and check a labels file, but not the images that it names.

    Raises:
        BadLabels: a column or a row is wrong; the line names the row.
        EmptySource: there is no row.
        MissingInput, UsageError: the file is not there, or cannot be read.
    """
    table = _read_table(labels)
    rows = [_label(labels, number, row) for number, row in enumerate(table.to_pylist())]
    if not rows:
        raise EmptySource(f"{labels} has no row: label some images")
    seen: dict[tuple[str, str | None], int] = {}
    for label in rows:
        first = seen.setdefault((label.uri, label.member), label.row)
        if first != label.row:
            raise _bad(labels, label.row, f"labels the image of row {first} again: keep one")
    return rows


def fetch_images(labels: str) -> list[LabelledImage]:
    """The images of a labels file, in its order.

    Raises:
        BadLabels: as `read_labels`; or an image cannot be fetched or decoded, its mask does not
            fit, or the same bytes have two labels.
    """
    rows = read_labels(labels)
    images = [_open(labels, label, sample) for label, sample in _samples(labels, rows)]
    images.sort(key=lambda image: image.label.row)
    seen: dict[str, LabelledImage] = {}
    for image in images:
        first = seen.setdefault(image.sha256, image)
        if first.manipulated != image.manipulated:
            raise _bad(labels, image.label.row, f"contradicts row {first.label.row}: same bytes")
        seen[image.sha256] = _drawn(labels, first, image)
    return list(seen.values())


def _drawn(labels: str, first: LabelledImage, second: LabelledImage) -> LabelledImage:
    """The one of two labels of the same bytes that has a mask."""
    if first.label.mask is None or second.label.mask is None:
        return first if second.label.mask is None else second
    if not np.array_equal(mask_of(first), mask_of(second)):
        raise _bad(
            labels, second.label.row, f"has another mask than row {first.label.row}: same bytes"
        )
    return first


def training_images(labels: str, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Those of a labels file that train; raises `BadLabels` when none does."""
    if found := [image for image in images if image.trains]:
        return found
    raise BadLabels(
        f"{labels}: no image of {SIDE} pixels or more a side, with a mask if it is manipulated, is "
        "left to train on: label more"
    )


def mask_of(image: LabelledImage) -> Mask:
    """(H, W) bool, True where manipulated; all False for an authentic image.

    Raises:
        ValueError: a manipulated image has no mask.
    """
    if image.label.mask is not None:
        return _parse_mask(image.label.mask)
    if image.manipulated:
        raise ValueError(f"row {image.label.row} has no mask")
    return np.zeros((image.height, image.width), bool)


def judge_labels(
    engine: Engine, model: Model, policy: Policy, images: Sequence[LabelledImage], folder: Path
) -> SetResult | None:
    """A model on the labelled images that are held back; None when none is.

    Pixel measures are over the manipulated images with a mask, all others over all images.

    Args:
        engine: with the prompts that are to be judged.
        images: from `fetch_images`; those that train are passed over.
        folder: empty or written by this; images and masks are put there.
    """
    samples = [_as_sample(image, folder) for image in images if image.held_back]
    if not samples:
        return None
    outcomes = list(evaluate_images(Detector(engine, model.view, policy), samples))
    judged = [
        replace(each, forged=each.forged or each.kind == NO_MASK)
        for each in outcomes
        if isinstance(each, ImageResult)
    ]
    return summarize_set(judged, len(outcomes) - len(judged), LABELS, "none")


def _as_sample(image: LabelledImage, folder: Path) -> Labelled:
    path = folder / image.sha256
    path.write_bytes(image.data)
    if not image.manipulated:
        return Labelled(path, None, None, "authentic")
    if image.label.mask is None:
        return Labelled(path, None, None, NO_MASK)
    mask = folder / f"{image.sha256}.png"
    mask.write_bytes(image.label.mask)
    return Labelled(path, None, mask, "labelled")


def _read_table(labels: str) -> pa.Table:
    uri = storage.canonical(labels)
    try:
        data = storage.read_bytes(uri)
    except NotFound as error:
        raise MissingInput(f"no such labels: {error}") from error
    except ImageError as error:
        raise UsageError(f"cannot read labels: {error}") from error
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise BadLabels(f"{labels} is no Parquet file ({line})") from error
    if absent := [name for name in _REQUIRED if name not in table.column_names]:
        raise BadLabels(f"{labels} has no column {', '.join(absent)}: add it")
    return table.select([name for name in _TYPES if name in table.column_names])


def _label(labels: str, number: int, row: dict[str, Any]) -> Label:
    uri, member, label, mask = (row.get(name) for name in _TYPES)
    if not isinstance(uri, str) or not uri:
        raise _bad(labels, number, "names no uri")
    if label != "authentic" and label != "manipulated":
        raise _bad(labels, number, f"label {label!r} is neither authentic nor manipulated")
    if member is not None and not isinstance(member, str):
        raise _bad(labels, number, f"member {member!r} is no name")
    if mask is not None and not isinstance(mask, bytes):
        raise _bad(labels, number, "mask is not the bytes of a PNG")
    if mask is not None and label == "authentic":
        raise _bad(labels, number, "an authentic image has a mask: drop one of the two")
    try:
        uri = storage.canonical(uri)
    except UsageError as error:
        raise _bad(labels, number, str(error)) from error
    return Label(number, uri, member or None, label, mask)


def _samples(labels: str, rows: Sequence[Label]) -> Iterator[tuple[Label, Sample]]:
    """Each label with its bytes, each shard read once."""
    plain = [label for label in rows if label.member is None]
    refs = tuple(ObjectRef(label.uri) for label in plain)
    if refs:
        unit = Unit("objects", refs[0].uri, -1, objects=refs)
        yield from zip(plain, _read(unit), strict=True)
    shards = defaultdict[str, dict[str | None, Label]](dict)
    for label in rows:
        if label.member is not None:
            shards[label.uri][label.member] = label
    for uri, wanted in shards.items():
        for sample in _read_shard(labels, next(iter(wanted.values())).row, uri):
            if (name := sample.member and storage.display_name(sample.member)) in wanted:
                yield wanted.pop(name), sample
            elif sample.error and sample.member is None:  # the shard breaks off here
                yield wanted.pop(next(iter(wanted))), sample
            if not wanted:
                break
        if wanted:
            label = next(iter(wanted.values()))
            raise _bad(labels, label.row, f"{label.uri} has no image {label.member}")


def _read_shard(labels: str, row: int, uri: str) -> Iterator[Sample]:
    try:
        for unit in list_units([uri], images_per_unit=ROWS):
            yield from _read(unit)
    except UsageError as error:
        raise _bad(labels, row, str(error)) from error


def _read(unit: Unit) -> Iterator[Sample]:
    return read_unit(unit, max_object_bytes=MAX_OBJECT_BYTES, threads=FETCH_THREADS)


def _open(labels: str, label: Label, sample: Sample) -> LabelledImage:
    try:
        if sample.error:
            raise sample.error
        data = sample.data or b""
        pixels = decode(data, DecodeLimits()).image.pixels
    except ImageError as error:
        raise _bad(labels, label.row, f"{error.code}: {error}") from error
    height, width = pixels.shape[:2]
    if label.mask is not None:
        _check_mask(labels, label.row, label.mask, (height, width))
    return LabelledImage(label, data, hashlib.sha256(data).hexdigest(), height, width)


def _check_mask(labels: str, row: int, png: bytes, size: tuple[int, int]) -> None:
    try:
        mask = _parse_mask(png)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad(labels, row, f"mask is no PNG ({error})") from error
    if mask.shape != size:
        raise _bad(
            labels, row, f"mask has {mask.shape[::-1]} pixels and its stored image {size[::-1]}"
        )
    if not mask.any():
        raise _bad(labels, row, f"mask has no pixel above {BRIGHT}: draw what is manipulated")


def _parse_mask(png: bytes) -> Mask:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        return bright(picture)


def _corner(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Of a window on the grid, around a manipulated pixel if there is one."""
    size = np.array(mask.shape)
    marked = np.flatnonzero(mask)
    if len(marked):
        at = np.array(divmod(rng.choice(marked), mask.shape[1]))
        corner = np.clip(at - rng.integers(SIDE - 7, size=2), 0, size - SIDE)
    else:
        corner = rng.integers(size - SIDE + 1)
    row, column = (int(place) // 8 * 8 for place in corner)
    return row, column


def _bad(labels: str, row: int, what: str) -> BadLabels:
    return BadLabels(f"{labels} row {row} (from 0): {' '.join(what.split())}")
