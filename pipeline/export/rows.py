"""Rows of a run as an export selects them, in constant memory; and as CSV or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from prompt_iml.pipeline.export.files import row_file
from prompt_iml.pipeline.run.folder import Json, Run, read_json
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.run.table import open_results
from prompt_iml.pipeline.storage import storage

BATCH = 1024

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of a run to export.

    Attributes:
        run: the run.
        config: its configuration.
        labels: labels of the rows; without any, all rows.
    """

    run: Run
    config: Json
    labels: Sequence[str] = ()

    @classmethod
    def of(cls, run: Run, labels: Sequence[str]) -> Selection:
        """Read the run's configuration."""
        return cls(run, read_json(f"{run.folder}/config.json"), labels)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows, in the order of the parts.

        Without threads, as Arrow's read ahead of a slower writer without end.
        """
        results = open_results(self.run)
        if self.labels:
            results = results.filter(ds.field("label").isin(list(self.labels)))
        ahead = {"batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
        batches = results.to_batches(
            columns=list(columns), batch_size=BATCH, cache_metadata=False, **ahead
        )
        while True:
            with storage.fetching(self.run.output):
                batch = next(batches, None)
            if batch is None:
                return
            if batch.num_rows:
                yield batch

    def scanned(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows of images that were scanned."""
        for batch in self.batches([*columns, "status"]):
            yield from (row for row in batch.to_pylist() if row["status"] == "ok")

    def root(self) -> str:
        """Return what the URIs of all scanned images begin with: the only input, if it is a folder,
        else the folder that they share; empty if they share none."""
        inputs, shared = self.config["inputs"], None
        root = f"{storage.canonical(inputs[0])}/" if len(inputs) == 1 else None
        for row in replace(self, labels=()).scanned(["uri"]):
            uri: str = row["uri"]
            if root and uri.startswith(root):
                return root
            shared = uri[: uri.rfind("/") + 1] if shared is None else shared
            while not uri.startswith(shared):
                shared = shared[: shared.rstrip("/").rfind("/") + 1]
        return shared or ""


def write_rows(selection: Selection, file: BinaryIO, kind: str) -> int:
    """Write all selected rows, failed ones too, as `csv` or `jsonl`; return their number.

    A CSV has no masks, and regions as JSON; text that a spreadsheet would run as a formula begins
    with `'`. The masks of JSON lines are COCO run lengths.
    """
    left_out = {"heatmap_png", "mask_rle"} if kind == "csv" else {"heatmap_png"}
    columns = [name for name in SCHEMA.names if name not in left_out]
    fields = [_csv_field(SCHEMA.field(name), kind) for name in columns]
    count = 0
    with row_file(file, f".{kind}", pa.schema(fields)) as write:
        for batch in selection.batches(columns):
            write(_flat(batch, columns) if kind == "csv" else batch)
            count += batch.num_rows
    return count


def _csv_field(field: pa.Field, kind: str) -> pa.Field:
    return pa.field(field.name, pa.string()) if field.name == "regions" and kind == "csv" else field


def _flat(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return rows whose regions are JSON, and whose text is no formula."""
    regions = [
        None if value is None else json.dumps(value) for value in batch["regions"].to_pylist()
    ]
    at = columns.index("regions")
    flat = batch.set_column(at, "regions", pa.array(regions, pa.string()))
    for at, field in enumerate(flat.schema):
        if field.type == pa.string():
            flat = flat.set_column(at, field.name, _no_formula(flat.column(at)))
    return flat


def _no_formula(texts: pa.Array) -> pa.Array:
    """Return texts of which those that a spreadsheet would run begin with `'`."""
    runs = pc.fill_null(pc.match_substring_regex(texts, r"^[=+\-@\t\r]"), False)
    return pc.if_else(runs, pc.binary_join_element_wise("'", texts, ""), texts)
