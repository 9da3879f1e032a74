"""Comparison of a scan's rows with a known truth.

Per-image pixel F1 and IoU at the scan's own mask threshold, averaged over the forged images; the
share of authentic images with more than 0.5 % of their pixels masked; the AUC of the score over
all. Rows and truth are joined by the sha256 of the image file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import MissingInput, UsageError
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.truth.masks import bright

if TYPE_CHECKING:
    import pyarrow.dataset as ds

Mask = NDArray[np.bool_]
Row = Mapping[str, Any]

MASKED_FRACTION = 0.005
COLUMNS = ["sha256", "score", "mask_rle", "mask_height", "mask_width"]


@dataclass(frozen=True, slots=True)
class Truth:
    """Truth about one image.

    Attributes:
        sha256: sha256 of its file.
        kind: kind of forgery; `authentic` without one.
        mask: image file whose bright pixels (above 127) are forged; None when authentic.
    """

    sha256: str
    kind: str
    mask: Path | None


@dataclass(frozen=True, slots=True)
class KindResult:
    """Localisation on forgeries of one kind: means of per-image values over `images`."""

    kind: str
    images: int
    f1: float
    iou: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of a scan with the truth; a mean over no images is nan.

    Attributes:
        forged, authentic: images compared.
        missing: images of the truth without a scored row; no other number includes them.
        f1, iou: per-image means over the forged images, 0..1.
        kinds: the same for each kind of forgery, sorted by name.
        flagged_rate: share of the authentic images with more than 0.5 % of their pixels masked.
        flagged_fraction: mean share of pixels masked in authentic images.
        auc: area under the ROC curve of the score over all images.
    """

    forged: int
    authentic: int
    missing: int
    f1: float
    iou: float
    kinds: tuple[KindResult, ...]
    flagged_rate: float
    flagged_fraction: float
    auc: float


def read_truth(path: Path) -> list[Truth]:
    """Read a CSV with the columns mask, kind and sha256; paths of masks are relative to it.

    Raises:
        MissingInput: the file does not exist.
        UsageError: a column is missing.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if absent := {"mask", "kind", "sha256"} - set(reader.fieldnames or ()):
            raise UsageError(f"{path}: add the column {', '.join(sorted(absent))}")
        return [
            Truth(row["sha256"], row["kind"], path.parent / row["mask"] if row["mask"] else None)
            for row in reader
        ]


def read_rows(results: ds.Dataset, truth: Sequence[Truth]) -> list[Row]:
    """Return the scored rows of the images in the truth, with the columns `COLUMNS`."""
    import pyarrow.dataset as ds  # late: it takes a third of a second, and few need it

    known = ds.field("sha256").isin([t.sha256 for t in truth])
    scored = results.filter((ds.field("status") == "ok") & known)
    rows: list[Row] = scored.to_table(columns=COLUMNS).to_pylist()
    return rows


def compare(rows: Iterable[Row], truth: Sequence[Truth]) -> Comparison:
    """Compare result rows (status ok, columns `COLUMNS`) with the truth, image by image.

    Raises:
        UsageError: a mask of the truth has another size than the image.
    """
    by_sha256 = {row["sha256"]: row for row in rows}
    scored = [(by_sha256[t.sha256], t) for t in truth if t.sha256 in by_sha256]
    forged = [(t.kind, *_localisation(row, t.mask)) for row, t in scored if t.mask]
    masked = [_mask(row).mean() for row, t in scored if not t.mask]
    kinds = sorted({kind for kind, _, _ in forged})
    return Comparison(
        forged=len(forged),
        authentic=len(masked),
        missing=len(truth) - len(scored),
        f1=_mean([f1 for _, f1, _ in forged]),
        iou=_mean([iou for _, _, iou in forged]),
        kinds=tuple(_kind_result(k, [(f, i) for kind, f, i in forged if kind == k]) for k in kinds),
        flagged_rate=_mean([fraction > MASKED_FRACTION for fraction in masked]),
        flagged_fraction=_mean(masked),
        auc=auc(
            np.array([row["score"] for row, _ in scored]),
            np.array([t.mask is not None for _, t in scored], bool),
        ),
    )


def f1_and_iou(found: Mask, truth: Mask) -> tuple[float, float]:
    """Return pixel F1 and IoU of two (H, W) masks; nan when both are empty."""
    both, either = int((found & truth).sum()), int((found | truth).sum())
    if not either:
        return math.nan, math.nan
    return 2 * both / (both + either), both / either


def auc(scores: NDArray[np.floating[Any]], positive: Mask) -> float:
    """Return the area under the ROC curve (Mann-Whitney); ties count half, nan for one class."""
    high, low = scores[positive], np.sort(scores[~positive])
    if not len(high) or not len(low):
        return math.nan
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / 2 / len(low))


def table(comparison: Comparison) -> str:
    """Return the numbers as a table."""
    c = comparison
    lines = [f"{'forged':<12}{'images':>8}{'pixel F1':>10}{'IoU':>8}"]
    lines += [f"{k.kind:<12}{k.images:>8}{k.f1:>10.3f}{k.iou:>8.3f}" for k in c.kinds]
    lines += [
        f"{'all':<12}{c.forged:>8}{c.f1:>10.3f}{c.iou:>8.3f}",
        "",
        f"authentic   {c.authentic:>8} images, {c.flagged_rate:.0%} of them with more than "
        f"{MASKED_FRACTION:.1%} of the pixels masked (mean {c.flagged_fraction:.2%})",
        f"image AUC   {c.auc:>8.3f}",
    ]
    if c.missing:
        lines.append(f"no score    {c.missing:>8} images, not in the numbers above")
    return "\n".join(lines)


def _localisation(row: Row, mask: Path) -> tuple[float, float]:
    with Image.open(mask) as image:
        truth = bright(image)
    found = _mask(row)
    if found.shape != truth.shape:
        raise UsageError(f"{mask}: {truth.shape} pixels, but its image has {found.shape}")
    return f1_and_iou(found, truth)


def _mask(row: Row) -> Mask:
    shape = row["mask_height"], row["mask_width"]
    return decode_mask(row["mask_rle"], *shape)


def _kind_result(kind: str, values: Sequence[tuple[float, float]]) -> KindResult:
    f1, iou = zip(*values, strict=True)
    return KindResult(kind, len(values), _mean(f1), _mean(iou))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
