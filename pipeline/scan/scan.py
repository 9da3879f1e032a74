"""Scan from settings to summary: bind the run, plan, scan in waves, write the manifest.

Every step can be repeated: the results of an earlier launch of the same run are reused. Ray, whose
import takes seconds, is imported after all checks that do not need it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from prompt_iml.engine.errors import NotFound, PromptImlError, RunMismatch, UsageError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.runtimes.open import check_engine
from prompt_iml.pipeline.checks import ray_address
from prompt_iml.pipeline.chosen_model import chosen_model
from prompt_iml.pipeline.logs import configure, log
from prompt_iml.pipeline.monitoring.progress import Progress
from prompt_iml.pipeline.registry.registry import PromptSetRef, Registry, look_up
from prompt_iml.pipeline.run.folder import Json, Run, default_run_id
from prompt_iml.pipeline.run.plan import Plan, make_plan, read_plan, waves
from prompt_iml.pipeline.run.schema import SCHEMA_VERSION, add_incomplete
from prompt_iml.pipeline.scan.scanner import Part, RowSpec, ScanSpec, highest
from prompt_iml.pipeline.settings import InputFlags, ScanSettings
from prompt_iml.pipeline.sources import list_units
from prompt_iml.pipeline.sources.changes import Listed, changed_input
from prompt_iml.pipeline.sources.inputs import Entry, entries_of, resolve
from prompt_iml.pipeline.sources.packing import divided
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.storage.s3 import use
from prompt_iml.pipeline.units import Unit, unit_to_json

if TYPE_CHECKING:  # imported late: it takes as long as a picture
    from prompt_iml.pipeline.scan.earlier import ScannedIn

# Settings that shape the rows; a run is bound to them and to the model's digests.
BINDING = {
    "engine", "format", "image_column", "limit", "images_per_unit",
    "max_pixels", "max_object_bytes", "heatmap", "trust_lists",
}  # fmt: skip
SHARDS_NAMED = 100  # in a summary; the manifest names all
WHERE_SET = {"closer_look", "precision", "retry_failed", "retry_codes", "skip_scanned", "slice"}


@dataclass(slots=True)
class Totals:
    """Sums over parts.

    Attributes:
        parts: file, rows, size_bytes, sha256 of each.
        rows: rows in all parts.
        new_rows: rows in the parts that this launch wrote.
        statuses, codes: rows by status and by error code.
        incomplete: as of `Part`, of all parts.
        labels: images by label.
        findings: as of `Part`, the highest of all parts.
    """

    parts: list[Json] = field(default_factory=list)
    rows: int = 0
    new_rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    incomplete: dict[str, int | None] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    findings: list[Json] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Count one part."""
        described = asdict(part)
        self.statuses.update(described.pop("statuses"))
        self.codes.update(described.pop("codes"))
        add_incomplete(self.incomplete, described.pop("incomplete"))
        self.labels.update(described.pop("labels"))
        self.findings = highest(self.findings + described.pop("findings"))
        self.new_rows += part.rows if described.pop("new") else 0
        self.rows += part.rows
        self.parts.append(described)


def scan(settings: ScanSettings) -> Json:
    """Start or resume the run that the settings name; a complete run is left as it is.

    Returns:
        The summary (`summarize`), which is also the run's summary.json.

    Raises:
        UsageError: an input is missing, or a setting is wrong or not possible.
    """
    started = time.monotonic()
    use(settings.access)
    model = load_model(settings.model)
    if not settings.actor_gpus:  # else only the nodes need the engine: see `check_node`
        check_engine(settings.engine, settings.precision)
    output = storage.canonical(settings.output or "")  # which is refused
    settings, earlier = continued(settings, output, model)
    prompt_set = choose_prompt_set(settings, model, output)
    model = chosen_model(
        model,
        prompt_set=prompt_set,
        policy=settings.policy,
        closer_look=settings.closer_look,
    )
    config = run_config(settings, model, prompt_set)
    if earlier and (other := differing(earlier.config() or {}, config)):
        log(f"note: run {earlier.run_id} had other values of {', '.join(other)}")
    run = Run(output, settings.run_id or default_run_id(config))
    configure(settings.log, run=run.run_id)
    if run.config() is None:  # a wrong command must not leave files
        check_inputs(settings)
    storage.check_writable(output)
    run.bind(config)
    for note in model.notes:
        log(f"note: {note}")
    manifest, totals = run.manifest(), Totals()
    if manifest:
        if gone := missing_parts(run, manifest["parts"]):
            raise UsageError(f"run {run.run_id} is complete, but {gone}: see prompt-iml verify")
        if changed := changed_since(run, settings):
            raise RunMismatch(
                f"{changed}: scan what is there now under another --run-id, and with "
                f"--skip-scanned {run.run_id} what is new alone"
            )
        log(f"already complete: run {run.run_id}; another --run-id scans again")
    else:
        plan = plan_of(run, settings, earlier)
        spec = ScanSpec(run, row_spec(settings, model, prompt_set), settings.log)
        totals = scan_plan(settings, spec, plan)
        if gone := missing_parts(run, totals.parts):
            raise PromptImlError(f"{gone} since it was written: the same command makes it again")
        manifest = run.commit(make_manifest(run, model, config, plan, totals))
    if incomplete := manifest.get("incomplete"):
        log(incomplete_line(incomplete, run.run_id), logging.WARNING)
    summary = summarize(run, model, manifest, totals.new_rows, time.monotonic() - started)
    run.write_summary(summary)
    return summary


def continued(settings: ScanSettings, output: str, model: Model) -> tuple[ScanSettings, Run | None]:
    """Return the settings with inputs, and the earlier run that they name, if any.

    Raises:
        UsageError: that run is missing or not complete.
    """
    name = settings.retry_failed or settings.skip_scanned
    if name is None:
        return settings, None
    from prompt_iml.pipeline.scan.earlier import check_retry, complete_run

    run, config = complete_run(output, name)
    if config["model_sha256"] != model.sha256:
        log(f"note: run {name} used model {config['model']}, and this run uses {model.id}")
    if settings.retry_failed:
        check_retry(run, settings.retry_codes)  # before anything is written
        same = {key: config[key] for key in ("inputs", "format", "image_column")}
        settings = settings.model_copy(update=same)
    return settings, run


def differing(before: Json, now: Json) -> list[str]:
    """Return the names of what shapes rows and is not the same in two configurations."""
    shaping = {"max_pixels", "max_object_bytes", "heatmap", "engine", "precision", "closer_look"}
    names = sorted(shaping | {"policy", "prompts", "prompt_set"})
    return [name for name in names if before.get(name) != now.get(name)]


def check_inputs(settings: ScanSettings) -> None:
    """Raise `UsageError` unless every input exists and they hold something to scan."""
    for name in settings.inputs:
        resolve(name)
    if not settings.retry_failed:
        with closing(units_of(settings)) as units:
            next(units)


def choose_prompt_set(settings: ScanSettings, model: Model, output: str) -> PromptSetRef | None:
    """Return the prompt set that the settings name; None: the model's own.

    `current` is looked up once: a run keeps the prompt set that its first launch bound, also after
    later promotions, so that a job started again under its `--run-id` continues.

    Raises:
        UsageError: the registry cannot be read or has no such prompt set.
    """
    if settings.registry is None:
        return None
    registry = Registry(storage.canonical(settings.registry), model.sha256)
    if settings.prompts == "current" and settings.run_id and not settings.refresh_prompts:
        bound = Run(output, settings.run_id).config() or {}
        if "prompts" in bound:
            return PromptSetRef(registry.uri, bound["prompts"])
    prompt_set = look_up(registry, settings.prompts)
    if prompt_set is None:
        log(f"note: nothing is promoted in {registry.uri} yet: {model.id} uses its own prompts")
    return PromptSetRef(registry.uri, prompt_set, settings.refresh_prompts)


def run_config(settings: ScanSettings, model: Model, ref: PromptSetRef | None = None) -> Json:
    """Return the configuration that binds a run: all settings that shape its rows.

    With `--refresh-prompts` it names the registry and no prompt set: each row names its own.
    """
    bound: Json = {"prompt_set": model.prompts.id, "policy": model.policy.to_dict()}
    if ref and ref.refresh:
        bound = {"prompt_set": "current", "registry": ref.registry}
    elif ref:
        bound["prompts"] = ref.id
    return {
        **settings.model_dump(include=BINDING),
        "inputs": [storage.canonical(name) for name in settings.inputs],
        "model": model.id,
        "model_sha256": model.sha256,
        "graph_sha256": model.graph_sha256,
        "schema_version": SCHEMA_VERSION,
        **settings.model_dump(include=WHERE_SET, exclude_defaults=True),
        **bound,
    }


def plan_of(run: Run, settings: ScanSettings, earlier: Run | None = None) -> Plan:
    """Return the run's plan; lists the inputs if no earlier launch did."""
    from prompt_iml.pipeline.scan.earlier import ScannedIn, retry_units

    if storage.exists(run.plan_uri):
        log(f"resuming run {run.run_id}")
        if changed := changed_since(run, settings):
            log(f"{changed}: this run scans what was listed then", logging.WARNING)
        return read_plan(run)
    if earlier and settings.retry_failed:
        many, limit = settings.images_per_unit, settings.limit
        units = retry_units(
            earlier,
            settings.retry_codes,
            images_per_unit=many,
            limit=limit,
            trust_lists=settings.trust_lists,
        )
        return make_plan(run, divided(sliced(units, settings.slice)))
    with ScannedIn(earlier) if earlier else nullcontext() as scanned:
        listed: list[Listed] = []
        units = units_of(settings, limit=settings.limit, scanned=scanned, listed=listed)
        return make_plan(run, divided(sliced(units, settings.slice)), listed)


def changed_since(run: Run, settings: ScanSettings) -> str:
    """Return a text about an input that changed since the run was planned; empty without any."""

    def listing(name: str) -> Iterator[Entry]:
        source = resolve(name)
        yield from entries_of(source, settings.format, settings.image_column, settings.trust_lists)

    planned = read_plan(run).inputs if storage.exists(run.plan_uri) else ()
    changed = changed_input(settings.inputs, planned, listing)
    if changed is None:
        return ""
    return f"{changed} holds other files, or lists others, than when run {run.run_id} was planned"


def units_of(
    settings: InputFlags,
    *,
    limit: int | None = None,
    scanned: ScannedIn | None = None,
    listed: list[Listed] | None = None,
) -> Generator[Unit]:
    """Yield the units of the inputs; raises as `list_units`."""
    yield from list_units(
        settings.inputs,
        images_per_unit=settings.images_per_unit,
        format=settings.format,
        image_column=settings.image_column,
        limit=limit,
        scanned=scanned,
        trust_lists=settings.trust_lists,
        listed=listed,
    )


def sliced(units: Iterable[Unit], share: str | None) -> Iterator[Unit]:
    """Return the units of share I/N, which a hash of each unit decides; None: all."""
    if share is None:  # saves hashing every unit
        return iter(units)
    place, _, shares = share.partition("/")
    return (unit for unit in units if _share(unit, int(shares)) == int(place))


def _share(unit: Unit, shares: int) -> int:
    """Return the share, 1..shares, of a unit: a function of the unit alone."""
    digest = hashlib.sha256(unit_to_json(unit).encode()).digest()
    return int.from_bytes(digest[:8], "big") % shares + 1


def row_spec(
    settings: ScanSettings, model: Model, prompt_set: PromptSetRef | None = None
) -> RowSpec:
    """Return how the actors of a run make rows."""
    return RowSpec(
        model=model.reference,
        model_digest=model.digest,
        engine=settings.engine,
        precision=settings.precision,
        closer_look=settings.closer_look,
        threads=1,  # an actor has one CPU
        max_pixels=settings.max_pixels,
        max_object_bytes=settings.max_object_bytes,
        heatmap=settings.heatmap,
        image_timeout=settings.image_timeout,
        prompt_set=prompt_set,
        policy=model.policy.to_json() if settings.policy else None,
        access=settings.access,
        read_timeout=settings.read_timeout,
        memory=settings.actor_memory,
    )


def scan_plan(settings: ScanSettings, spec: ScanSpec, plan: Plan) -> Totals:
    """Scan every unit of the plan, in waves, and return the sums over their parts."""
    from prompt_iml.pipeline.scan.actors import pool_size, read_tally, scan_wave, shared_tally
    from prompt_iml.pipeline.scan.preflight import FREE_SECONDS, NODE_SECONDS, check_node
    from prompt_iml.pipeline.scan.session import ray_session

    run, totals = spec.run, Totals()
    with ray_session(settings.address, settings.max_actors):
        least, most, gpus = settings.min_actors, settings.max_actors, settings.actor_gpus
        grows = ray_address(settings.address) != "local"
        pool = pool_size(least, most, plan.units, gpus, grows)
        check_node(spec, gpus, NODE_SECONDS if grows else FREE_SECONDS)
        log(f"run {run.run_id}: {plan.units:,} units on up to {pool.most} actors")
        with (
            shared_tally() as tally,
            Progress(lambda: read_tally(tally), plan.size_bytes),
        ):
            for units in waves(plan, settings.wave_units):
                for part in scan_wave(units, spec, pool, tally):
                    totals.add(part)
    return totals


def make_manifest(run: Run, model: Model, config: Json, plan: Plan, totals: Totals) -> Json:
    """Return the manifest: all parts and counts, checked against the plan.

    Raises:
        AssertionError: a unit has not exactly one part, or a row is not counted; a bug.
    """
    files = {part["file"] for part in totals.parts}
    assert len(files) == len(totals.parts) == plan.units, (len(files), plan.units)
    assert totals.rows == sum(totals.statuses.values()), totals
    return {
        "run_id": run.run_id,
        "config": config,
        "listed": totals.rows,
        "statuses": {name: totals.statuses[name] for name in ("ok", "failed", "skipped")},
        "codes": dict(totals.codes),
        "incomplete": dict(sorted(totals.incomplete.items())),
        "labels": dict(totals.labels),
        "findings": totals.findings,
        "false_positive_rate": model.policy.false_positive_rate if "policy" in config else None,
        "parts": sorted(totals.parts, key=lambda part: str(part["file"])),
    }


def missing_parts(run: Run, parts: Sequence[Json]) -> str:
    """Return the first part that is gone or has another size, by one listing; empty if none is.

    What killed processes left half written of these parts is removed.
    """
    try:
        found = {ref.uri: ref.size_bytes for ref in list_objects(f"{run.output}/results")}
    except NotFound:
        found = {}
    for uri in found:
        if (whole := storage.half_written_of(uri)) and whole in found:
            storage.remove(uri)
    for part in parts:
        uri = f"{run.output}/{part['file']}"
        if found.get(uri) != part["size_bytes"]:
            what = "has another size" if uri in found else "is missing"
            return f"{storage.display_name(uri)} {what}"
    return ""


def incomplete_line(incomplete: Mapping[str, int | None], run_id: str) -> str:
    """Return a line about shards that could not be read to their end."""
    first, *others = sorted(incomplete)
    more = f" and {len(others):,} more" if others else ""
    lost = sum(count or 0 for count in incomplete.values())
    known = f"at least {lost:,} images" if lost else "an unknown number of images"
    return (
        f"{first}{more} could not be read to the end: {known} have no row; see error_message in "
        f"the table, mend the cause, then scan again with --retry-failed {run_id}"
    )


def summarize(run: Run, model: Model, manifest: Json, new_rows: int, seconds: float) -> Json:
    """Return the summary of a launch, for the last line on stdout and for summary.json.

    `listed = ok + failed + skipped`; `scanned_now` and `seconds` cover this launch. `incomplete` is
    the number of shards that could not be read to their end, and `incomplete_shards` names the
    first of them. `labels` and `findings` are empty for a run that an earlier version completed.
    """
    statuses, incomplete = manifest["statuses"], sorted(manifest.get("incomplete", {}))
    tried = statuses["ok"] + statuses["failed"]
    return {
        "run_id": run.run_id,
        "output": run.output,
        "listed": manifest["listed"],
        **statuses,
        "codes": manifest["codes"],
        "labels": manifest.get("labels", {}),
        "findings": manifest.get("findings", []),
        "incomplete": len(incomplete),
        "incomplete_shards": incomplete[:SHARDS_NAMED],
        "failure_rate": round(statuses["failed"] / tried, 6) if tried else 0.0,
        "scanned_now": new_rows,
        "seconds": round(seconds, 2),
        "model": model.id,
        "notes": list(model.notes),
    }
