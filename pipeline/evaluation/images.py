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
from prompt_iml.engine.errors import DecodeError, ImageError, UsageError
from prompt_iml.engine.model.policy import Label
from prompt_iml.pipeline.evaluation.comparison import f1_and_iou
from prompt_iml.pipeline.evaluation.manifest import Labelled, Mask, read_mask, read_payload
from prompt_iml.pipeline.evaluation.metrics import best_f1, f1_at, masked_at, pixel_auc, sweep
from prompt_iml.pipeline.evaluation.perturbations import perturb
from prompt_iml.pipeline.images.decode import DecodeLimits, decode

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
        f1, iou: pixel F1 and IoU of the mask; nan when authentic.
        best_f1: pixel F1 at the best threshold for this image; nan when authentic.
        pixel_auc: AUC of this image's pixels; nan when authentic.
        f1_at, masked_at: F1 and masked share at each of `MASK_THRESHOLDS`.
        pixels, hits: (n,) pixels, and forged pixels, by mask logit in bins around `score.CENTRES`.
    """

    kind: str
    forged: bool
    photo: str
    statistics: Statistics
    score_raw: float
    score: float
    label: Label
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


def evaluate_images(
    detector: Detector, samples: Sequence[Labelled], perturbation: str = "none"
) -> Iterator[ImageResult | ImageError]:
    """Evaluate each image of a manifest; one that cannot be decoded or run yields its error.

    Args:
        detector: engine, view and policy, as a scan combines them.
        samples: result of `read_manifest`.
        perturbation: one name of `pipeline.evaluation.perturbations`.

    Raises:
        UsageError: a file of the manifest is missing, or a mask has another size than its image.
    """
    failures: list[ImageError] = []
    images = _images(samples, perturbation, failures)
    for (sample, mask), finding in detector.detect(images):
        if isinstance(finding, ImageError):
            yield finding
        else:
            yield _evaluate(sample, mask, finding)
    yield from failures


def _images(
    samples: Sequence[Labelled], perturbation: str, failures: list[ImageError]
) -> Iterator[tuple[tuple[Labelled, Mask | None], Image]]:
    for index, sample in enumerate(samples):
        payload, mask = read_payload(sample), read_mask(sample)
        try:
            image = _decoded(payload)
        except ImageError as error:
            failures.append(error)
            continue
        if mask is not None and mask.shape != image.pixels.shape[:2]:
            raise UsageError(
                f"{sample.mask}: {mask.shape} pixels, but its image has {image.pixels.shape[:2]}"
            )
        changed, moved = perturb(perturbation, image, mask, seed=index)
        yield (sample, moved), changed


def _decoded(payload: bytes) -> Image:
    try:
        return decode(payload, DecodeLimits()).image
    except ImageError:
        raise
    except Exception as error:  # as in a scan: an image must not end the job
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _evaluate(sample: Labelled, mask: Mask | None, finding: Finding) -> ImageResult:
    height, width = finding.logits.shape
    found = np.zeros((height, width), bool) if finding.mask is None else finding.mask
    truth = np.zeros((height, width), bool) if mask is None else mask
    logits = upsample(finding.logits, (slice(0, height), slice(0, width)))
    pixels = sweep(logits, truth)
    f1, iou = (math.nan, math.nan) if mask is None else f1_and_iou(found, truth)
    return ImageResult(
        kind=sample.kind,
        forged=mask is not None,
        photo=sample.photo or sample.name,
        statistics=finding.statistics,
        score_raw=finding.score_raw,
        score=finding.score,
        label=finding.label,
        masked=finding.manipulated_fraction,
        peak=finding.logits.peak,
        f1=f1,
        iou=iou,
        best_f1=best_f1(pixels),
        pixel_auc=pixel_auc(pixels),
        f1_at=f1_at(pixels, LEVELS),
        masked_at=masked_at(pixels, LEVELS),
        pixels=histogram(logits),
        hits=histogram(logits[truth]),
    )
