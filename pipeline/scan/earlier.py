"""`--retry-failed` and `--skip-scanned`: scans that continue an earlier, complete run.

Both read the plan of the earlier run, one file at a time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.dataset as ds

from prompt_iml.engine.errors import EmptySource, FetchError, MissingInput, UsageError
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.plan import read_plan, waves
from prompt_iml.pipeline.run.table import open_results, run_ids
from prompt_iml.pipeline.scan.rows import known_codes
from prompt_iml.pipeline.sources.packing import limited, objects_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.digests import Digests
from prompt_iml.pipeline.units import ObjectRef, Unit, unit_from_json

UNITS_AT_ONCE = 1000

Failed = dict[str, dict[str | None, str]]
"""Error stages of failed rows, by URI and member; member None: the object or shard itself."""


def complete_run(output: str, run_id: str) -> tuple[Run, Json]:
    """Return a complete run, and its configuration.

    Raises:
        MissingInput: the run does not exist.
        UsageError: the run is not complete.
    """
    run = Run(output, run_id)
    config = run.config()
    if config is None:
        raise MissingInput(f"{output} holds no run {run_id}: one of {', '.join(run_ids(output))}")
    if run.manifest() is None:
        raise UsageError(f"run {run_id} is not complete: finish it first, by its scan command")
    return run, config


def check_retry(run: Run, codes: Sequence[str]) -> None:
    """Check in the manifest of a complete run that there is something to retry.

    Raises:
        EmptySource: no row failed, or none with these codes.
        UsageError: a code is not that of a failure.
    """
    failing = sorted(code for code, status in known_codes().items() if code and status == "failed")
    if unknown := set(codes) - set(failing):
        raise UsageError(
            f"--retry-codes {unknown.pop()} is no code of a failure: one of {', '.join(failing)}"
        )
    manifest = run.manifest() or {"codes": {}}
    if not set(codes or failing) & set(manifest["codes"]):
        by = f" by {', '.join(codes)}" if codes else ""
        raise EmptySource(f"run {run.run_id} has no row that failed{by}: nothing to retry")


def retry_units(
    run: Run,
    codes: Sequence[str],
    *,
    images_per_unit: int,
    limit: int | None,
    trust_lists: bool = False,
) -> Iterator[Unit]:
    """Yield units of exactly the inputs that failed in a complete run.

    Plain objects are looked up again and fetched as they are now. For a member of a tar or a row of
    a Parquet file, the shard is streamed again and everything else in it is dropped. Where reading
    the shard failed (stage `fetch`: it is missing or truncated), its unit is read whole, the tar or
    the range of row groups, because its other images are unknown.

    Memory holds the failed rows, about 300 bytes each: 3 GB for 10^7 of them.

    Args:
        run: complete run.
        codes: error codes to retry; empty for all.
        images_per_unit: plain objects in a unit.
        limit: maximum number of images to retry; None for all.
        trust_lists: see `read_list`; without it, refused entries of lists are refused again.

    Raises:
        UsageError: the run cannot be read, or its plan does not name an input of its rows.
    """
    try:
        failed = _failed_rows(run, codes)
        units = _units_of(run, failed, images_per_unit, trust_lists)
        yield from units if limit is None else limited(units, limit)
    except FetchError as error:
        raise UsageError(f"cannot read run {run.run_id}: {error}") from error
    if limit is None and failed:
        raise UsageError(
            f"run {run.run_id} has failed rows of {min(failed)} that its plan does not name: "
            "see prompt-iml verify"
        )


def _failed_rows(run: Run, codes: Sequence[str]) -> Failed:
    failed: defaultdict[str, dict[str | None, str]] = defaultdict(dict)
    chosen = ds.field("status") == "failed"
    if codes:
        chosen &= ds.field("error_code").isin(list(codes))
    rows = open_results(run).filter(chosen)
    with storage.fetching(run.output):
        for batch in rows.to_batches(columns=["uri", "member", "error_stage"]):
            for uri, member, stage in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                failed[uri][member] = stage
    return dict(failed)


def _units_of(run: Run, failed: Failed, images_per_unit: int, trust_lists: bool) -> Iterator[Unit]:
    """Yield the units of `retry_units`; removes their inputs from `failed`."""
    objects: list[ObjectRef] = []
    for unit in _planned(run):
        if unit.kind != "objects":
            yield from _of_shard(unit, failed)
            continue
        for ref in unit.objects:
            if failed.pop(storage.display_name(ref.uri), None):
                # Size and etag are left out: the object may have been replaced since it was listed.
                refused = "" if trust_lists else ref.refused
                objects.append(ObjectRef(ref.uri, content_id=ref.content_id, refused=refused))
            if len(objects) == images_per_unit:
                yield objects_unit(objects)
                objects = []
    if objects:
        yield objects_unit(objects)


def _of_shard(unit: Unit, failed: Failed) -> Iterator[Unit]:
    """Yield a unit of the members of a shard that failed; removes them from `failed`."""
    uri = storage.display_name(unit.uri)
    of_uri = failed.get(uri, {})
    mine = {member: stage for member, stage in of_uri.items() if _lies_in(unit, member)}
    if not mine:
        return
    for member in mine:
        del of_uri[member]
    if not of_uri:
        del failed[uri]
    members = tuple(member for member in mine if member is not None)
    if "fetch" in mine.values() and not unit.members:
        yield unit
    else:
        yield replace(unit, members=members, images=len(members), limit=-1)


def _lies_in(unit: Unit, member: str | None) -> bool:
    if unit.kind == "tar" or unit.images < 0:
        return True
    if unit.members:
        return member in unit.members
    return unit.first_row <= int(member or 0) < unit.first_row + unit.images


def _planned(run: Run) -> Iterator[Unit]:
    for units in waves(read_plan(run), UNITS_AT_ONCE):
        yield from (unit_from_json(planned.unit) for planned in units)


class ScannedIn:
    """Set of the objects and shards of which a complete run has rows, by URI and etag.

    Failed rows count, as `--retry-failed` scans those. Inputs that may have changed or were read in
    part do not count: objects without an etag, as from lists; shards that could not be read to
    their end, that `--limit` cut, or of which only some members were retried; Parquet files of a
    run with `--slice` or `--retry-failed`.

    The plan names all of them, and no row is read. Memory holds one file of the plan (at most
    100,000 objects); URIs and etags are on disk, see `Digests`. A context manager.
    """

    def __init__(self, run: Run) -> None:
        self.run_id = run.run_id
        self._digests = Digests()
        self._partial: set[str] = set()
        config = run.config() or {}
        lost = set((run.manifest() or {}).get("incomplete", {}))
        has_shares = bool(config.get("slice") or config.get("retry_failed"))
        for unit in _planned(run):
            if unit.kind == "objects":
                self._digests.add(_versions(unit.objects))
            elif (
                unit.limit >= 0
                or unit.members
                or (unit.kind == "parquet" and has_shares)
                or storage.display_name(unit.uri) in lost
            ):
                self._partial.add(unit.uri)
            else:
                self._digests.add(_versions([ObjectRef(unit.uri, etag=unit.etag)]))

    def __enter__(self) -> ScannedIn:
        return self

    def __exit__(self, *error: object) -> None:
        self._digests.__exit__(*error)

    def has(self, refs: Sequence[ObjectRef]) -> list[bool]:
        """Return, for each object or shard as it is listed now, whether the run has its rows."""
        known = self._digests.contains(_versions(refs))
        return [
            bool(is_known and ref.etag and ref.uri not in self._partial)
            for is_known, ref in zip(known, refs, strict=True)
        ]


def _versions(refs: Sequence[ObjectRef]) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    named = (f"{ref.uri}\0{ref.etag}".encode("utf-8", "surrogateescape") for ref in refs)
    digests = b"".join(hashlib.blake2b(name, digest_size=16).digest() for name in named)
    return np.frombuffer(digests, "S16")
