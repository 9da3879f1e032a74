"""Evaluation of a set of images: means of its images' metrics."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.protocol import Engine
from prompt_iml.pipeline.evaluation.comparison import MASKED_FRACTION, auc
from prompt_iml.pipeline.evaluation.images import Evaluation, ImageResult, evaluate_images
from prompt_iml.pipeline.evaluation.metrics import (
    expected_calibration_error,
    interval,
    mean,
    reliability,
    without_nan,
)
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Faults, check_images, read_labels

_EXTENSIONS = re.compile(r"(\.(csv|tsv|txt|json|jsonl|parquet|gz))+$")
SIZES = (0.2, 1.0, 4.0, 13.0)  # megapixels: where one size class ends and the next begins


@dataclass(frozen=True, slots=True)
class Counts:
    """Labels and masks of the images of one truth in one size class.

    Attributes:
        images: number of images.
        authentic, uncertain, manipulated: images with this label.
        masked: images with a mask.
    """

    images: int
    authentic: int
    uncertain: int
    manipulated: int
    masked: int

    @classmethod
    def of(cls, results: Sequence[ImageResult]) -> Counts:
        """Count the images."""
        labels = Counter(each.label for each in results)
        masked = sum(bool(each.masked > 0) for each in results)
        return cls(
            len(results),
            labels["authentic"],
            labels["uncertain"],
            labels["manipulated"],
            masked,
        )

    def share(self, name: str) -> float:
        """Return the share of the images counted as `name`; nan without images."""
        return getattr(self, name) / self.images if self.images else math.nan


@dataclass(frozen=True, slots=True)
class SizeResult:
    """Labels and masks of the images of one size.

    Attributes:
        size: name of the size class, as of `size_class`, or `all`.
        of_authentic, of_forged: counts of the authentic and of the forged images.
    """

    size: str
    of_authentic: Counts
    of_forged: Counts

    @property
    def false_positive_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the share of the authentic images labelled manipulated."""
        return interval(self.of_authentic.manipulated, self.of_authentic.images)

    @property
    def true_positive_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the share of the forged images labelled manipulated."""
        return interval(self.of_forged.manipulated, self.of_forged.images)

    @classmethod
    def of(cls, size: str, results: Sequence[ImageResult]) -> SizeResult:
        """Count the images of a size."""
        forged = [each for each in results if each.forged]
        return cls(
            size, Counts.of([each for each in results if not each.forged]), Counts.of(forged)
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SizeResult:
        """Restore the fields of `asdict`."""
        return cls(fields["size"], Counts(**fields["of_authentic"]), Counts(**fields["of_forged"]))


def size_class(megapixels: float) -> int:
    """Return the number of an image's size class, 0 to `len(SIZES)`."""
    return int(np.digitize(megapixels, SIZES))


def size_name(number: int) -> str:
    """Return the name of a size class in megapixels: `under 0.2`, `0.2-1`, ..., `above 13`."""
    if number == 0:
        return f"under {SIZES[0]:g}"
    if number == len(SIZES):
        return f"above {SIZES[-1]:g}"
    return f"{SIZES[number - 1]:g}-{SIZES[number]:g}"


def by_size(results: Sequence[ImageResult]) -> tuple[SizeResult, ...]:
    """Return the counts over all images, and those of each size class that has images."""
    classes = [size_class(each.statistics.megapixels) for each in results]
    sizes = [
        SizeResult.of(
            size_name(number),
            [each for each, c in zip(results, classes, strict=True) if c == number],
        )
        for number in sorted(set(classes))
    ]
    return (SizeResult.of("all", results), *sizes)


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
        sizes: labels and masks of all images, then by size class; empty in the results of earlier
            versions.
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
    sizes: tuple[SizeResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with None for nan."""
        return without_nan(asdict(self))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SetResult:
        """Restore the result of `to_dict`; raise TypeError on other fields."""
        known: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in fields.items()
        }
        known["sizes"] = tuple(SizeResult.from_dict(each) for each in fields.get("sizes", ()))
        return cls(**known)


def evaluate_set(
    engine: Engine,
    model: Model,
    policy: Policy,
    truth: str | Path,
    perturbation: str = "none",
    limit: int | None = None,
) -> SetResult:
    """Evaluate a model on a set with the detector of a scan.

    Args:
        engine: the model in a runtime, with the prompts to evaluate.
        model: source of the preprocessing.
        policy: calibration and thresholds; may differ from the model's own.
        truth: see `read_labels`.
        perturbation: one name of `pipeline.evaluation.perturbations`.
        limit: evaluate at most this many images, spread evenly over the truth.

    Raises:
        UsageError: the truth or the perturbation is wrong.
    """
    labels = read_labels(truth, limit)
    check_images(labels, Faults(str(truth)))
    detector = Detector(engine, model.view, policy)
    evaluations = list(evaluate_images(detector, labels, perturbation))
    return summarize(evaluations, set_name(truth), perturbation)


def summarize(evaluations: Sequence[Evaluation], name: str, perturbation: str) -> SetResult:
    """Return the metrics of a set from the evaluations of its images."""
    results = [e.outcome for e in evaluations if isinstance(e.outcome, ImageResult)]
    return summarize_set(results, len(evaluations) - len(results), name, perturbation)


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
        sizes=by_size(results),
    )


def set_name(truth: str | Path) -> str:
    """Return the name of a set: of its folder, or of its file without extensions.

    A `manifest.csv` or `truth.csv` has the name of its folder.
    """
    return _parts(truth)[-1]


def set_names(truths: Iterable[str]) -> dict[str, str]:
    """Return the name of each set; equal names get as many of their folders as tell them apart."""
    parts = {truth: _parts(truth) for truth in truths}
    names = {truth: each[-1] for truth, each in parts.items()}
    for length in range(2, max(map(len, parts.values()), default=0) + 1):
        counts = Counter(names.values())
        alike = [truth for truth, name in names.items() if counts[name] > 1]
        names |= {truth: "/".join(parts[truth][-length:]) for truth in alike}
    return names


def _parts(truth: str | Path) -> tuple[str, ...]:
    """Return the folders of a set and its name."""
    path = PurePosixPath(storage.canonical(str(truth)).partition("://")[2].lstrip("/"))
    stem = _EXTENSIONS.sub("", path.name)
    folders = path.parent.parts
    return folders if stem in ("manifest", "truth") and folders else (*folders, stem)
