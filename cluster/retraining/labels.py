"""Reviewers' labels of images, to train on and to evaluate on.

A Parquet file, local or on S3, with one row for each image:

    uri     string   the image or its shard, as in the scan's results
    member  string   its name in a tar shard or its row in a Parquet shard, as in the scan's
                     results; null, or no such column, for a plain image
    label   string   authentic or manipulated
    mask    binary   PNG of the image's stored size (before any EXIF rotation), whose pixels above
                     127 are manipulated; null without a mask

The images are split by their content: about a fifth is held back for evaluation, the others train.
A manipulated image without a mask never trains and is always held back; only its score is
evaluated. Copies of an image that were saved again have other content, and may be on both sides.

All compressed images are held in memory, and decoded ones up to `PIXEL_BYTES`: this is meant for
thousands of labels, not for millions.
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

from prompt_iml.engine.detection.context import Context, picture_context, tile_matches
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
ROWS = 1000  # rows of a Parquet shard that are read at a time
MAX_OBJECT_BYTES = 256 << 20
NO_MASK = "without mask"
LABELS = "labels"  # name of the set of held-back labels

_TYPES = {"uri": "string", "member": "string", "label": "string", "mask": "binary"}
_REQUIRED = ("uri", "label")


@dataclass(frozen=True, slots=True)
class Label:
    """Row of a labels file.

    Attributes:
        row: number in the file, from 0.
        uri: canonical URI of the image or its shard.
        member: name inside the shard, or None.
        label: the reviewer's verdict.
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
        label: row of the labels file.
        data: content of the image file.
        sha256: digest of `data`, hexadecimal.
        height, width: size in pixels, as stored.
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
        """Return whether it is for evaluation only; images with the same content agree."""
        if self.manipulated and self.label.mask is None:
            return True
        return int(self.sha256[:8], 16) < HELD_BACK_SHARE * 2**32

    @property
    def trains(self) -> bool:
        """Return whether training examples are cropped from it."""
        return not self.held_back and min(self.height, self.width) >= SIDE


_Decoded = tuple[Pixels, NDArray[np.float32], Context]


class LabelledExamples:
    """Source of training examples, like `Generator`, from labelled images.

    Args:
        labels: URI of a labels file.

    Raises:
        BadLabels: a row is wrong, its image cannot be fetched or decoded, or no image trains.
        MissingInput, UsageError: the file itself cannot be read.
    """

    def __init__(self, labels: str) -> None:
        images = training_images(labels, fetch_images(labels))
        self._classes = [
            group
            for manipulated in (False, True)
            if (group := [image for image in images if image.manipulated == manipulated])
        ]
        self._decoded: dict[str, _Decoded] = {}
        self._free_bytes = PIXEL_BYTES

    def example(self, *seed: int) -> Example:
        """Return a window of a labelled image, aligned to its 8x8 grid.

        The same labels and seed give the same example; half of the examples are of manipulated
        images. Their windows contain a manipulated pixel, unless the only ones are in the last few
        rows or columns, which no aligned window reaches.
        """
        rng = np.random.default_rng(seed)
        image = choose(choose(self._classes, rng), rng)
        pixels, qtable, context = self._decode(image)
        mask = mask_of(image)
        row, column = _corner(mask, rng)
        window = slice(row, row + SIDE), slice(column, column + SIDE)
        kind: Kind = "labelled" if image.manipulated else "authentic"
        matches = tile_matches(context, row, column, (SIDE, SIDE))
        context = Context(context.histogram, matches)
        return Example(pixels[window], qtable, mask[window], kind, context)

    def _decode(self, image: LabelledImage) -> _Decoded:
        if image.sha256 in self._decoded:
            return self._decoded[image.sha256]
        found = decode(image.data, DecodeLimits()).image
        table = np.ones(64, np.float32) if found.luma_table is None else found.luma_table
        decoded = found.pixels, table, picture_context(found.pixels, table)
        if found.pixels.nbytes <= self._free_bytes:
            self._free_bytes -= found.pixels.nbytes
            self._decoded[image.sha256] = decoded
        return decoded


def read_labels(labels: str) -> list[Label]:
    """Read and check a labels file, but not the images that it names.

    Raises:
        BadLabels: a column or a row is wrong; the message names the row.
        EmptySource: there is no row.
        MissingInput, UsageError: the file does not exist, or cannot be read.
    """
    table = _read_table(labels)
    rows = [_label(labels, number, row) for number, row in enumerate(table.to_pylist())]
    if not rows:
        raise EmptySource(f"{labels} has no rows: label some images")
    seen: dict[tuple[str, str | None], int] = {}
    for label in rows:
        first = seen.setdefault((label.uri, label.member), label.row)
        if first != label.row:
            raise _bad(labels, label.row, f"labels the image of row {first} again: keep one row")
    return rows


def fetch_images(labels: str) -> list[LabelledImage]:
    """Read a labels file and fetch its images, in its order; each content comes once.

    Raises:
        BadLabels: an image cannot be fetched or decoded, its mask does not fit, or the same bytes
            have two labels; and all errors of `read_labels`.
    """
    rows = read_labels(labels)
    images = [_open(labels, label, sample) for label, sample in _samples(labels, rows)]
    images.sort(key=lambda image: image.label.row)
    seen: dict[str, LabelledImage] = {}
    for image in images:
        first = seen.setdefault(image.sha256, image)
        if first.manipulated != image.manipulated:
            raise _bad(
                labels,
                image.label.row,
                f"contradicts row {first.label.row}, which has the same bytes",
            )
        seen[image.sha256] = _masked(labels, first, image)
    return list(seen.values())


def _masked(labels: str, first: LabelledImage, second: LabelledImage) -> LabelledImage:
    """Return the label with a mask, of two labels of the same bytes."""
    if first.label.mask is None or second.label.mask is None:
        return first if second.label.mask is None else second
    if not np.array_equal(mask_of(first), mask_of(second)):
        raise _bad(
            labels,
            second.label.row,
            f"has another mask than row {first.label.row}, which has the same bytes",
        )
    return first


def training_images(labels: str, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return the images of a labels file that train; raises `BadLabels` if there is none."""
    if found := [image for image in images if image.trains]:
        return found
    raise BadLabels(
        f"{labels} leaves no image to train on: label more (each side needs {SIDE} pixels or more, "
        "and a manipulated image a mask)"
    )


def mask_of(image: LabelledImage) -> Mask:
    """Return the mask, (H, W) bool, True where manipulated; all False for an authentic image.

    Raises:
        ValueError: a manipulated image has no mask.
    """
    if image.label.mask is not None:
        return _parse_mask(image.label.mask)
    if image.manipulated:
        raise ValueError(f"row {image.label.row} has no mask")
    return np.zeros((image.height, image.width), bool)


def evaluate_labels(
    engine: Engine, model: Model, policy: Policy, images: Sequence[LabelledImage], folder: Path
) -> SetResult | None:
    """Evaluate a model on the held-back labelled images; return None if there is none.

    Pixel measures cover the manipulated images with a mask, all other measures all images.

    Args:
        engine: has the prompts to evaluate loaded.
        model: gives the view of an image.
        policy: decides on labels.
        images: from `fetch_images`; images that train are ignored.
        folder: empty or from an earlier call; images and masks are written there.
    """
    samples = [_as_sample(image, folder) for image in images if image.held_back]
    if not samples:
        return None
    outcomes = list(evaluate_images(Detector(engine, model.view, policy), samples))
    results = [
        replace(each, forged=each.forged or each.kind == NO_MASK)
        for each in outcomes
        if isinstance(each, ImageResult)
    ]
    return summarize_set(results, len(outcomes) - len(results), LABELS, "none")


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
        raise MissingInput(f"There is no such labels file: {error}") from error
    except ImageError as error:
        raise UsageError(f"The labels file cannot be read: {error}") from error
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise BadLabels(f"{labels} is not a Parquet file ({line})") from error
    if absent := [name for name in _REQUIRED if name not in table.column_names]:
        raise BadLabels(f"{labels} lacks these columns: {', '.join(absent)}")
    return table.select([name for name in _TYPES if name in table.column_names])


def _label(labels: str, number: int, row: dict[str, Any]) -> Label:
    uri, member, label, mask = (row.get(name) for name in _TYPES)
    if not isinstance(uri, str) or not uri:
        raise _bad(labels, number, "has no uri")
    if label != "authentic" and label != "manipulated":
        raise _bad(labels, number, f"has the label {label!r}: use authentic or manipulated")
    if member is not None and not isinstance(member, str):
        raise _bad(labels, number, f"has the member {member!r}, which is not a string")
    if mask is not None and not isinstance(mask, bytes):
        raise _bad(labels, number, "has a mask that is not the bytes of a PNG")
    if mask is not None and label == "authentic":
        raise _bad(labels, number, "labels an image with a mask authentic: correct one of the two")
    try:
        uri = storage.canonical(uri)
    except UsageError as error:
        raise _bad(labels, number, str(error)) from error
    return Label(number, uri, member or None, label, mask)


def _samples(labels: str, rows: Sequence[Label]) -> Iterator[tuple[Label, Sample]]:
    """Yield each label with its image's bytes; each shard is read once."""
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
            elif sample.error and sample.member is None:  # the shard is truncated here
                yield wanted.pop(next(iter(wanted))), sample
            if not wanted:
                break
        if wanted:
            label = next(iter(wanted.values()))
            raise _bad(
                labels,
                label.row,
                f"names the image {label.member}, which {label.uri} does not contain",
            )


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
        raise _bad(labels, row, f"has a mask that is not a PNG ({error})") from error
    if mask.shape != size:
        raise _bad(
            labels,
            row,
            f"has a mask of {mask.shape[::-1]} pixels for a stored image of {size[::-1]}",
        )
    if not mask.any():
        raise _bad(
            labels, row, f"has a mask without a pixel above {BRIGHT}: mark the manipulated pixels"
        )


def _parse_mask(png: bytes) -> Mask:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        return bright(picture)


def _corner(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Return row and column of a window on the grid, around a manipulated pixel if there is one."""
    size = np.array(mask.shape)
    marked = np.flatnonzero(mask)
    if len(marked):
        at = np.array(divmod(rng.choice(marked), mask.shape[1]))
        corner = np.clip(at - rng.integers(SIDE - 7, size=2), 0, size - SIDE)
    else:
        corner = rng.integers(size - SIDE + 1)
    row, column = (int(place) // 8 * 8 for place in corner)
    return row, column


def _bad(labels: str, row: int, fault: str) -> BadLabels:
    return BadLabels(f"{labels} row {row} (from 0): {' '.join(fault.split())}")
