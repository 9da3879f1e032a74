"""`prompt-iml top`: the images of the highest scores of a run, in constant memory."""

from __future__ import annotations

import json
from datetime import datetime

import pyarrow.dataset as ds

from prompt_iml.pipeline.detect.lines import print_lines, verdict_line
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.report.survey import highest
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.run.table import only_run, open_results
from prompt_iml.pipeline.settings import TopSettings
from prompt_iml.pipeline.storage import storage

COLUMNS = [name for name in SCHEMA.names if name not in ("mask_rle", "heatmap_png")]


def print_top(settings: TopSettings) -> None:
    """Print a verdict line, or an object with the columns of its row, for each image.

    Raises:
        MissingInput: the output or the run has no results.
        UsageError: several runs exist and none is named.
        FetchError: the results cannot be read.
    """
    output = storage.canonical(settings.output)
    run = Run(output, only_run(output, settings.run_id))
    results = open_results(run)
    if settings.label:
        results = results.filter(ds.field("label").isin(settings.label))
    with storage.fetching(output):
        rows = highest(results, settings.limit, COLUMNS)
    if not rows:
        labels = f" with the label {' or '.join(settings.label)}" if settings.label else ""
        log(f"run {run.run_id} has no image{labels}")
    as_json = settings.json_lines
    print_lines(
        json.dumps(row, default=datetime.isoformat) if as_json else verdict_line(row)
        for row in rows
    )
