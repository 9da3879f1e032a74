"""`prompt-iml runs`: the runs of an output, from the small files of each; no row is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from operator import itemgetter

from prompt_iml.engine.errors import NotFound
from prompt_iml.pipeline.detect.lines import counts_line, print_lines
from prompt_iml.pipeline.logs import printable
from prompt_iml.pipeline.run.folder import Json, Run, read_json
from prompt_iml.pipeline.run.table import run_ids
from prompt_iml.pipeline.settings import RunsSettings
from prompt_iml.pipeline.storage import storage

COUNTS = ("listed", "ok", "failed", "skipped", "codes", "labels", "incomplete")
READING_THREADS = 16


def print_runs(settings: RunsSettings) -> None:
    """Print a line, or an object, for each run, newest first.

    Raises:
        MissingInput: the output holds no run.
        FetchError: it cannot be read.
    """
    output = storage.canonical(settings.output)
    names = run_ids(output)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = list(pool.map(lambda run_id: describe(Run(output, run_id)), names))
    found.sort(key=itemgetter("started"), reverse=True)
    print_lines(map(json.dumps, found) if settings.json_lines else lines(found))


def describe(run: Run) -> Json:
    """Return when a run began (UTC), whether it is complete, its model, inputs and counts.

    It begins when its configuration is written, and no copy keeps that time but one that keeps the
    times of files. The counts are None while the run is not complete.
    """
    uri = f"{run.folder}/config.json"
    config, complete = read_json(uri), bool(run.generations())
    return {
        "run_id": run.run_id,
        "started": storage.modified(uri).isoformat(timespec="seconds"),
        "complete": complete,
        "model": config["model"],
        "inputs": config["inputs"],
        **(_counts(run) if complete else dict.fromkeys(COUNTS)),
    }


def _counts(run: Run) -> Json:
    """Return the counts of a complete run; the manifest, which names all parts, may be large."""
    try:
        counted = read_json(f"{run.folder}/summary.json")
    except NotFound:  # the driver ended before it wrote one
        manifest = read_json(run.manifest_uri)
        incomplete = len(manifest.get("incomplete", {}))
        counted = manifest | manifest["statuses"] | {"incomplete": incomplete}
    return {name: counted.get(name) for name in COUNTS}


def lines(found: Sequence[Json]) -> Iterator[str]:
    """Yield a line for each run, such as `photos  2026-01-02 03:04 UTC  complete  micro@1  ...`."""
    shown = [[printable(run[name], "") for name in ("run_id", "model")] for run in found]
    id_width, model_width = (max(map(len, column)) for column in zip(*shown, strict=True))
    for run, (run_id, model) in zip(found, shown, strict=True):
        started = f"{datetime.fromisoformat(run['started']):%Y-%m-%d %H:%M} UTC"
        begin = f"{run_id:{id_width}}  {started}  "
        if run["complete"]:
            count = run["incomplete"] or 0
            shards = f", {count} shard{'s' * (count != 1)} incomplete" if count else ""
            yield f"{begin}complete    {model:{model_width}}  {counts_line(run)}{shards}"
        else:
            yield f"{begin}unfinished  {model}"
