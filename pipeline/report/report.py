"""`prompt-iml report`: one self-contained HTML file for the person who reviews the findings.

The rows are streamed twice, once to count them and to find the lowest score shown, once for the
rows from that score up, so memory does not grow with the table. Only the images shown are read
again from their source; one whose bytes have changed since the scan is not shown.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from prompt_iml.engine.errors import DecodeError, FetchError, MissingInput, PromptImlError
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.report.page import LABELS, Content, Picture, Row, render
from prompt_iml.pipeline.report.pictures import mask_layer, thumbnail
from prompt_iml.pipeline.run.folder import Json, Run, read_json
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.run.schema import image_id
from prompt_iml.pipeline.run.table import only_run, open_results
from prompt_iml.pipeline.settings import ReportSettings
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit

BINS = 20
THUMBNAIL_SIDE = 480
READ_THREADS = 8

PICTURED = [
    "image_id", "uri", "member", "content_id", "sha256", "size_bytes", "media_type",
    "width", "height", "exif_orientation", "jpeg_quality", "score", "label", "threshold",
    "manipulated_fraction", "regions", "mask_rle", "mask_height", "mask_width", "mask_confidence",
]  # fmt: skip
UNSCORED = ["uri", "member", "status", "error_stage", "error_code", "error_message"]
Key = tuple[str, str]  # image_id and sha256

MADE_BY = ["model", "policy", "prompt_set", "preprocess", "engine"]


@dataclass(slots=True)
class Survey:
    """Counts of all rows of a run, from one pass.

    Attributes:
        statuses, codes, labels: images by status, by error code, by label.
        histogram: (3, BINS) images by label, as in LABELS, and score from 0 to 1.
        best: the highest scores, as many as pictures are shown.
        span: times of the first and the last row; None without rows.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    histogram: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(LABELS), BINS), np.int64)
    )
    best: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    span: tuple[datetime, datetime] | None = None


def report(settings: ReportSettings) -> Json:
    """Write the report that the settings name; return its URI as `report`."""
    named = settings.model_dump(include={"run_id", "path", "limit"})
    return {"report": write_report(settings.output, **named)}


def write_report(
    output: str, *, run_id: str | None = None, path: str | None = None, limit: int = 200
) -> str:
    """Write the report of a run, complete or not.

    Args:
        output: folder of the results, as it was given to the scan.
        run_id: run to report; None: the only one.
        path: file to write, local or s3://; None: report.html in `output`.
        limit: maximum number of pictures, and of failures.

    Returns:
        The URI of the file.

    Raises:
        MissingInput: the output or the run has no results.
        UsageError: several runs exist and `run_id` is None, or the file cannot be written.
    """
    output = storage.canonical(output)
    target = storage.canonical(path) if path else f"{output}/report.html"
    try:
        content = gather(Run(output, only_run(output, run_id)), limit)
    except FetchError as error:
        raise MissingInput(f"no results to report: {error}") from error
    storage.write(target, render(content).encode())
    return target


def gather(run: Run, limit: int) -> Content:
    """Return the content of the report of a run; raises the errors of `open_results`."""
    config = read_json(f"{run.folder}/config.json")
    results = open_results(run)
    survey = take_survey(results, limit)
    unscored = results.filter(ds.field("status") != "ok").head(limit, columns=UNSCORED)
    policy = config.get("policy", {})  # a run that follows a registry has no policy of its own
    return Content(
        run_id=run.run_id,
        inputs=config["inputs"],
        made_by=results.head(1, columns=MADE_BY).to_pylist()[0],
        notes=_notes(run, config["model"]),
        statuses=survey.statuses,
        codes=survey.codes,
        labels=survey.labels,
        histogram=survey.histogram,
        thresholds=[policy[at] for at in ("authentic_below", "manipulated_at") if policy.get(at)],
        span=survey.span,
        rate=_rate(run),
        pictures=pictures(best_rows(results, survey.best, limit), config),
        unscored=unscored.to_pylist(),
    )


def take_survey(results: ds.Dataset, limit: int) -> Survey:
    """Count the rows in one pass and keep the `limit` highest scores."""
    survey = Survey()
    columns = ["status", "error_code", "label", "score", "scanned_at"]
    for batch in results.to_batches(columns=columns, cache_metadata=False):
        if not batch.num_rows:
            continue
        _count(survey.statuses, batch["status"])
        _count(survey.codes, batch["error_code"])
        _count(survey.labels, batch["label"])
        for row, label in enumerate(LABELS):
            scores = batch.filter(pc.equal(batch["label"], label))["score"]
            survey.histogram[row] += np.histogram(scores.to_numpy(False), BINS, (0, 1))[0]
        scores = batch["score"].drop_null().to_numpy(False)
        survey.best = np.sort(np.concatenate([survey.best, scores]))[::-1][:limit]
        times = [*(survey.span or ()), *pc.min_max(batch["scanned_at"]).as_py().values()]
        survey.span = min(times), max(times)
    return survey


def _count(counter: Counter[str], column: pa.Array) -> None:
    for pair in pc.value_counts(column.drop_null()).to_pylist():
        counter[pair["values"]] += pair["counts"]


def best_rows(results: ds.Dataset, best: NDArray[np.float32], limit: int) -> list[Row]:
    """Return the rows of the highest scores, highest first; equal scores by image_id."""
    if not len(best):
        return []
    good = results.filter(ds.field("score") >= pa.scalar(best[-1], pa.float32()))
    order = [("score", "descending"), ("image_id", "ascending")]
    top: list[pa.RecordBatch] = []
    for batch in good.to_batches(columns=PICTURED, cache_metadata=False):
        if batch.num_rows:
            table = pa.Table.from_batches([*top, batch]).sort_by(order).slice(0, limit)
            top = table.combine_chunks().to_batches()
    return [row for batch in top for row in batch.to_pylist()]


def pictures(rows: list[Row], config: Json) -> list[Picture]:
    """Return the rows with thumbnails of the images that have not changed since the scan."""
    groups: defaultdict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        groups[None if row["member"] is None else row["uri"]].append(row)
    limits = DecodeLimits(max_pixels=config["max_pixels"])
    jpegs: dict[Key, bytes] = {}
    for shard, of_shard in groups.items():
        samples = _read_shard(shard, config) if shard else _read_objects(of_shard, config)
        with suppress(PromptImlError):  # the shard was removed
            for key, data in find(samples, {_key(row) for row in of_shard}):
                with suppress(DecodeError):  # the scan had another version of the decoder
                    jpegs[key] = thumbnail(decode(data, limits).image.pixels, THUMBNAIL_SIDE)
    return [Picture(row, jpegs.get(_key(row)), _layer(row)) for row in rows]


def find(samples: Iterable[Sample], keys: set[Key]) -> Iterator[tuple[Key, bytes]]:
    """Yield the samples that `keys` name, by name and content; stop reading after the last."""
    left, names = set(keys), {name for name, _ in keys}
    for sample in samples:
        member = None if sample.member is None else storage.display_name(sample.member)
        name = image_id(storage.display_name(sample.uri), member)
        if name in names and sample.data is not None:
            key = name, hashlib.sha256(sample.data).hexdigest()
            if key in left:
                left.remove(key)
                yield key, sample.data
        if not left:
            return


def _key(row: Row) -> Key:
    return row["image_id"], row["sha256"]


def _read_objects(rows: list[Row], config: Json) -> Iterator[Sample]:
    objects = tuple(ObjectRef(row["uri"]) for row in rows)
    return _read([Unit("objects", objects[0].uri, -1, objects=objects)], config)


def _read_shard(uri: str, config: Json) -> Iterator[Sample]:
    units = list_units(
        [uri],
        images_per_unit=config["images_per_unit"],
        format="auto",
        image_column=config["image_column"],
        limit=None,
    )
    return _read(units, config)


def _read(units: Iterable[Unit], config: Json) -> Iterator[Sample]:
    for unit in units:
        most = config["max_object_bytes"]
        yield from read_unit(unit, max_object_bytes=most, threads=READ_THREADS)


def _layer(row: Row) -> bytes | None:
    if row["mask_rle"] is None or row["label"] == "authentic":
        return None
    mask = decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])
    return mask_layer(mask, THUMBNAIL_SIDE)


def _notes(run: Run, model: str) -> list[str]:
    notes = []
    if model.endswith("@untrained"):
        notes.append(f"{model} is not trained: scores and masks mean nothing yet.")
    if run.manifest() is None:
        notes.append("The scan is not complete: this report covers its results so far.")
    return notes


def _rate(run: Run) -> float | None:
    uri = f"{run.folder}/summary.json"
    summary = read_json(uri) if storage.exists(uri) else {}
    scanned, seconds = summary.get("scanned_now"), summary.get("seconds")
    return scanned / seconds if scanned and seconds else None
