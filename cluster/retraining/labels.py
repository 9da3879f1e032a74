"""Labels to train on and to evaluate on, in any form of truth that `read_labels` reads.

The images are split by their content: about a fifth is held back for evaluation, the others train.
A manipulated image without a mask never trains and is always held back; only its score is
evaluated. Copies of an image that were saved again have other content, and may be on both sides.

All compressed images are held in memory, and decoded ones up to `PIXEL_BYTES`: this is meant for
thousands of labels, not for millions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.detection.context import Context, picture_context, tile_matches
from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.errors import BadLabels, ImageError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.protocol import Engine
from prompt_iml.pipeline.evaluation import SetResult, evaluate_images, summarize
from prompt_iml.pipeline.forgery.generator import Example, Kind
from prompt_iml.pipeline.forgery.history import SIDE, Pixels, choose
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.truth import Faults, Label, Mask, Rle, read_images, read_labels, truth_of
from prompt_iml.pipeline.truth.masks import load_mask
from prompt_iml.pipeline.units import Sample

HELD_BACK_SHARE = 0.2
PIXEL_BYTES = 512 << 20
LABELS = "labels"  # name of the set of held-back labels


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """A labelled image, fetched and checked.

    Attributes:
        label: the label that names it.
        data: content of the image file.
        sha256: digest of `data`, hexadecimal.
        height, width: size in pixels, as stored.
        manipulated: whether it is.
        mask: its manipulated pixels, of the stored size; None if authentic, or not known.
    """

    label: Label
    data: bytes
    sha256: str
    height: int
    width: int
    manipulated: bool
    mask: Rle | None = None

    @property
    def held_back(self) -> bool:
        """Return whether it is for evaluation only; images with the same content agree."""
        if self.manipulated and self.mask is None:
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
        labels: name of a truth, as of `read_labels`.

    Raises:
        BadLabels: rows are wrong, images cannot be fetched or decoded, or no image trains.
        UsageError: the truth itself cannot be read.
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


def fetch_images(labels: str) -> list[LabelledImage]:
    """Read labels and fetch their images, in their order; each content comes once.

    Args:
        labels: name of a truth, as of `read_labels`.

    Raises:
        BadLabels: images cannot be fetched or decoded, masks do not fit, or the same bytes have two
            labels; the message names all of them.
        UsageError: as of `read_labels`.
    """
    faults = Faults(labels)
    images = []
    for label, sample in read_images(read_labels(labels)):
        with faults.of(label.row, label.name):
            images.append(_open(label, sample))
    images.sort(key=lambda image: image.label.row)
    seen: dict[str, LabelledImage] = {}
    for image in images:
        with faults.of(image.label.row, image.label.name):
            seen[image.sha256] = _masked(seen.setdefault(image.sha256, image), image)
    faults.check()
    return list(seen.values())


def _masked(first: LabelledImage, second: LabelledImage) -> LabelledImage:
    """Return the label with a mask, of two labels of the same bytes."""
    row = first.label.row
    if first.manipulated != second.manipulated:
        raise ValueError(f"contradicts row {row}, which has the same bytes")
    if first.mask is None or second.mask is None:
        return first if second.mask is None else second
    if first.mask != second.mask:
        raise ValueError(f"has another mask than row {row}, which has the same bytes")
    return first


def _open(label: Label, sample: Sample) -> LabelledImage:
    """Return a checked image; raise `ValueError` for the fault of its label."""
    try:
        if sample.error:
            raise sample.error
        data = sample.data or b""
        decoded = decode(data, DecodeLimits())
    except ImageError as error:
        raise ValueError(f"{error.code}: {error}") from error
    height, width = decoded.image.pixels.shape[:2]
    truth = truth_of(label, (height, width), decoded.facts["exif_orientation"])
    mask = None if truth.mask is None else Rle.of(truth.mask)
    digest = hashlib.sha256(data).hexdigest()
    return LabelledImage(label, data, digest, height, width, truth.manipulated, mask)


def training_images(labels: str, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return the images of labels that train; raises `BadLabels` if there is none."""
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
    if image.mask is not None:
        return load_mask(image.mask)
    if image.manipulated:
        raise ValueError(f"row {image.label.row} has no mask")
    return np.zeros((image.height, image.width), bool)


def digest_of(images: Sequence[LabelledImage]) -> str:
    """Return a digest of what images show and what is known of them, hexadecimal."""
    digest = hashlib.sha256()
    for image in sorted(images, key=lambda image: image.sha256):
        counts = b"" if image.mask is None else image.mask.counts or b""
        digest.update(f"{image.sha256} {image.manipulated} ".encode() + counts + b"\n")
    return digest.hexdigest()


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
        folder: empty or from an earlier call; the images are written there.
    """
    labels = [_stored(image, folder) for image in images if image.held_back]
    if not labels:
        return None
    detector = Detector(engine, model.view, policy)
    return summarize(list(evaluate_images(detector, labels)), LABELS, "none")


def _stored(image: LabelledImage, folder: Path) -> Label:
    """Write an image to a folder, so that it is not fetched again; return a label of the file."""
    path = folder / image.sha256
    path.write_bytes(image.data)
    return replace(image.label, uri=f"file://{path}", member=None, mask=image.mask)


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
