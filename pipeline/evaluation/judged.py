"""One image at a time: what the detector says of it, held against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.detection.detector import Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.views import upsample
from prompt_iml.engine.errors import DecodeError, ImageError, UsageError
from prompt_iml.engine.model.policy import Label
from prompt_iml.pipeline.evaluation.comparison import f1_and_iou
from prompt_iml.pipeline.evaluation.manifest import Labelled, Mask, read_mask, read_payload
from prompt_iml.pipeline.evaluation.measures import best_f1, f1_at, flagged_at, pixel_auc, sweep
from prompt_iml.pipeline.evaluation.perturbations import perturb
from prompt_iml.pipeline.images.decode import DecodeLimits, decode

MASK_THRESHOLDS = np.arange(1, 100) / 100
LEVELS = np.log(MASK_THRESHOLDS / (1 - MASK_THRESHOLDS))


@dataclass(frozen=True, slots=True)
class Judged:
    """One image, judged at the size at which the detector saw it.

    Attributes:
        kind: how it was forged.
        forged: whether it was.
        score_raw, score, label: what the detector says of the whole image.
        flagged: share of its pixels in the mask.
        peak: the highest probability of its pixels.
        f1, iou: of the mask against the truth; nan when authentic.
        best_f1: pixel F1 at the threshold that suits this image best; nan when authentic.
        pixel_auc: of this image's pixels; nan when authentic.
        f1_at, flagged_at: F1 and flagged share at each of `MASK_THRESHOLDS`.
    """

    kind: str
    forged: bool
    score_raw: float
    score: float
    label: Label
    flagged: float
    peak: float
    f1: float
    iou: float
    best_f1: float
    pixel_auc: float
    f1_at: NDArray[np.floating]
    flagged_at: NDArray[np.floating]


def judge_samples(
    detector: Detector, samples: Sequence[Labelled], perturbation: str = "none"
) -> Iterator[Judged | ImageError]:
    """Judge each image of a manifest; what cannot be decoded or run comes out as its error.

    Args:
        detector: engine, view and policy, as a scan puts them together.
        samples: from `read_manifest`.
        perturbation: one name of `pipeline.evaluation.perturbations`.

    Raises:
        UsageError: the manifest is wrong: a file is missing, or a mask has another size.
    """
    failures: list[ImageError] = []
    images = _images(samples, perturbation, failures)
    for (sample, mask), finding in detector.detect(images):
        if isinstance(finding, ImageError):
            yield finding
        else:
            yield _judge(sample, mask, finding)
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
    except Exception as error:  # as in a scan: no image may end the job
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _judge(sample: Labelled, mask: Mask | None, finding: Finding) -> Judged:
    height, width = finding.logits.shape
    found = np.zeros((height, width), bool) if finding.mask is None else finding.mask
    truth = np.zeros((height, width), bool) if mask is None else mask
    pixels = sweep(upsample(finding.logits, (slice(0, height), slice(0, width))), truth)
    f1, iou = (math.nan, math.nan) if mask is None else f1_and_iou(found, truth)
    return Judged(
        kind=sample.kind,
        forged=mask is not None,
        score_raw=finding.score_raw,
        score=finding.score,
        label=finding.label,
        flagged=finding.manipulated_fraction,
        peak=finding.logits.peak,
        f1=f1,
        iou=iou,
        best_f1=best_f1(pixels),
        pixel_auc=pixel_auc(pixels),
        f1_at=f1_at(pixels, LEVELS),
        flagged_at=flagged_at(pixels, LEVELS),
    )
