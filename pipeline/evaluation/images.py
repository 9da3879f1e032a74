"""Evaluation of single images: the finding of the detector compared with the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.detection.detector import Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.score import Statistics, histogram
from prompt_iml.engine.detection.views import upsample
from prompt_iml.engine.errors import BadLabels, DecodeError, FetchError, ImageError
from prompt_iml.engine.model.policy import Label as Verdict
from prompt_iml.pipeline.evaluation.comparison import f1_and_iou
from prompt_iml.pipeline.evaluation.metrics import (
    Floats,
    best_f1,
    f1_at,
    masked_at,
    pixel_auc,
    sweep,
)
from prompt_iml.pipeline.evaluation.perturbations import perturb
from prompt_iml.pipeline.images.decode import Decoded, DecodeLimits, decode
from prompt_iml.pipeline.truth import Label, Mask, Truth, read_images, truth_of
from prompt_iml.pipeline.units import Sample

MASK_THRESHOLDS = np.arange(1, 100) / 100
LEVELS = np.log(MASK_THRESHOLDS / (1 - MASK_THRESHOLDS))


@dataclass(frozen=True, slots=True)
class ImageResult:
    """Finding and metrics of one image, at the size that the detector received.

    Attributes:
        kind: kind of forgery; `authentic` without one.
        forged: whether the image is forged.
        photo: photograph that it was made from, or the image's own name: results of one
            photograph are not independent.
        statistics: statistics of the network's outputs.
        score_raw, score, label: finding of the detector for the whole image.
        masked: share of its pixels in the mask.
        peak: highest probability of its pixels.
        f1, iou: pixel F1 and IoU of the mask; nan when authentic, or forged without a known mask.
        best_f1: pixel F1 at the best threshold for this image; nan as f1.
        pixel_auc: AUC of this image's pixels; nan as f1.
        f1_at, masked_at: F1 and masked share at each of `MASK_THRESHOLDS`.
        pixels, hits: (n,) pixels, and forged pixels, by mask logit in bins around `score.CENTRES`.
    """

    kind: str
    forged: bool
    photo: str
    statistics: Statistics
    score_raw: float
    score: float
    label: Verdict
    masked: float
    peak: float
    f1: float
    iou: float
    best_f1: float
    pixel_auc: float
    f1_at: NDArray[np.floating]
    masked_at: NDArray[np.floating]
    pixels: NDArray[np.int64]
    hits: NDArray[np.int64]

    @property
    def has_known_pixels(self) -> bool:
        """True where the truth knows each pixel: not for a forged image without a mask."""
        return not self.forged or bool(self.hits.any())


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Evaluation of one labelled image.

    Attributes:
        label: the image.
        outcome: its result, or the error that it failed with.
        mask: (H, W) bool that was found, at the size that the detector received; None on an error.
    """

    label: Label
    outcome: ImageResult | ImageError
    mask: Mask | None = None


def evaluate_images(
    detector: Detector, labels: Sequence[Label], perturbation: str = "none"
) -> Iterator[Evaluation]:
    """Evaluate labelled images; one that cannot be read, decoded or run has its error.

    Args:
        detector: engine, view and policy, as a scan combines them.
        labels: result of `read_labels`; `check_images` finds their faults before.
        perturbation: one name of `pipeline.evaluation.perturbations`.

    Raises:
        BadLabels: an image is not there, or its mask does not fit it.
    """
    for (label, truth), finding in detector.detect(_images(labels, perturbation)):
        if isinstance(finding, ImageError):
            yield Evaluation(label, finding)
        else:
            assert truth is not None  # only what could not be read has none
            shape = finding.logits.shape
            found = np.zeros(shape, bool) if finding.mask is None else finding.mask
            yield Evaluation(label, _result(label, truth, finding, found), found)


def read_pictures(
    labels: Sequence[Label],
) -> Iterator[tuple[Label, tuple[Truth, Image] | ImageError]]:
    """Yield each label with its truth and its decoded image, or the error that it failed with.

    Raises:
        BadLabels: an image is not there, or its mask does not fit it.
    """
    for label, sample in read_images(labels):
        try:
            decoded = _decoded(sample)
        except FetchError as error:
            raise BadLabels(f"{label.name}: {error.code}: {error}") from error
        except ImageError as error:
            yield label, error.bare()
            continue
        size, orientation = decoded.image.pixels.shape[:2], decoded.facts["exif_orientation"]
        try:
            yield label, (truth_of(label, size, orientation), decoded.image)
        except ValueError as error:
            raise BadLabels(f"{label.name}: {error}") from error


def _images(
    labels: Sequence[Label], perturbation: str
) -> Iterator[tuple[tuple[Label, Truth | None], Image | ImageError]]:
    for label, opened in read_pictures(labels):
        if isinstance(opened, ImageError):
            yield (label, None), opened
            continue
        truth, image = opened
        changed, moved = perturb(perturbation, image, truth.mask, seed=label.row)
        yield (label, Truth(truth.manipulated, moved)), changed


def _decoded(sample: Sample) -> Decoded:
    if sample.error:
        raise sample.error
    try:
        return decode(sample.data or b"", DecodeLimits())
    except ImageError:
        raise
    except Exception as error:  # as in a scan: an image must not end the job
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _result(label: Label, truth: Truth, finding: Finding, found: Mask) -> ImageResult:
    height, width = finding.logits.shape
    logits = upsample(finding.logits, (slice(0, height), slice(0, width)))
    return image_result(
        label,
        truth,
        logits,
        found,
        statistics=finding.statistics,
        score_raw=finding.score_raw,
        score=finding.score,
        verdict=finding.label,
        peak=finding.logits.peak,
    )


def image_result(
    label: Label,
    truth: Truth,
    logits: Floats,
    found: Mask,
    *,
    statistics: Statistics,
    score_raw: float,
    score: float,
    verdict: Verdict,
    peak: float,
) -> ImageResult:
    """Compare (H, W) mask logits and the mask `found` with the truth of the same size.

    Without a mask in the truth, its pixels count as authentic in `hits`, and no other pixel metric
    has a value.
    """
    is_known = truth.mask is not None
    mask = truth.mask if truth.mask is not None else np.zeros(logits.shape, bool)
    pixels = sweep(logits, mask)
    f1, iou = f1_and_iou(found, mask) if is_known else (math.nan, math.nan)
    kind = "forged" if truth.manipulated else "authentic"
    return ImageResult(
        kind=label.kind or kind,
        forged=truth.manipulated,
        photo=label.photo or label.name,
        statistics=statistics,
        score_raw=score_raw,
        score=score,
        label=verdict,
        masked=float(found.mean()),
        peak=peak,
        f1=f1,
        iou=iou,
        best_f1=best_f1(pixels),
        pixel_auc=pixel_auc(pixels),
        f1_at=f1_at(pixels, LEVELS),
        masked_at=masked_at(pixels, LEVELS),
        pixels=histogram(logits),
        hits=histogram(logits[mask]),
    )
