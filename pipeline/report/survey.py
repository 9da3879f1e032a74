"""Survey of a run's rows: counts of all, and the choice of those that the page shows.

All rows are read once with few columns. The rows to show are read a second time, with all columns
and from the files that contain them, so memory does not grow with the table.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from prompt_iml.pipeline.report.reasons import NEEDED, Row, reasons

LABELS = ("manipulated", "uncertain", "authentic")
BINS = 40
ROWS_AT_ONCE = 65_536

FILE = "__filename"  # Arrow's name for the file that a row comes from
_COUNTED = ["image_id", "status", "error_code", "score", "scanned_at", *NEEDED, FILE]
_PICTURED = [
    "image_id", "uri", "member", "content_id", "sha256", "size_bytes", "media_type",
    "exif_orientation", "score", "manipulated_fraction", "regions", "mask_rle", "mask_height",
    "mask_width", "mask_confidence", "exif_make", "exif_model", "exif_software", "exif_taken",
    "digital_source_type", "has_c2pa", "c2pa_signer", *NEEDED,
]  # fmt: skip
_UNSCORED = [
    "image_id", "uri", "member", "status", "error_stage", "error_code", "error_message",
]  # fmt: skip
_BEST = [("score", "descending"), ("image_id", "ascending")]
_DRAWN = [("before", "ascending"), ("image_id", "ascending")]
_KEPT = ["image_id", "score", "before", FILE]


@dataclass(slots=True)
class Survey:
    """Counts of all rows, and which rows to show.

    Attributes:
        statuses, codes, labels, reasons: images by status, by error code, by label, and by
            reason of the label `uncertain`; an image may have several reasons.
        histogram: (3, BINS) images by label, as in LABELS, and score from 0 to 1.
        span: times of the first and the last row; None without rows.
        best: the rows of the highest scores, highest first; equal scores by image_id.
        samples: random rows of each label.
        failures: the first rows of each error code that failed or were skipped.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    histogram: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(LABELS), BINS), np.int64)
    )
    span: tuple[datetime, datetime] | None = None
    best: pa.Table | None = None
    samples: dict[str, pa.Table] = field(default_factory=dict)
    failures: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def sampled(self) -> set[str]:
        """The image_ids of the random samples."""
        return {name for rows in self.samples.values() for name in rows["image_id"].to_pylist()}


def take_survey(
    results: ds.Dataset, policy: Row, *, run_id: str, limit: int, sample: int
) -> Survey:
    """Count all rows, and select `limit` of the highest scores and `sample` random ones a label.

    Of each error code `limit` are selected as well.

    An image_id is a hash, so the ids that follow a hash of the run's id are a random sample, and
    the same one each time.
    """
    survey, start = Survey(), hashlib.sha256(run_id.encode()).hexdigest()[:32]
    for rows in batches(results, _COUNTED):
        _count(survey, rows, policy)
        _keep_failures(survey, rows, limit)
        scored = rows.filter(pc.is_valid(rows["score"]))
        before = pc.cast(pc.less(scored["image_id"], start), pa.int8())
        scored = scored.append_column("before", before)
        survey.best = first_rows(survey.best, scored.select(_KEPT), limit, _BEST)
        for row, label in enumerate(LABELS):
            of_label = scored.filter(pc.equal(scored["label"], label))
            survey.histogram[row] += np.histogram(of_label["score"].to_numpy(), BINS, (0, 1))[0]
            drawn = of_label.select(_KEPT)
            survey.samples[label] = first_rows(survey.samples.get(label), drawn, sample, _DRAWN)
    return survey


def highest(results: ds.Dataset, limit: int, columns: list[str]) -> list[Row]:
    """Return columns of the rows with the highest scores, highest first; equal ones by image_id."""
    best: pa.Table | None = None
    for rows in batches(results, ["image_id", "score", FILE]):
        best = first_rows(best, rows.filter(pc.is_valid(rows["score"])), limit, _BEST)
    if best is None:
        return []
    found: list[Row] = _rows(results, best, columns).sort_by(_BEST).to_pylist()
    return found[:limit]


def rows_to_show(results: ds.Dataset, survey: Survey, limit: int) -> tuple[list[Row], list[Row]]:
    """Return the rows of the highest scores, highest first, and the sampled rows among the rest."""
    if survey.best is None:
        return [], []
    chosen = pa.concat_tables([survey.best, *survey.samples.values()])
    rows, sampled = _rows(results, chosen, _PICTURED).sort_by(_BEST).to_pylist(), survey.sampled
    return rows[:limit], [row for row in rows[limit:] if row["image_id"] in sampled]


def failures_to_show(results: ds.Dataset, survey: Survey, limit: int) -> list[Row]:
    """Return rows that failed or were skipped; of no error code fewer, while it has more."""
    kept = survey.failures.values()
    places = range(max((rows.num_rows for rows in kept), default=0))
    chosen = [rows.slice(place, 1) for place in places for rows in kept if place < rows.num_rows]
    if not chosen[:limit]:
        return []
    rows: list[Row] = _rows(results, pa.concat_tables(chosen[:limit]), _UNSCORED).to_pylist()
    return rows[:limit]


def pictured(results: ds.Dataset, chosen: pa.Table, more: list[str]) -> list[Row]:
    """Return the rows of the chosen image_ids (with their `FILE`), in any order, with the columns
    that a picture is shown with and some more."""
    rows: list[Row] = _rows(results, chosen, [*_PICTURED, *more]).to_pylist()
    return rows


def _rows(results: ds.Dataset, chosen: pa.Table, columns: list[str]) -> pa.Table:
    """Return the rows of the chosen image_ids, from the files that contain them."""
    files = sorted(set(chosen[FILE].to_pylist()))
    few = ds.dataset(files, results.schema, filesystem=results.filesystem, format="parquet")
    return few.to_table(columns, pc.field("image_id").isin(pc.unique(chosen["image_id"])))


def batches(results: ds.Dataset, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows as tables of some `ROWS_AT_ONCE`: parts may be small, and each step costs."""
    waiting: list[pa.RecordBatch] = []
    for batch in results.to_batches(columns=columns, cache_metadata=False):
        waiting.append(batch)
        if sum(each.num_rows for each in waiting) >= ROWS_AT_ONCE:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if any(each.num_rows for each in waiting):
        yield pa.Table.from_batches(waiting)


def first_rows(
    kept: pa.Table | None, rows: pa.Table, count: int, order: list[tuple[str, str]]
) -> pa.Table:
    """Return the first `count` of the rows kept so far and new ones, in an order."""
    rows = pa.concat_tables([kept, rows]) if kept is not None else rows
    return rows.take(pc.select_k_unstable(rows, count, order)) if count else rows.slice(0, 0)


def _keep_failures(survey: Survey, rows: pa.Table, count: int) -> None:
    rows = rows.filter(pc.not_equal(rows["status"], "ok"))
    codes = pc.coalesce(rows["error_code"], rows["status"])
    for code in pc.unique(codes).to_pylist():
        of_code = rows.filter(pc.equal(codes, code)).select(["image_id", FILE])
        kept = [survey.failures[code]] if code in survey.failures else []
        survey.failures[code] = pa.concat_tables([*kept, of_code]).slice(0, count)


def _count(survey: Survey, rows: pa.Table, policy: Row) -> None:
    for counter, column in (
        (survey.statuses, "status"),
        (survey.codes, "error_code"),
        (survey.labels, "label"),
    ):
        for pair in pc.value_counts(rows[column].drop_null()).to_pylist():
            counter[pair["values"]] += pair["counts"]
    for name, rule in reasons(rows, policy).items():
        survey.reasons[name] += pc.sum(rule).as_py() or 0
    times = [*(survey.span or ()), *pc.min_max(rows["scanned_at"]).as_py().values()]
    survey.span = min(times), max(times)
