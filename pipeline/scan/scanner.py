"""One unit from source to committed rows: what runs inside a scan actor.

read_unit -> decode (threads) -> Detector (tiles, engine, masks) -> rows -> one file, once
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.errors import DecodeError, ImageError, OutOfMemory, UsageError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.images.decode import Decoded, DecodeLimits, decode
from prompt_iml.pipeline.logs import Format, tell
from prompt_iml.pipeline.monitoring.meter import Meter
from prompt_iml.pipeline.ordered import in_order
from prompt_iml.pipeline.registry.registry import CurrentPrompts, PromptSource
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.schema import RowWriter, read_summary
from prompt_iml.pipeline.scan.rows import Row, failure, identity, provenance, result
from prompt_iml.pipeline.scan.watchdog import Unwatched, Watch, WatchedEngine
from prompt_iml.pipeline.sources import read_unit
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample, Unit

Tick = Callable[[int, int], None]

FETCH_THREADS = 16  # objects fetched at once: they wait for the store, not for a CPU


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """What an actor needs to know; small, because it travels to every actor.

    Attributes:
        run: where results go.
        model: name or path of the model folder.
        model_sha256: digest of the model that the run is bound to.
        engine: runtime, as the settings name it.
        threads: threads for the engine, and for decoding.
        max_pixels, max_object_bytes: limits of one image.
        heatmap: whether rows carry the probabilities at network resolution.
        image_timeout: seconds that an image's decode, or a run of the engine, may take.
        prompts: registry to take prompts and policy from; None: they come with the model.
        log: how lines of the actors look.
    """

    run: Run
    model: str
    model_sha256: str
    engine: str
    threads: int
    max_pixels: int
    max_object_bytes: int
    heatmap: bool
    image_timeout: float
    prompts: PromptSource | None = None
    log: Format = "text"

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ScanSpec:
        """What `to_json` gave."""
        fields = json.loads(text)
        prompts = fields.pop("prompts")
        source = PromptSource(**prompts) if prompts else None
        return cls(**fields | {"run": Run(**fields["run"])}, prompts=source)


RowsOf = Callable[[ScanSpec, Unit], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Part:
    """A committed unit, as its file tells.

    Attributes:
        file: name below the output.
        rows, size_bytes, sha256: of the file.
        statuses: rows by status.
        codes: rows by error code.
        new: whether this launch wrote it.
    """

    file: str
    rows: int
    size_bytes: int
    sha256: str
    statuses: dict[str, int]
    codes: dict[str, int]
    new: bool


class Scanner:
    """Scans units, one after another, with one engine.

    Args:
        spec: what it needs to know.
        watch: told of each decode and each run of the engine.
        meter: counts what is done.

    Attributes:
        provenance: columns that `rows` leaves out: what made them.

    Raises:
        UsageError: the model is not here, or is another one than the run's.
    """

    def __init__(
        self, spec: ScanSpec, watch: Watch | None = None, meter: Meter | None = None
    ) -> None:
        model = load_model(spec.model)
        if model.sha256 != spec.model_sha256:
            raise UsageError(
                f"{spec.model} is {model.id} here, and not what the run began with: install the "
                "same version of prompt-iml on every node"
            )
        self._watch, self._meter = watch or Unwatched(), meter or Meter()
        self._current = CurrentPrompts(model, spec.prompts) if spec.prompts else None
        engine = open_engine(model, spec.engine, threads=spec.threads)
        self._engine = WatchedEngine(engine, self._watch)
        self._spec = spec
        self._limits = DecodeLimits(max_pixels=spec.max_pixels)
        self._pool = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        self._use(self._current.model if self._current else model)

    def scan(self, unit_id: str, unit: Unit, tick: Tick, rows_of: RowsOf | None = None) -> Part:
        """Scan a unit and commit its rows, unless they are committed already.

        Args:
            unit_id: the unit's id in this run.
            unit: what to read.
            tick: told the images and bytes done since the last call, for progress.
            rows_of: who makes the rows; None: this process.
        """
        uri = self._spec.run.part_uri(unit_id)
        if storage.exists(uri):
            return self._part(uri, storage.read_bytes(uri), new=False)
        if self._current and self._current.look():
            self._use(self._current.model)
        writer = RowWriter(unit_id=unit_id, run_id=self._spec.run.run_id)
        rows = rows_of(self._spec_now(), unit) if rows_of else self.rows(self.samples(unit))
        self._meter.begun = time.time()
        for row in rows:
            writer.add(row | self.provenance | {"scanned_at": datetime.now(UTC)})
            self._count(row)
            tick(1, row.get("size_bytes") or 0)
        started = time.perf_counter()
        payload = writer.close()
        created = storage.create_once(uri, payload)
        self._meter.seconds["commit"] += time.perf_counter() - started
        self._meter.begun = 0.0
        if created:
            return self._part(uri, payload, new=True)
        told = f"unit {unit_id} was committed by another; these rows of it are dropped"
        tell(told, logging.WARNING, unit=unit_id)
        return self._part(uri, storage.read_bytes(uri), new=False)

    def _count(self, row: Row) -> None:
        meter = self._meter
        meter.images[row["status"], row.get("error_code") or ""] += 1
        meter.size_bytes += row.get("size_bytes") or 0
        meter.seconds["decode"] += (row.get("decode_ms") or 0) / 1e3
        meter.seconds["infer"] += (row.get("infer_ms") or 0) / 1e3

    def _spec_now(self) -> ScanSpec:
        """With the prompts of this moment, for another process."""
        return replace(self._spec, prompts=self._current.source if self._current else None)

    def _use(self, model: Model) -> None:
        """Scan with the model's prompts and policy from now on, and say so in the rows."""
        self._engine.load_prompts(model.prompts)
        self._detector = Detector(
            self._engine, model.view, model.policy, self._engine.batch, self._meter.batch
        )
        self._meter.model = (model.id, model.prompts.id, self._engine.name)
        self.provenance = provenance(self._spec.run, model, self._engine.name)

    def _part(self, uri: str, payload: bytes, *, new: bool) -> Part:
        summary = read_summary(payload)
        return Part(
            file=uri.removeprefix(self._spec.run.output + "/"),
            rows=summary["rows"],
            size_bytes=len(payload),
            sha256=hashlib.sha256(payload).hexdigest(),
            statuses=summary["statuses"],
            codes=summary["codes"],
            new=new,
        )

    def samples(self, unit: Unit) -> Iterator[Sample]:
        """What there is to scan in a unit."""
        return read_unit(unit, max_object_bytes=self._spec.max_object_bytes, threads=FETCH_THREADS)

    def rows(self, samples: Iterable[Sample]) -> Iterator[Row]:
        """One row a sample, in the order in which they are done."""
        without_image: deque[Row] = deque()
        for row, finding in self._detector.detect(self._images(samples, without_image)):
            if isinstance(finding, ImageError):
                yield row | failure(finding)
            else:
                yield row | result(finding, heatmap=self._spec.heatmap)
            while without_image:
                yield without_image.popleft()
        yield from without_image

    def _images(
        self, samples: Iterable[Sample], without_image: deque[Row]
    ) -> Iterator[tuple[Row, Image]]:
        """The images that decode; rows of the others go to `without_image`."""
        # In flight at most 2 images a thread, so that a shard is never held whole.
        ahead = 2 * self._spec.threads
        fetched = self._meter.timed("fetch", samples)
        opened = in_order(self._pool, self._open, fetched, ahead, self._queue)
        for row, outcome in self._meter.timed("wait", opened):
            if isinstance(outcome, ImageError):
                without_image.append(row | failure(outcome))
            else:
                yield row | outcome.facts, outcome.image

    def _queue(self, count: int) -> None:
        self._meter.queue = count

    def _open(self, sample: Sample) -> tuple[Row, Decoded | ImageError]:
        """Decode one sample; whatever goes wrong is this image's own failure."""
        row = identity(sample)
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
            outcome = OutOfMemory("decoding takes more memory than there is")
        except Exception as error:  # here alone: no image may end the job
            outcome = DecodeError(f"{type(error).__name__}: {error}")
        row["decode_ms"] = 1e3 * (time.perf_counter() - started)
        return row, outcome
