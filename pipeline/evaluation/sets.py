"""A set of images in one line of numbers."""

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
from prompt_iml.pipeline.evaluation.comparison import FLAGGED_FRACTION, auc
from prompt_iml.pipeline.evaluation.judged import Judged, judge_samples
from prompt_iml.pipeline.evaluation.manifest import read_manifest
from prompt_iml.pipeline.evaluation.measures import (
    expected_calibration_error,
    mean,
    reliability,
    without_nan,
)


@dataclass(frozen=True, slots=True)
class SetResult:
    """A model on one set under one perturbation; a mean over no images is nan.

    Attributes:
        set: name of the set.
        perturbation: name of what was done to its images.
        forged, authentic: images judged.
        masked: forged images that have a mask; all pixel measures are means over these.
        failed: images that could not be decoded or run; they are in no other number.
        f1: pixel F1 at the policy's mask threshold, at native size (of the perturbed image),
            origin form.
        best_f1: the same at the threshold that suits each image best, chosen knowing its truth.
        iou: pixel IoU at the policy's mask threshold.
        pixel_auc: of each forged image's pixels (not pooled).
        image_auc: of the score over all images.
        false_positive_rate: share of the authentic images labelled manipulated.
        true_positive_rate: share of the forged images labelled manipulated.
        flagged_rate: share of the authentic images with more than 0.5 % of their pixels flagged.
        ece: expected calibration error of the score over 10 bins, both classes weighing alike.
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
        """As JSON's types; nan, which JSON does not know, is None."""
        return without_nan(asdict(self))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SetResult:
        """What `to_dict` gave. Raises TypeError on other fields."""
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
    """Run a set through the detector of a scan and hold it against its truth.

    Args:
        engine: the model in a runtime, with the prompts that are to be judged.
        model: how it wants to see images.
        policy: calibration and thresholds; need not be the model's own.
        manifest: see `read_manifest`.
        perturbation: one name of `pipeline.evaluation.perturbations`.
        name: of the set; none given: the manifest's folder, or its stem if not `manifest`.
        limit: at most so many images, spread evenly over the manifest.

    Raises:
        UsageError: the manifest or the perturbation is wrong.
    """
    samples = read_manifest(manifest, limit)
    outcomes = list(judge_samples(Detector(engine, model.view, policy), samples, perturbation))
    judged = [each for each in outcomes if isinstance(each, Judged)]
    failed = sum(isinstance(each, ImageError) for each in outcomes)
    return summarize_set(judged, failed, name or set_name(manifest), perturbation)


def summarize_set(judged: Sequence[Judged], failed: int, name: str, perturbation: str) -> SetResult:
    """The numbers of a set from those of its images."""
    forged = [each for each in judged if each.forged]
    authentic = [each for each in judged if not each.forged]
    scores = np.array([each.score for each in judged])
    truth = np.array([each.forged for each in judged], bool)
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
        image_auc=auc(np.array([each.score_raw for each in judged]), truth),
        false_positive_rate=mean([each.label == "manipulated" for each in authentic]),
        true_positive_rate=mean([each.label == "manipulated" for each in forged]),
        flagged_rate=mean([each.flagged > FLAGGED_FRACTION for each in authentic]),
        ece=expected_calibration_error(reliability(scores, truth)),
    )


def set_name(manifest: Path) -> str:
    """The folder of a `manifest.csv` or `truth.csv`, else the file's stem."""
    generic = manifest.stem in ("manifest", "truth")
    return manifest.absolute().parent.name if generic else manifest.stem
