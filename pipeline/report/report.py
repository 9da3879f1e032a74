"""`prompt-iml report`: one self-contained HTML file for the person who reviews the findings.

Memory does not grow with the table. Only the images shown are read again from their source; one
whose bytes have changed since the scan is not shown.
"""

from __future__ import annotations

import shlex

from prompt_iml.engine.errors import FetchError, MissingInput
from prompt_iml.pipeline.detect.lines import name_of
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.report.originals import key, thumbnails
from prompt_iml.pipeline.report.page import Content, Picture, render
from prompt_iml.pipeline.report.pictures import mask_layer
from prompt_iml.pipeline.report.reasons import Row, believed, reasons_of, sentences
from prompt_iml.pipeline.report.survey import failures_to_show, rows_to_show, take_survey
from prompt_iml.pipeline.run.folder import Json, Run, read_json
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.run.table import only_run, open_results
from prompt_iml.pipeline.settings import ReportSettings
from prompt_iml.pipeline.storage import storage

MADE_BY = ["model", "policy", "prompt_set", "preprocess", "engine"]


def report(settings: ReportSettings) -> Json:
    """Write the report that the settings name, and log the next command; return its URI."""
    named = settings.model_dump(include={"run_id", "path", "limit", "sample", "side"})
    uri = write_report(settings.output, **named)
    output = shlex.quote(name_of(storage.canonical(settings.output)))
    run_id = f" --run-id {settings.run_id}" if settings.run_id else ""
    log(f"next: prompt-iml review {output}{run_id}")
    return {"report": uri}


def write_report(
    output: str,
    *,
    run_id: str | None = None,
    path: str | None = None,
    limit: int = 200,
    sample: int = 24,
    side: int = 640,
) -> str:
    """Write the report of a run, complete or not.

    Args:
        output: folder of the results, as it was given to the scan.
        run_id: run to report; None: the only one.
        path: file to write, local or s3://; None: report.html in `output`.
        limit: maximum number of pictures of the highest scores, and of failures.
        sample: number of random pictures of each label.
        side: longer side of a picture on the page, in pixels.

    Returns:
        The URI of the file.

    Raises:
        MissingInput: the output or the run has no results.
        UsageError: several runs exist and `run_id` is None, or the file cannot be written.
    """
    output = storage.canonical(output)
    target = storage.canonical(path) if path else f"{output}/report.html"
    try:
        with storage.fetching(output):
            content = gather(Run(output, only_run(output, run_id)), limit, sample, side)
    except FetchError as error:
        raise MissingInput(f"no results to report: {error}") from error
    storage.write(target, render(content).encode())
    return target


def gather(run: Run, limit: int, sample: int, side: int) -> Content:
    """Return the content of the report of a run; raises the errors of `open_results`."""
    config = read_json(f"{run.folder}/config.json")
    results = open_results(run)
    policy = config.get("policy", {})  # a run that follows a registry has no policy of its own
    survey = take_survey(results, policy, run_id=run.run_id, limit=limit, sample=sample)
    best, others = rows_to_show(results, survey, limit)
    return Content(
        run_id=run.run_id,
        inputs=config["inputs"],
        made_by=results.head(1, columns=MADE_BY).to_pylist()[0],
        notes=_notes(run, config["model"]),
        survey=survey,
        thresholds=_thresholds(policy),
        rate=_rate(run),
        best=len(best),
        pictures=_pictures(best + others, config, side),
        unscored=failures_to_show(results, survey, limit),
    )


def _pictures(rows: list[Row], config: Json, side: int) -> list[Picture]:
    """Return the rows with what the page shows of each."""
    jpegs, policy = thumbnails(rows, config, side), config.get("policy", {})
    return [
        Picture(
            row=row,
            jpeg=jpegs.get(key(row)),
            layer=_layer(row, side),
            believed=believed(row, policy),
            reasons=sentences(names, row, policy),
        )
        for row, names in zip(rows, reasons_of(rows, policy), strict=True)
    ]


def _layer(row: Row, side: int) -> bytes | None:
    if row["mask_rle"] is None or row["label"] == "authentic":
        return None
    mask = decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])
    return mask_layer(mask, side)


def _thresholds(policy: Json) -> list[float]:
    """Return the scores at which labels change, ascending; those of manipulated differ by size."""
    sizes = [at for _, at in policy.get("manipulated_at_sizes", [])]
    scores = {policy.get("authentic_below"), policy.get("manipulated_at"), *sizes}
    return sorted(score for score in scores if score)


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
