"""One unit from source to committed rows: what runs inside a scan actor.

read_unit -> decode (threads) -> Detector (tiles, engine, masks) -> rows -> one file, once
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.checkpoint import Model, load_model
from engine.detector import Detector
from engine.errors import DecodeError, ImageError
from engine.image import Image
from engine.runtimes import open_engine
from pipeline import storage
from pipeline.decode import Decoded, DecodeLimits, decode
from pipeline.registry import CurrentPrompts, PromptSource
from pipeline.results import RowWriter, read_summary
from pipeline.rows import Row, failure, identity, picture, provenance, result
from pipeline.run import Run
from pipeline.sources import claims_to_be_image, read_unit
from pipeline.sources.ordered import in_order
from pipeline.units import Sample, Unit

Tick = Callable[[int, int], None]

FETCH_THREADS = 16  # objects fetched at once: they wait for the store, not for a CPU


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """What an actor needs to know; small, because it travels to every actor.

    Attributes:
        run: where results go.
        model: name or path of the model folder.
        engine: runtime, as the settings name it.
        threads: threads for the engine, and for decoding.
        max_pixels, max_object_bytes: limits of one image.
        heatmap: whether rows carry the probabilities at network resolution.
        prompts: registry to take prompts and policy from; None: they come with the model.
    """

    run: Run
    model: str
    engine: str
    threads: int
    max_pixels: int
    max_object_bytes: int
    heatmap: bool
    prompts: PromptSource | None = None


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
    """Scans units, one after another, with one engine."""

    def __init__(self, spec: ScanSpec) -> None:
        model = load_model(spec.model)
        self._current = CurrentPrompts(model, spec.prompts) if spec.prompts else None
        self._engine = open_engine(model, spec.engine, threads=spec.threads)
        self._spec = spec
        self._limits = DecodeLimits(max_pixels=spec.max_pixels)
        self._pool = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        self._use(self._current.model if self._current else model)

    def scan(self, unit_id: str, unit: Unit, tick: Tick) -> Part:
        """Scan a unit and commit its rows, unless they are committed already.

        Args:
            unit_id: the unit's id in this run.
            unit: what to read.
            tick: told the images and bytes done since the last call, for progress.
        """
        uri = self._spec.run.part_uri(unit_id)
        if storage.exists(uri):
            return self._part(uri, storage.read_bytes(uri), new=False)
        if self._current and self._current.look():
            self._use(self._current.model)
        writer = RowWriter(unit_id=unit_id, run_id=self._spec.run.run_id)
        for row in self._rows(unit):
            writer.add(row | self._provenance | {"scanned_at": datetime.now(UTC)})
            tick(1, row.get("size_bytes") or 0)
        payload = writer.close()
        if storage.create_once(uri, payload):
            return self._part(uri, payload, new=True)
        return self._part(uri, storage.read_bytes(uri), new=False)

    def _use(self, model: Model) -> None:
        """Scan with the model's prompts and policy from now on, and say so in the rows."""
        self._engine.load_prompts(model.prompts)
        self._detector = Detector(self._engine, model.view, model.policy)
        self._provenance = provenance(self._spec.run, model, self._engine.name)

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

    def _rows(self, unit: Unit) -> Iterator[Row]:
        """One row a sample, in the order in which they are done."""
        without_image: deque[Row] = deque()
        for row, finding in self._detector.detect(self._images(unit, without_image)):
            if isinstance(finding, ImageError):
                yield row | failure(finding)
            else:
                yield row | result(finding, heatmap=self._spec.heatmap)
            while without_image:
                yield without_image.popleft()
        yield from without_image

    def _images(self, unit: Unit, without_image: deque[Row]) -> Iterator[tuple[Row, Image]]:
        """The images that decode; rows of the others go to `without_image`."""
        samples = read_unit(
            unit, max_object_bytes=self._spec.max_object_bytes, threads=FETCH_THREADS
        )
        # In flight at most 2 images a thread, so that a shard is never held whole.
        ahead = 2 * self._spec.threads
        for row, outcome in in_order(self._pool, self._open, samples, ahead):
            if isinstance(outcome, ImageError):
                without_image.append(row | failure(outcome))
            else:
                yield row | picture(outcome), outcome.image

    def _open(self, sample: Sample) -> tuple[Row, Decoded | ImageError]:
        """Decode one sample; whatever goes wrong is this image's own failure."""
        row = identity(sample)
        if sample.error:
            return row, sample.error
        claims_image = claims_to_be_image(sample.member or sample.uri)
        started = time.perf_counter()
        try:
            outcome: Decoded | ImageError = decode(
                sample.data or b"", self._limits, claims_image=claims_image
            )
        except ImageError as error:
            outcome = error
        except Exception as error:  # here alone: no image may end the job
            outcome = DecodeError(f"{type(error).__name__}: {error}")
        row["decode_ms"] = 1e3 * (time.perf_counter() - started)
        return row, outcome
