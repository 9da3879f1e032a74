"""Access to the runs under an output, and to the rows of a run."""

from __future__ import annotations

import fsspec
import pyarrow.dataset as ds

from prompt_iml.engine.errors import MissingInput, NotFound, UsageError
from prompt_iml.pipeline.parser import did_you_mean
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.sources.names import is_hidden
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects


def run_ids(output: str, run_id: str | None = None) -> list[str]:
    """Return the ids of the runs under an output.

    Raises:
        MissingInput: the output has no runs, or `run_id` is not one of them.
        FetchError: the output cannot be read.
    """
    folder = f"{output}/_runs"
    try:
        files = [ref.uri.removeprefix(f"{folder}/") for ref in list_objects(folder)]
    except NotFound:
        files = []
    names = [name.removesuffix("/config.json") for name in files if name.endswith("/config.json")]
    if not names:
        raise MissingInput(f"{output} holds no run: give the --output of a scan")
    if run_id and run_id not in names:
        hint = did_you_mean(run_id, names)
        raise MissingInput(f"{output} holds no run {run_id}{hint}: one of {', '.join(names)}")
    return names


def only_run(output: str, run_id: str | None = None) -> str:
    """Return `run_id`, or the id of the only run under an output.

    Raises:
        MissingInput, FetchError: as `run_ids`.
        UsageError: the output has several runs, and `run_id` is None.
    """
    names = run_ids(output, run_id)
    if not run_id and len(names) > 1:
        raise UsageError(f"{output} holds several runs: add --run-id, one of {', '.join(names)}")
    return run_id or names[0]


def open_results(run: Run) -> ds.Dataset:
    """Open the rows of a run that are committed so far.

    Raises:
        MissingInput: the run has no rows yet.
        FetchError: the output cannot be read.
    """
    manifest = run.manifest()
    if manifest:
        parts = [f"{run.output}/{part['file']}" for part in manifest["parts"]]
    else:
        parts = [ref.uri for ref in list_objects(f"{run.output}/results", is_hidden)]
    filesystem, _ = fsspec.core.url_to_fs(run.output, use_listings_cache=False)
    paths = [uri.partition("://")[2] for uri in parts]
    with storage.fetching(run.output):
        every = ds.dataset(paths, filesystem=filesystem, format="parquet", schema=SCHEMA)
        results = every.filter(ds.field("run_id") == run.run_id)
        if not results.head(1, columns=["run_id"]).num_rows:
            raise MissingInput(f"{run.output} holds no rows of run {run.run_id} yet")
    return results
