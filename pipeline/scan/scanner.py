"""Work of a scan actor: images to rows, and the rows of a unit to one file.

    RowMaker  read_unit -> decode (threads) -> Detector (tiles, engine, masks) -> rows
    Scanner   rows of a unit -> one Parquet file, created once

The online endpoint, and the child that scans a suspect unit, use a `RowMaker` alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_iml.engine.detection.detector import Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.errors import (
    BadCredentials,
    CredentialsFailed,
    DecodeError,
    ImageError,
    OutOfMemory,
    UsageError,
)
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.images.decode import Decoded, DecodeLimits, decode
from prompt_iml.pipeline.logs import Format, log, one_line
from prompt_iml.pipeline.monitoring.meter import Meter
from prompt_iml.pipeline.registry.registry import CurrentPromptSet, PromptSetRef
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.schema import RowWriter, read_part, read_summary
from prompt_iml.pipeline.scan.rows import Row, failure, identity, provenance, result
from prompt_iml.pipeline.scan.watchdog import FETCH_SECONDS, Unwatched, Watch, WatchedEngine
from prompt_iml.pipeline.sources import read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.ordered import in_order
from prompt_iml.pipeline.storage.s3 import SIGNED, Access, use
from prompt_iml.pipeline.units import Sample, Unit

T = TypeVar("T")
Tick = Callable[[Row], None]
Opened: TypeAlias = tuple[Row, Decoded | ImageError]

FINDINGS = 5  # of the highest scores, for the end of a scan
FETCH_THREADS = 16  # objects fetched at once: they wait for the store, not for a CPU


@dataclass(frozen=True, slots=True)
class RowSpec:
    """Settings that make rows; small, because they travel to every actor.

    Attributes:
        model: name or path of the model folder.
        model_digest: digest that the model must have, with its prompts and policy.
        engine: runtime, as the settings name it.
        threads: threads for the engine, and for decoding.
        max_pixels, max_object_bytes: limits of one image.
        heatmap: whether rows carry the probabilities at network resolution.
        image_timeout: seconds that an image's decode, or a run of the engine, may take.
        prompt_set: stored set to take prompts and policy from; None: the model's own.
        policy: JSON of a policy to apply in place of theirs; None: theirs.
        access: access to stores.
        read_timeout: seconds that reading the next image may take.
        memory: bytes that an actor may take beside its engine; None: not limited.
        precision: of the engine, as the settings name it.
        closer_look: that of the policy is replaced by this; None: it stays.
    """

    model: str
    model_digest: str
    engine: str
    threads: int
    max_pixels: int
    max_object_bytes: int
    heatmap: bool
    image_timeout: float
    prompt_set: PromptSetRef | None = None
    policy: str | None = None
    access: Access = SIGNED
    read_timeout: float = FETCH_SECONDS
    memory: int | None = None
    precision: str = "auto"
    closer_look: int | None = None

    def to_json(self) -> str:
        """Serialize for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RowSpec:
        """Parse the JSON of `to_json`."""
        fields = json.loads(text)
        ref, access = fields.pop("prompt_set"), fields.pop("access")
        return cls(
            **fields,
            prompt_set=PromptSetRef(**ref) if ref else None,
            access=Access(**access | {"signed": tuple(access["signed"])}),
        )


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """Settings of a scan actor.

    Attributes:
        run: run that receives the results.
        rows: settings that make rows.
        log: format of the actor's log.
    """

    run: Run
    rows: RowSpec
    log: Format = "text"


class RowMaker:
    """Maker of rows from images, with one engine; independent of runs and outputs.

    Args:
        spec: settings that make rows.
        watch: observes each read, each decode and each run of the engine.
        meter: counts what is done.
        depth: as `Detector` has it.

    Attributes:
        meter: as given.
        provenance: columns that `rows` leaves out: what made them.

    Raises:
        UsageError: the model is not on this machine, or is another one.
    """

    def __init__(
        self,
        spec: RowSpec,
        watch: Watch | None = None,
        meter: Meter | None = None,
        depth: int | None = None,
    ) -> None:
        use(spec.access)
        model = load_model(spec.model)
        self._current = CurrentPromptSet(model, spec.prompt_set) if spec.prompt_set else None
        model = self._current.model if self._current else model
        if spec.policy:
            model = replace(model, policy=Policy.from_json(spec.policy))
        model = model.looking_closer(spec.closer_look)
        if model.digest != spec.model_digest:
            raise UsageError(
                f"{spec.model} is {model.id} here, and not all of its weights, graph, prompts and "
                "policy are those of the run: install the same version of prompt-iml on every node"
            )
        self._watch, self.meter = watch or Unwatched(), meter or Meter()
        engine = open_engine(model, spec.engine, spec.threads, spec.precision)
        self._engine = WatchedEngine(engine, self._watch)
        self._spec, self._depth = spec, depth
        self._limits = DecodeLimits(max_pixels=spec.max_pixels)
        self._pool = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        self._use(model)

    @property
    def spec(self) -> RowSpec:
        """Spec with the prompts in use, with which another process makes the same rows."""
        if self._current is None:
            return self._spec
        digest = self._followed(self._current).digest
        return replace(self._spec, prompt_set=self._current.ref, model_digest=digest)

    def refresh_prompts(self) -> None:
        """Load the registry's current prompts, if the spec follows them and they have changed."""
        if self._current and self._current.refresh():
            self._use(self._followed(self._current))

    def _followed(self, current: CurrentPromptSet) -> Model:
        """Return the model with the current prompts and the closer look of the spec."""
        return current.model.looking_closer(self._spec.closer_look)

    def _use(self, model: Model) -> None:
        """Detect with the model's prompts and policy from now on, and name them in the rows."""
        self._engine.load_prompts(model.prompts)
        self._detector = Detector(
            self._engine,
            model.view,
            model.policy,
            self._engine.batch,
            self.meter.batch,
            self._depth,
        )
        self.meter.model = (model.id, model.prompts.id, self._engine.name)
        self.provenance = provenance(model, self._engine.name)

    def samples(self, unit: Unit) -> Iterator[Sample]:
        """Read the images of a unit; each read is watched."""
        limit = self._spec.max_object_bytes
        samples = read_unit(unit, max_object_bytes=limit, threads=FETCH_THREADS)
        while True:
            with self._watch.working("fetch"):
                sample = next(samples, None)
            if sample is None:
                return
            yield sample

    def rows(self, samples: Iterable[Sample]) -> Iterator[Row]:
        """Yield one row per sample, in order of completion."""
        for row, outcome in self.outcomes(samples, self.open):
            if isinstance(outcome, ImageError):
                yield row | failure(outcome)
            else:
                yield row | result(outcome, heatmap=self._spec.heatmap)

    def outcomes(
        self, items: Iterable[T], open_item: Callable[[T], Opened]
    ) -> Iterator[tuple[Row, Finding | ImageError]]:
        """Yield, for each item, what is known of it and what was found, in order of completion.

        Args:
            items: what to scan; each may be read while it is taken.
            open_item: function that decodes an item, such as `open`; called in threads.
        """
        return self._detector.detect(self._images(items, open_item))

    def _images(
        self, items: Iterable[T], open_item: Callable[[T], Opened]
    ) -> Iterator[tuple[Row, Image | ImageError]]:
        # At most 2 images a thread are held, so that a shard is never held whole.
        ahead = 2 * self._spec.threads
        fetched = self.meter.timed("fetch", items)
        opened = in_order(self._pool, open_item, fetched, ahead, self._queue)
        for row, outcome in self.meter.timed("wait", opened):
            if isinstance(outcome, ImageError):
                yield row, outcome
            else:
                yield row | outcome.facts, outcome.image

    def _queue(self, count: int) -> None:
        self.meter.queue = count

    def open(self, sample: Sample) -> Opened:
        """Decode one sample; any error is returned as the failure of this image.

        Raises:
            CredentialsFailed: the store refuses our credentials.
        """
        row = identity(sample)
        if isinstance(sample.error, BadCredentials):  # of all that is left: a run that can resume
            raise CredentialsFailed(f"{sample.error}; {storage.CREDENTIALS_FIX}")
        if sample.error:
            return row, sample.error
        started = time.perf_counter()
        try:
            with self._watch.working("decode"):
                outcome: Decoded | ImageError = decode(
                    sample.data or b"",
                    self._limits,
                    media_type=sample.media_type,
                    claims_image=sample.claims_image,
                )
        except ImageError as error:
            outcome = error
        except MemoryError:
            outcome = OutOfMemory("decoding needs more memory than the process has")
        except Exception as error:  # broad, because no image may end the job
            outcome = DecodeError(f"{type(error).__name__}: {error}")
        row["decode_ms"] = 1e3 * (time.perf_counter() - started)
        return row, outcome.bare() if isinstance(outcome, ImageError) else outcome


@dataclass(frozen=True, slots=True)
class Part:
    """Committed file of one unit.

    Attributes:
        file: name below the output.
        rows, size_bytes, sha256: number of rows, size and digest of the file.
        statuses: rows by status.
        codes: rows by error code.
        incomplete: shards that could not be read to their end: number of images lost, by URI; None
            if unknown.
        labels: rows by label.
        findings: `uri`, `member`, `label`, `score` and number of `regions` of the images labelled
            manipulated that have the highest scores.
        new: whether this launch wrote it.
    """

    file: str
    rows: int
    size_bytes: int
    sha256: str
    statuses: dict[str, int]
    codes: dict[str, int]
    incomplete: dict[str, int | None]
    labels: dict[str, int]
    findings: list[Json]
    new: bool


def highest(findings: list[Json]) -> list[Json]:
    """Return the `FINDINGS` of the highest scores."""
    return sorted(findings, key=lambda f: (-f["score"], f["uri"], f["member"] or ""))[:FINDINGS]


def found_in(payload: bytes) -> tuple[dict[str, int], list[Json]]:
    """Return `labels` and `findings` of a part, as `Part` has them."""
    import pyarrow.compute as pc  # late: a picture without an output needs no table

    columns = ["uri", "member", "label", "score", "regions"]
    rows = pq.ParquetFile(pa.BufferReader(payload)).read(columns)
    rows = rows.set_column(4, "regions", pc.list_value_length(rows["regions"]))
    labels = pc.value_counts(rows["label"].drop_null()).to_pylist()
    manipulated = rows.filter(pc.equal(rows["label"], "manipulated"))
    first = manipulated.sort_by([("score", "descending"), ("uri", "ascending")])[:FINDINGS]
    return {each["values"]: each["counts"] for each in labels}, first.to_pylist()


RowsOf = Callable[[RowSpec, Unit], Iterator[Row]]


class Scanner:
    """Scanner of units, one after another, that commits the rows of each as one file.

    Args:
        run: run of the units.
        maker: maker of the rows.
    """

    def __init__(self, run: Run, maker: RowMaker) -> None:
        self._run, self._maker, self._meter = run, maker, maker.meter

    def scan(self, unit_id: str, unit: Unit, tick: Tick, rows_of: RowsOf | None = None) -> Part:
        """Scan a unit and commit its rows, unless they are committed already and not damaged.

        Args:
            unit_id: id of the unit in this run.
            unit: images to read.
            tick: called with each row, for progress.
            rows_of: function that makes the rows instead of `maker`.
        """
        uri = self._run.part_uri(unit_id)
        if committed := self._committed(uri):
            return committed
        shard = None if unit.kind == "objects" else storage.display_name(unit.uri)
        writer = RowWriter(unit_id, self._run.run_id, shard, unit.expected)
        for row in self._rows(unit, rows_of):
            writer.add(row)
            self._meter.count(row)
            tick(row)
        started = time.perf_counter()
        payload = writer.close()
        created = storage.create_once(uri, payload)
        self._meter.seconds["commit"] += time.perf_counter() - started
        self._meter.begun = 0.0
        if created:
            return self._part(uri, payload, new=True)
        message = f"unit {unit_id} was committed by another actor: the rows made here are dropped"
        log(message, logging.WARNING, unit=unit_id)
        return self._part(uri, storage.read_bytes(uri), new=False)

    def _committed(self, uri: str) -> Part | None:
        """Return the part that an earlier launch committed; one that is damaged is removed."""
        if not storage.exists(uri):
            return None
        payload = storage.read_bytes(uri)
        try:
            read_part(payload)
        except (ValueError, KeyError, OSError) as error:
            name = storage.display_name(uri)
            log(f"{name} is damaged ({one_line(error)}): scanned again", logging.WARNING)
            storage.remove(uri)
            return None
        return self._part(uri, payload, new=False)

    def _rows(self, unit: Unit, rows_of: RowsOf | None) -> Iterator[Row]:
        """Yield complete rows: with the model, the run and the time of the scan."""
        maker = self._maker
        maker.refresh_prompts()
        self._meter.begun = time.time()
        rows = rows_of(maker.spec, unit) if rows_of else maker.rows(maker.samples(unit))
        common = maker.provenance | {"run_id": self._run.run_id}
        for row in rows:
            yield row | common | {"scanned_at": datetime.now(UTC)}

    def _part(self, uri: str, payload: bytes, *, new: bool) -> Part:
        summary = read_summary(payload)
        labels, findings = found_in(payload)
        return Part(
            file=uri.removeprefix(self._run.output + "/"),
            rows=summary["rows"],
            size_bytes=len(payload),
            sha256=hashlib.sha256(payload).hexdigest(),
            statuses=summary["statuses"],
            codes=summary["codes"],
            incomplete=summary.get("incomplete", {}),
            labels=labels,
            findings=findings,
            new=new,
        )
