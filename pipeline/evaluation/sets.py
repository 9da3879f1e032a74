"""Evaluation of a set of images: means of its images' metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.errors import ImageError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.protocol import Engine
from prompt_iml.pipeline.evaluation.comparison import MASKED_FRACTION, auc
from prompt_iml.pipeline.evaluation.images import ImageResult, evaluate_images
from prompt_iml.pipeline.evaluation.manifest import read_manifest
from prompt_iml.pipeline.evaluation.metrics import (
    expected_calibration_error,
    mean,
    reliability,
    without_nan,
)


@dataclass(frozen=True, slots=True)
class SetResult:
    """Metrics of a model on one set under one perturbation; a mean over no images is nan.

    Attributes:
        set: name of the set.
        perturbation: name of the perturbation of its images.
        forged, authentic: images evaluated.
        masked: forged images with a mask; pixel metrics are means over these.
        failed: images that could not be decoded or run; no other number includes them.
        f1: pixel F1 at the policy's mask threshold, at native size (of the perturbed image),
            origin form.
        best_f1: the same at the best threshold of each image, chosen with its truth.
        iou: pixel IoU at the policy's mask threshold.
        pixel_auc: of each forged image's pixels (not pooled).
        image_auc: of the score over all images.
        false_positive_rate: share of the authentic images labelled manipulated.
        true_positive_rate: share of the forged images labelled manipulated.
        flagged_rate: share of the authentic images with more than 0.5 % of their pixels masked.
        ece: expected calibration error of the score over 10 bins, with equal priors.
    """

    set: str
    perturbation: str
    forged: int
    masked: int
    authentic: int
    failed: int
    f1: float
    best_f1: float
    iou: float
    pixel_auc: float
    image_auc: float
    false_positive_rate: float
    true_positive_rate: float
    flagged_rate: float
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with None for nan."""
        return without_nan(asdict(self))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SetResult:
        """Restore the result of `to_dict`; raise TypeError on other fields."""
        known: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in fields.items()
        }
        return cls(**known)


def evaluate_set(
    engine: Engine,
    model: Model,
    policy: Policy,
    manifest: Path,
    perturbation: str = "none",
    name: str | None = None,
    limit: int | None = None,
) -> SetResult:
    """Evaluate a model on a set with the detector of a scan.

    Args:
        engine: the model in a runtime, with the prompts to evaluate.
        model: source of the preprocessing.
        policy: calibration and thresholds; may differ from the model's own.
        manifest: see `read_manifest`.
        perturbation: one name of `pipeline.evaluation.perturbations`.
        name: name of the set; default: the result of `set_name`.
        limit: evaluate at most this many images, spread evenly over the manifest.

    Raises:
        UsageError: the manifest or the perturbation is wrong.
    """
    samples = read_manifest(manifest, limit)
    outcomes = list(evaluate_images(Detector(engine, model.view, policy), samples, perturbation))
    results = [each for each in outcomes if isinstance(each, ImageResult)]
    failed = sum(isinstance(each, ImageError) for each in outcomes)
    return summarize_set(results, failed, name or set_name(manifest), perturbation)


def summarize_set(
    results: Sequence[ImageResult], failed: int, name: str, perturbation: str
) -> SetResult:
    """Return the metrics of a set from those of its images."""
    forged = [each for each in results if each.forged]
    authentic = [each for each in results if not each.forged]
    scores = np.array([each.score for each in results])
    truth = np.array([each.forged for each in results], bool)
    return SetResult(
        set=name,
        perturbation=perturbation,
        forged=len(forged),
        masked=sum(not math.isnan(each.f1) for each in forged),
        authentic=len(authentic),
        failed=failed,
        f1=mean([each.f1 for each in forged]),
        best_f1=mean([each.best_f1 for each in forged]),
        iou=mean([each.iou for each in forged]),
        pixel_auc=mean([each.pixel_auc for each in forged]),
        image_auc=auc(np.array([each.score_raw for each in results]), truth),
        false_positive_rate=mean([each.label == "manipulated" for each in authentic]),
        true_positive_rate=mean([each.label == "manipulated" for each in forged]),
        flagged_rate=mean([each.masked > MASKED_FRACTION for each in authentic]),
        ece=expected_calibration_error(reliability(scores, truth)),
    )


def set_name(manifest: Path) -> str:
    """Return the folder name of a `manifest.csv` or `truth.csv`, else the file's stem."""
    generic = manifest.stem in ("manifest", "truth")
    return manifest.absolute().parent.name if generic else manifest.stem
