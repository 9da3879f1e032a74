"""`prompt-iml verify`: check that a table is complete and undamaged by reading all of it again.

Each part is compared with the manifest (size, sha256, rows) and checked in itself (footer, schema,
statuses, codes). Each planned unit must have its rows, each file in the folder must be in a
manifest, and each image_id must be unique in its run. Nothing is changed.

Memory holds the manifest and the plan's unit ids (about 1 KB a unit), and at most 4 parts with
their key columns. Image ids go to `Digests`: 20 bytes of temporary disk a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prompt_iml.engine.errors import FetchError, NotFound, UsageError
from prompt_iml.pipeline.logs import log, one_line
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.plan import read_plan, read_plan_file
from prompt_iml.pipeline.run.schema import SCHEMA, SCHEMA_VERSION, read_part, read_summary, units_of
from prompt_iml.pipeline.run.table import run_ids
from prompt_iml.pipeline.scan.rows import known_codes
from prompt_iml.pipeline.settings import VerifySettings
from prompt_iml.pipeline.sources.names import is_hidden
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.digests import Digests, digests_of_hex
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.storage.ordered import in_order

READ_THREADS = 4
SHOWN = 20  # repeated images, or units without rows, that get a line of their own
_LOST = "restore it from a backup: without it nothing proves that every input has a row"
_STRAY = (
    "remove it, unless a scan or a compaction of this run is at work: engines that read the folder "
    "find its rows twice"
)
_KEYS = ["image_id", "status", "error_code", "run_id"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem with one file.

    Attributes:
        where: URI of the file.
        what: description of the problem.
        fix: instruction to repair it.
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{storage.display_name(self.where)}: {self.what}; {self.fix}"


@dataclass(slots=True)
class Found:
    """Content of one part, read again.

    Attributes:
        problems: problems with this part alone.
        image_ids: (rows,) `S16` digests.
        statuses, codes: rows by status and by error code.
        units: rows by unit id, from its footer.
    """

    problems: list[Problem] = field(default_factory=list)
    image_ids: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, "S16"))
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    units: dict[str, int] = field(default_factory=dict)


def verify(settings: VerifySettings) -> Json:
    """Read everything again and log each problem.

    Returns:
        Counts over the runs verified; the table is complete and undamaged if `problems` is 0.

    Raises:
        MissingInput: the run does not exist, or there is no run at all.
        UsageError: the output cannot be listed.
    """
    output = storage.canonical(settings.output)
    every = run_ids(output, settings.run_id)
    chosen = [settings.run_id] if settings.run_id else every
    totals: Counter[str] = Counter({"rows": 0, "ok": 0, "failed": 0, "skipped": 0})
    problems = 0
    try:
        for problem in _problems(output, every, chosen, totals):
            problems += 1
            log(str(problem))
    except FetchError as error:
        raise UsageError(f"cannot read {error}") from error
    return {"output": output, "runs": chosen, **totals, "problems": problems}


def _problems(
    output: str, every: list[str], chosen: list[str], totals: Counter[str]
) -> Iterator[Problem]:
    named: set[str] = set()
    complete: set[str] = set()
    for run_id in every:
        run = Run(output, run_id)
        try:
            manifest = run.manifest()
            fault = manifest and _fault(manifest)
        except ValueError as error:
            fault = f"is no JSON ({one_line(error)})"
        if fault:
            generation = run.generations()[-1]
            yield Problem(run.generation_uri(generation), fault, _remake(run, generation))
            continue
        if manifest:
            complete.add(run_id)
            named.update(part["file"] for part in manifest["parts"])
        if run_id in chosen and manifest:
            yield from verify_run(run, manifest, totals)
        elif run_id in chosen:
            fix = "the same scan command completes it"
            yield Problem(run.manifest_uri, f"run {run_id} is not complete", fix)
    # The parts of an incomplete run are in no manifest yet; other runs were not chosen.
    elsewhere = set(every) - (complete & set(chosen))
    yield from _strays(output, named, elsewhere)


def _fault(manifest: Json) -> str | None:
    """Return the first field of a manifest that is missing or of a wrong type; None if valid."""
    whole = {"parts": list, "statuses": dict, "codes": dict, "listed": int}
    of_part = {"file": str, "rows": int, "size_bytes": int, "sha256": str}
    if wrong := [name for name, kind in whole.items() if not isinstance(manifest.get(name), kind)]:
        return f"is damaged: no {wrong[0]}"
    for part in manifest["parts"]:
        for name, kind in of_part.items():
            if not isinstance(part, dict) or not isinstance(part.get(name), kind):
                return f"is damaged: a part without its {name}"
    return None


def verify_run(run: Run, manifest: Json, totals: Counter[str]) -> Iterator[Problem]:
    """Yield the problems of a complete run, those of parts first; adds its rows to `totals`."""
    broken = 0
    statuses, codes = Counter[str](), Counter[str]()
    rows_of: Counter[str] = Counter()
    check = partial(check_part, run, generation=manifest.get("generation", 0))
    with Digests() as image_ids, ThreadPoolExecutor(READ_THREADS) as pool:
        for number, found in enumerate(in_order(pool, check, manifest["parts"], READ_THREADS)):
            yield from found.problems
            broken += len(found.problems)
            image_ids.add(found.image_ids, number)
            statuses.update(found.statuses)
            codes.update(found.codes)
            rows_of.update(found.units)
        totals.update(statuses)
        totals["rows"] += statuses.total()
        yield from _repeated(run, image_ids, [part["file"] for part in manifest["parts"]])
    # Missing rows of a broken part would be reported again, as missing units and wrong sums.
    yield from _check_plan(run, None if broken else rows_of)
    if not broken:
        yield from _unreconciled(run, manifest, statuses, codes)


def check_part(run: Run, part: Json, *, generation: int) -> Found:
    """Read one part of a manifest again.

    Args:
        run: run of the part.
        part: its entry in the manifest.
        generation: generation of the manifest.
    """
    uri = f"{run.output}/{part['file']}"
    found = Found()

    def wrong(what: str) -> Found:
        found.problems.append(Problem(uri, what, _remake(run, generation)))
        return found

    try:
        payload = storage.read_bytes(uri)
    except NotFound:
        return wrong("is missing")
    except FetchError as error:
        return wrong(f"cannot be read ({error})")
    if len(payload) != part["size_bytes"]:
        wrong(f"has {len(payload)} bytes in place of {part['size_bytes']}")
    elif hashlib.sha256(payload).hexdigest() != part["sha256"]:
        wrong("has another sha256 than the manifest names: its bytes have changed")
    try:
        _read_rows(run, payload, part, found)
    except (ValueError, KeyError, OSError) as error:
        if not found.problems:  # else this error follows from those
            wrong(f"is damaged: {one_line(error)}")
    return found


def _read_rows(run: Run, payload: bytes, part: Json, found: Found) -> None:
    """Fill `found`; raises the errors of pyarrow, and ValueError for inconsistent rows."""
    summary, rows = read_part(payload)
    _check_schema(rows.schema)
    found.units = units_of(summary)
    found.image_ids = digests_of_hex("".join(rows["image_id"].to_pylist()))
    groups = rows.group_by(["status", "error_code"]).aggregate([([], "count_all")])
    for group in groups.to_pylist():
        status, code = group["status"], group["error_code"]
        if status != known_codes().get(code):
            raise ValueError(f"rows with status {status} and code {code}")
        found.statuses[status] += group["count_all"]
        if code:
            found.codes[code] += group["count_all"]
    counts = {
        "the manifest": part["rows"],
        "its footer": summary["rows"],
        "its units": sum(found.units.values()),
        "its image ids": len(found.image_ids),
    }
    if set(counts.values()) != {rows.num_rows}:
        by = ", ".join(f"{count} by {name}" for name, count in counts.items())
        raise ValueError(f"{rows.num_rows} rows; {by}")
    runs = {summary["run_id"], *rows["run_id"].unique().to_pylist()}
    if runs != {run.run_id}:
        raise ValueError(f"rows of the runs {sorted(map(str, runs))}")


def _check_schema(schema: pa.Schema) -> None:
    """Raise ValueError for another schema; an older part of this version may have fewer columns."""
    version = (schema.metadata or {}).get(b"prompt_iml.schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"schema version {version} in place of {SCHEMA_VERSION}")
    other = [column.name for column in schema if column not in list(SCHEMA)]
    missing = [c.name for c in SCHEMA if not c.nullable and c.name not in schema.names]
    if other or missing:
        raise ValueError(f"columns of another schema: {', '.join(other + missing)}")


def _remake(run: Run, generation: int) -> str:
    if generation:
        return "restore it from a backup, or scan the inputs again under another --run-id"
    uri = storage.display_name(run.manifest_uri)
    return f"remove it, if it is there, and {uri}, and repeat the scan to make these rows again"


def _repeated(run: Run, image_ids: Digests, files: list[str]) -> Iterator[Problem]:
    """Yield images with more than one row; the inputs may have named them twice."""
    count = 0
    for image_id, numbers in image_ids.repeated():
        count += 1
        if count <= SHOWN:
            others = ", ".join(sorted({files[number] for number in numbers[1:]}))
            yield Problem(
                f"{run.output}/{files[numbers[0]]}",
                f"image_id {image_id} has {len(numbers)} rows, more in {others}",
                "keep one of them, and check whether the inputs name this image twice",
            )
    if count > SHOWN:
        what = f"{count - SHOWN} more image ids have more than one row"
        yield Problem(f"{run.output}/results", what, "keep one row of each")


def _check_plan(run: Run, rows_of: Counter[str] | None) -> Iterator[Problem]:
    """Yield problems of the plan, and its units without rows.

    Args:
        run: run of the plan.
        rows_of: rows by unit id, emptied here; None: check the plan alone.
    """
    try:
        plan = read_plan(run)
    except (FetchError, ValueError, KeyError) as error:
        yield Problem(run.plan_uri, f"the plan cannot be read ({one_line(error)})", _LOST)
        return
    units = unread = 0
    for file in plan.files:
        try:
            planned = read_plan_file(file)
        except (FetchError, ValueError, KeyError, OSError) as error:
            unread += 1
            yield Problem(file, f"this file of the plan cannot be read ({one_line(error)})", _LOST)
            continue
        units += planned.num_rows
        if rows_of is not None:
            yield from _uncovered(run, planned, rows_of)
    if unread:
        return
    if units != plan.units:
        yield Problem(run.plan_uri, f"names {plan.units} units, but its files hold {units}", _LOST)
    for unit_id in rows_of or ():
        what = f"unit {unit_id} has rows but is not in the plan"
        yield Problem(run.plan_uri, what, "remove its rows, or restore the plan from a backup")


def _uncovered(run: Run, planned: pa.Table, rows_of: Counter[str]) -> Iterator[Problem]:
    """Yield units without rows, and `objects` units without exactly one row per object."""
    for unit in planned.to_pylist():
        unit_id = unit["unit_id"]
        if unit_id not in rows_of:
            yield Problem(
                run.part_uri(unit_id),
                f"no part holds unit {unit_id} ({unit['uri']} ...)",
                _remake(run, 0),
            )
            continue
        rows = rows_of.pop(unit_id)
        if unit["kind"] == "objects" and rows != unit["images"]:
            yield Problem(
                run.part_uri(unit_id),
                f"unit {unit_id} has {rows} rows for {unit['images']} objects",
                _remake(run, 0),
            )


def _unreconciled(
    run: Run, manifest: Json, statuses: Counter[str], codes: Counter[str]
) -> Iterator[Problem]:
    """Yield the sums in the manifest that differ from those of its parts."""
    stated = {**manifest["statuses"], **manifest["codes"], "listed": manifest["listed"]}
    counted = {**dict.fromkeys(stated, 0), **statuses, **codes, "listed": statuses.total()}
    wrong = [
        f"{name} {stated.get(name, 0)} (counted: {count})"
        for name, count in counted.items()
        if stated.get(name) != count
    ]
    if wrong:
        uri = run.generation_uri(manifest.get("generation", 0))
        fix = "restore it from a backup; the rows themselves are whole"
        yield Problem(uri, f"has wrong sums: {', '.join(wrong)}", fix)


def _strays(output: str, named: set[str], elsewhere: set[str]) -> Iterator[Problem]:
    """Yield files in results/ that no manifest names.

    Args:
        output: URI of the output folder.
        named: files of all manifests.
        elsewhere: runs whose parts are ignored.
    """
    try:
        files = [ref.uri for ref in list_objects(f"{output}/results", is_hidden)]
    except NotFound:  # missing parts are reported already
        return
    for uri in files:
        if uri.removeprefix(f"{output}/") in named:
            continue
        try:
            with storage.open_stream(uri) as stream:
                run_id = read_summary(stream)["run_id"]
        except (FetchError, ValueError, KeyError, OSError) as error:
            what = f"is in no manifest and no readable part ({one_line(error)})"
            yield Problem(uri, what, "remove it: engines that read the folder fail on it")
            continue
        if run_id not in elsewhere:
            yield Problem(uri, f"is a part of run {run_id} that no manifest names", _STRAY)
