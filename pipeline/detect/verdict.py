"""`prompt-iml scan INPUT...` without `--output`: a verdict on each picture, and no Ray.

    list the inputs -> read -> rows, as a scan makes them -> a line each on stdout

Nothing is stored. Pictures are printed as they are done, so any number of them passes through
constant memory.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

from prompt_iml.engine.errors import EmptySource, OutputNotWritable
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.chosen_model import chosen_model
from prompt_iml.pipeline.detect.detector import finding
from prompt_iml.pipeline.detect.lines import counts_line, ending, verdict_line
from prompt_iml.pipeline.detect.pictures import Result, results
from prompt_iml.pipeline.images.jpeg import encode_jpeg
from prompt_iml.pipeline.logs import configure, log, until_closed
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.scan.rows import Row
from prompt_iml.pipeline.scan.scan import choose_prompt_set, row_spec, sliced, units_of
from prompt_iml.pipeline.scan.scan import scan as scan_to_output
from prompt_iml.pipeline.scan.scanner import RowMaker, RowSpec
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.s3 import use
from prompt_iml.pipeline.units import Sample, Unit

MANY = 200  # images after which storing the results is advised
NOT_PRINTED = ["mask_rle", "heatmap_png", "run_id"]
OVERLAY_QUALITY = 90
NAME_BYTES = 150  # of an overlay's name; file systems allow 255 with its endings


@dataclass(slots=True)
class Counts:
    """Counts of what was printed.

    Attributes:
        statuses, codes, labels: images by status, by error code, by label.
        incomplete: URIs of the shards that could not be read to their end.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    incomplete: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Count one row."""
        self.statuses[row["status"]] += 1
        self.codes.update([row["error_code"]] if "error_code" in row else [])
        self.labels.update([row["label"]] if "label" in row else [])

    def summary(self) -> Json:
        """Return the counts by the names that the summary of a scan gives them."""
        ok, failed = self.statuses["ok"], self.statuses["failed"]
        return {
            "listed": self.statuses.total(),
            **{name: self.statuses[name] for name in ("ok", "failed", "skipped")},
            "codes": dict(self.codes),
            "labels": dict(self.labels),
            "incomplete": len(self.incomplete),
            "failure_rate": failed / (ok + failed) if ok + failed else 0.0,
        }


def scan(settings: ScanSettings) -> Json:
    """Print a verdict on each image, or, with an output, store the results by a scan on Ray.

    Returns:
        The summary of the scan; of verdicts only its counts.
    """
    if not settings.output:
        return print_verdicts(settings)
    summary = scan_to_output(settings)
    for line in ending(summary):
        log(line)
    return summary


def print_verdicts(settings: ScanSettings) -> Json:
    """Print a line for each image on stdout, and the counts on stderr; return the counts.

    Raises:
        UsageError: an input is missing or holds nothing to scan, or a setting is wrong.
    """
    started = time.monotonic()
    configure(settings.log)
    use(settings.access)
    model = load_model(settings.model)
    prompt_set = choose_prompt_set(settings, model, "")
    model = chosen_model(
        model,
        prompt_set=prompt_set,
        policy=settings.policy,
        closer_look=settings.closer_look,
    )
    units = sliced(units_of(settings, limit=settings.limit), settings.slice)
    first = next(units, None)
    if first is None:
        raise EmptySource(f"share {settings.slice} of the inputs holds nothing to scan")
    for note in model.notes:
        log(f"note: {note}")
    spec = row_spec(settings, model, prompt_set)
    maker, counts = RowMaker(spec), Counts()
    overlays = Overlays(settings.overlay, spec) if settings.overlay else None
    with until_closed():
        for found in results(maker, _samples(maker, chain([first], units), counts)):
            counts.add(found.row)
            _print(found.row, settings.json_lines)
            if overlays and found.row.get("mask_rle"):
                overlays.write(found)
            if counts.statuses.total() == MANY:
                log(f"{MANY} images so far; with --output FOLDER a scan keeps them and resumes")
    summary = counts.summary()
    if summary["listed"] > 1 or summary["skipped"]:
        log(f"{counts_line(summary)}, in {time.monotonic() - started:.1f} s")
    return summary


def _samples(maker: RowMaker, units: Iterable[Unit], counts: Counts) -> Iterator[Sample]:
    """Yield the images of units; note the shards that break off or lack images, as a run does."""
    for unit in units:
        count, broke_off = 0, False
        for sample in maker.samples(unit):
            count += 1
            broke_off |= sample.member is None
            yield sample
        if unit.kind != "objects" and (broke_off or count < unit.expected):
            counts.incomplete.add(unit.uri)


def _print(row: Row, as_json: bool) -> None:
    """Print a row; to people only images are shown, whether they could be read or not."""
    if as_json:
        print(json.dumps(columns(row)), flush=True)
    elif row["status"] != "skipped":
        print(verdict_line(row), flush=True)


def columns(row: Row) -> Json:
    """Return a row's columns as a table holds them (float32), without `NOT_PRINTED`."""
    from prompt_iml.pipeline.run.schema import row_to_json

    return row_to_json(row, NOT_PRINTED)


class Overlays:
    """Writer of pictures with their masks drawn, `NAME-overlay.jpg` for each that has a mask.

    Args:
        folder: local or s3:// folder to write to.
        spec: limits of decoding.
    """

    def __init__(self, folder: str, spec: RowSpec) -> None:
        self._folder, self._spec = storage.canonical(folder), spec
        self._names: Counter[str] = Counter()

    def write(self, found: Result) -> None:
        """Write the overlay of a picture. Raises `OutputNotWritable`."""
        shown = encode_jpeg(finding(found, self._spec).overlay(), OVERLAY_QUALITY)
        try:
            storage.write(f"{self._folder}/{self._name(found.row)}", shown)
        except OutputNotWritable as error:  # of --output, which a verdict has not
            message = str(error).removesuffix("; choose another --output")
            raise OutputNotWritable(f"{message}; choose another --overlay") from error

    def _name(self, row: Row) -> str:
        """Return a name that no other picture of this command has."""
        stems = [PurePosixPath(part).stem for part in (row["uri"], row["member"] or "")]
        whole = "-".join(stem for stem in stems if stem)
        name = whole.encode("utf-8", "replace")[-NAME_BYTES:].decode("utf-8", "ignore")
        self._names[name] += 1
        number = f"-{self._names[name]}" if self._names[name] > 1 else ""
        return f"{name}-overlay{number}.jpg"
