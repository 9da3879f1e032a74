"""`prompt-iml compact`: merge the many small parts of a complete run into few files.

A compaction takes at most `STEPS` steps a run. Each writes some merged files, then creates the next
generation of the manifest, which names them in place of their source parts, and then removes those
parts. Creating a generation is an atomic swap: of several compactions that work on the same
generation one wins, and the others continue from its result.

The names alone decide which files are obsolete, so a killed compaction needs no recovery. A merged
file carries the generation for which it was made, and no later generation can be the first to name
it: if that generation does not name the file, none ever will. A part that the scan's manifest names
and the current one does not was merged. `sweep` removes both kinds whenever a compaction starts.

Readers that use the manifest see every row once, before and after each swap. A reader that holds an
older generation has `grace` seconds to finish; later, a removed part is an error, never other rows,
and reading the manifest again resolves it. Readers that glob results/ see the rows of one step,
about a tenth of the run, twice while the step runs, because no store removes and creates files in
one operation. The duplicates are equal in every column, so `SELECT DISTINCT ON (run_id, image_id)`
is exact. A glob misses both copies only if its listing takes longer than the merge, the swap and
the grace period together. A file removed after it was listed is an error here too.

Known limit: a scan of the same run that began before the run was complete, for example by a driver
that was believed dead, may create merged parts again. The manifest does not name them; `verify`
reports them, and the next compaction removes them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from prompt_iml.engine.errors import FetchError, NotFound, UsageError
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json, Run, encode, read_json
from prompt_iml.pipeline.run.schema import merge_parts, read_summary
from prompt_iml.pipeline.run.table import run_ids
from prompt_iml.pipeline.settings import CompactSettings
from prompt_iml.pipeline.sources.names import is_hidden
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects

STEPS = 10  # per run; more write more manifests, fewer let a glob see more rows twice
REMOVING_THREADS = 16


def compact(settings: CompactSettings) -> Json:
    """Merge the parts of one run, or of every run that is complete.

    Returns:
        Number of parts before and after, over these runs.

    Raises:
        MissingInput: the run does not exist, or there is no run at all.
        UsageError: the named run is not complete, a part is missing or damaged, or the output
            cannot be read or written.
    """
    output = storage.canonical(settings.output)
    every = run_ids(output, settings.run_id)
    before = after = 0
    for run_id in [settings.run_id] if settings.run_id else every:
        run = Run(output, run_id)
        manifest = run.manifest()
        if manifest is None and settings.run_id:
            raise UsageError(f"run {run_id} is not complete: finish it first, by its scan command")
        if manifest is None:
            log(f"run {run_id} is not complete: left as it is")
            continue
        before += len(manifest["parts"])
        try:
            after += len(compact_run(run, settings.target_size, settings.grace)["parts"])
        except FetchError as error:
            raise UsageError(f"cannot read {error}") from error
    return {"output": output, "parts_before": before, "parts": after}


def compact_run(run: Run, target_bytes: int, grace: float = 0) -> Json:
    """Merge the parts of a complete run.

    Files merged to this target size, or a larger one, stay as they are: a second compaction
    changes nothing.

    Args:
        run: complete run.
        target_bytes: maximum bytes of the parts that are merged into one file.
        grace: seconds between a swap and the removal of the replaced parts.

    Returns:
        The current manifest.

    Raises:
        UsageError: a part is missing or damaged.
        FetchError: the output cannot be read.
    """
    sweep(run)
    most = 0
    while True:
        manifest = _current(run)
        groups = list(_groups(manifest["parts"], target_bytes))
        if not groups:
            return manifest
        most = most or -(-len(groups) // STEPS)
        if _step(run, manifest, groups[:most], target_bytes):
            time.sleep(grace)
        sweep(run)


def sweep(run: Run) -> None:
    """Remove replaced parts and merged files without use; the module's docstring has the proof."""
    manifest = _current(run)
    generation = manifest.get("generation", 0)
    if not generation:
        return
    kept = {part["file"] for part in manifest["parts"]}
    merged = {part["file"] for part in read_json(run.manifest_uri)["parts"]} - kept

    def is_waste(file: str) -> bool:
        made_for = _generation_of(run, file)
        return file in merged or (0 < made_for <= generation and file not in kept)

    listed = (ref.uri for ref in list_objects(f"{run.output}/results", is_hidden))
    waste = [uri for uri in listed if is_waste(uri.removeprefix(f"{run.output}/"))]
    with ThreadPoolExecutor(REMOVING_THREADS) as pool:
        list(pool.map(storage.remove, waste))


def _step(run: Run, manifest: Json, groups: list[list[Json]], target_bytes: int) -> bool:
    """Merge some groups of parts and swap the manifest; return whether this call swapped it."""
    generation = manifest.get("generation", 0) + 1
    try:
        made = [_merge(run, group, generation, target_bytes) for group in groups]
    except NotFound as error:
        if _current(run).get("generation", 0) >= generation:  # another compaction removed it
            return False
        raise UsageError(f"{error}: run prompt-iml verify to see the fix") from error
    merged = {part["file"] for group in groups for part in group}
    parts = [part for part in manifest["parts"] if part["file"] not in merged] + made
    swapped = manifest | {
        "generation": generation,
        "parts": sorted(parts, key=lambda part: str(part["file"])),
    }
    if not storage.create_once(run.generation_uri(generation), encode(swapped)):
        return False
    log(f"run {run.run_id}: merged {len(merged):,} parts into {len(made):,}; {len(parts):,} in all")
    return True


def _merge(run: Run, group: list[Json], generation: int, target_bytes: int) -> Json:
    """Write the merged file of a group, unless it exists; return its entry in the manifest."""
    sources = "".join(part["sha256"] for part in group)
    digest = hashlib.sha256(sources.encode()).hexdigest()[:16]
    file = f"{_prefix(run)}{generation:06d}-{digest}.parquet"
    uri = f"{run.output}/{file}"
    try:
        payload = merge_parts(_read(run, part) for part in group)
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"cannot merge parts of run {run.run_id}: {error}") from error
    if not storage.create_once(uri, payload):
        payload = storage.read_bytes(uri)  # another version of pyarrow may have written other bytes
    return {
        "file": file,
        "rows": read_summary(payload)["rows"],
        "size_bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "target_bytes": target_bytes,
    }


def _read(run: Run, part: Json) -> bytes:
    """Read a part and check its sha256, so that merging cannot hide damage."""
    uri = f"{run.output}/{part['file']}"
    payload = storage.read_bytes(uri)
    if hashlib.sha256(payload).hexdigest() != part["sha256"]:
        fault = "has another sha256 than the manifest names: run prompt-iml verify to see the fix"
        raise UsageError(f"{storage.display_name(uri)} {fault}")
    return payload


def _groups(parts: list[Json], target_bytes: int) -> Iterator[list[Json]]:
    """Yield groups of neighbouring parts that are merged into one file each."""
    group: list[Json] = []
    size = 0
    for part in parts:
        if part.get("target_bytes", 0) >= target_bytes or part["size_bytes"] >= target_bytes:
            continue
        if group and size + part["size_bytes"] > target_bytes:
            if len(group) > 1:
                yield group
            group, size = [], 0
        group.append(part)
        size += part["size_bytes"]
    if len(group) > 1:
        yield group


def _current(run: Run) -> Json:
    manifest = run.manifest()
    assert manifest is not None, "a complete run stays complete"
    return manifest


def _prefix(run: Run) -> str:
    """Return the prefix of the names of a run's merged files."""
    return f"results/part-{hashlib.sha256(run.run_id.encode()).hexdigest()[:12]}-g"


def _generation_of(run: Run, file: str) -> int:
    """Return the generation for which a file was merged; 0: not a merged file of this run."""
    named = re.fullmatch(rf"{_prefix(run)}(\d{{6,}})-[0-9a-f]{{16}}\.parquet", file)
    return int(named[1]) if named else 0
