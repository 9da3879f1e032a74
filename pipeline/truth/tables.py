"""Truth in files: tables of images and masks, JSON lists of pairs, COCO annotations.

A table is text (CSV, TSV, semicolons, JSON lines; see `prompt_iml.pipeline.sources.tables`) or
Parquet, with a column of images and one of masks, labels or both:

    image    path or URI, also `shard.tar#member`; or uri and member, as in the scan's results
    mask     image file, bright where manipulated, or the bytes of a PNG; empty, None or Negative
             for an authentic image
    label    authentic or manipulated; without this column, what the mask says
    kind     kind of manipulation
    photo    photograph that the image was made from

Paths are relative to the table or, where it has no such file beside it, to the working directory.
A JSON list is the one of IMDL-BenCo: `[["Tp/1.jpg", "Gt/1.png"], ["Au/2.jpg", "Negative"]]`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from prompt_iml.engine.errors import BadLabels, DamagedShard, UsageError
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.parquet import open_parquet
from prompt_iml.pipeline.sources.tables import (
    MAX_LINE,
    URI_COLUMNS,
    cells_of,
    decoded_head,
    first_of,
    open_rows,
    read_text,
)
from prompt_iml.pipeline.sources.uri_list import PARQUET_MAGIC, located
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth.coco import coco_labels, is_coco
from prompt_iml.pipeline.truth.labels import Faults, Label, Verdict, split_member

COLUMNS = {
    "image": URI_COLUMNS,
    "mask": (
        "mask", "mask_path", "mask_file", "mask_name", "mask_uri", "gt", "gt_path", "gt_file",
        "ground_truth", "groundtruth",
    ),
    "label": (
        "label", "truth", "class", "target", "manipulated", "is_manipulated", "forged",
        "is_forged", "tampered", "fake",
    ),
    "member": ("member",),
    "kind": ("kind",),
    "photo": ("photo",),
}  # fmt: skip
NO_MASK = {"", "none", "null", "nan", "negative"}
VERDICTS: dict[str, Verdict | None] = {
    "": None,
    **dict.fromkeys(("authentic", "real", "pristine", "original", "genuine"), "authentic"),
    **dict.fromkeys(("au", "negative", "0", "0.0", "false", "no"), "authentic"),
    **dict.fromkeys(("manipulated", "forged", "tampered", "fake", "spliced"), "manipulated"),
    **dict.fromkeys(("tp", "positive", "1", "1.0", "true", "yes"), "manipulated"),
}
MAX_JSON_BYTES = 512 << 20  # a JSON document is parsed whole
HEAD_BYTES = MAX_LINE  # so that they hold the first line of JSON lines

HOLDS = {  # what columns of a Parquet file hold, where not any value will do
    "image": "names of files: name them, or this file and the number of the row as uri and member",
    "mask": "names of files, and no bytes of PNG files",
}

Row = Mapping[str, Any]


def table_labels(uri: str, shown: str, faults: Faults) -> list[Label]:
    """Return the labels of a file.

    Args:
        uri: canonical URI of the file.
        shown: its name for messages.
        faults: collects the faults of its rows.

    Raises:
        FetchError: the file cannot be read.
        UsageError: it is no table, list or COCO file, or a column is missing.
    """
    with storage.open_stream(uri) as stream:
        head = stream.read(HEAD_BYTES)
    folder = uri.rpartition("/")[0]
    if head.startswith(PARQUET_MAGIC):
        return _labels(_parquet_rows(uri, shown), folder, faults)
    document = _document(uri, shown, decoded_head(head))
    if isinstance(document, dict) and is_coco(document):
        return coco_labels(document, uri, faults)
    if isinstance(document, list):
        return _listed(document, shown, folder, faults)
    return _labels(_text_rows(uri, shown), folder, faults)


def _labels(rows: Iterable[Row], folder: str, faults: Faults) -> list[Label]:
    labels = []
    for number, row in enumerate(rows):
        with faults.of(number):
            labels.append(_label(number, row, folder))
    return labels


def _listed(document: list[Any], shown: str, folder: str, faults: Faults) -> list[Label]:
    """Return the labels of the entries of a JSON list."""
    rows = [cells_of(each, COLUMNS) if isinstance(each, dict) else each for each in document]
    if named := [row for row in rows if isinstance(row, dict)]:
        _check_columns(set().union(*named), shown)
    labels = []
    for number, row in enumerate(rows):
        with faults.of(number):
            row = row if isinstance(row, dict) else _pair(row)
            labels.append(_label(number, row, folder))
    return labels


def _label(number: int, row: Row, folder: str) -> Label:
    """Return the label of a row; raise `ValueError` or `UsageError` for its fault."""
    image, mask, member = (row.get(name) or "" for name in ("image", "mask", "member"))
    if not image:
        raise ValueError("has no image")
    if not member:
        image, member = split_member(image)
    if isinstance(mask, str):
        mask = "" if mask.lower() in NO_MASK else located(mask, folder)
    kind = row.get("kind") or ""
    label = _verdict(row.get("label") or "", mask, kind)
    uri = storage.canonical(located(image, folder))
    return Label(number, uri, member or None, label, mask or None, kind, row.get("photo") or "")


def _verdict(text: str, mask: str | bytes, kind: str) -> Verdict | None:
    if text.lower() not in VERDICTS:
        raise ValueError(f"has the label {text!r}: use authentic or manipulated")
    verdict = VERDICTS[text.lower()]
    if verdict is None and not mask:
        return "authentic"
    return "manipulated" if verdict is None and kind not in ("", "authentic") else verdict


def _check_columns(found: Iterable[str], shown: str) -> None:
    """Raise `BadLabels` unless there are images, and masks or labels."""
    known = set(found)
    absent = [] if "image" in known else ["image"]
    absent += [] if known & {"mask", "label"} else ["mask or label"]
    if absent:
        raise BadLabels(f"{shown}: add the column {', '.join(absent)}")


def _text_rows(uri: str, shown: str) -> Iterator[Row]:
    with storage.open_stream(uri) as stream:
        try:
            found, rows = open_rows(stream, shown, COLUMNS)
            _check_columns(found, shown)
            yield from rows
        except (csv.Error, DamagedShard) as error:
            raise UsageError(f"{shown} is no table: {one_line(error)}") from error


def _parquet_rows(uri: str, shown: str) -> Iterator[Row]:
    try:
        with open_parquet(uri) as file:
            names = file.schema_arrow.names
            single = [name for name in names if names.count(name) == 1]
            lowered = [name.lower() for name in single]
            places = {column: first_of(known, lowered) for column, known in COLUMNS.items()}
            found = {column: single[at] for column, at in places.items() if at is not None}
            _check_columns(found, shown)
            for column, name in found.items():
                if not _holds(file.schema_arrow.field(name).type, column):
                    raise BadLabels(f"{shown}: the column {name} holds no {HOLDS[column]}")
            for batch in file.iter_batches(batch_size=256, columns=list(found.values())):
                for row in batch.to_pylist():
                    yield {column: _value(row[name]) for column, name in found.items()}
    except (pa.ArrowException, OSError, DamagedShard) as error:
        raise BadLabels(f"{shown} is not a Parquet file ({one_line(error)[:200]})") from error


def _holds(kind: pa.DataType, column: str) -> bool:
    """Return whether an Arrow type may be that of a column."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if column not in HOLDS or pa.types.is_null(kind):
        return True
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return column == "mask" and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _value(value: object) -> str | bytes:
    return value if isinstance(value, bytes) else "" if value is None else str(value)


def _document(uri: str, shown: str, head: str) -> Any:
    """Return a whole JSON document; None for JSON lines and all other text."""
    start = head.lstrip()
    if not start.startswith(("[", "{")) or _is_line(start.partition("\n")[0]):
        return None
    size = storage.look_up(uri)
    if size is None or size.size_bytes > MAX_JSON_BYTES:
        raise UsageError(f"{shown} is too large for one JSON document: write a line for each image")
    with storage.open_stream(uri) as stream:
        text = read_text(stream, shown)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown} is no JSON: {one_line(error)[:100]}") from error


def _is_line(text: str) -> bool:
    """Return whether the first line of a file is one of JSON lines."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not is_coco(row)


def _pair(entry: object) -> Row:
    """Return the cells of a pair of an image and its mask, which may be null."""
    match entry:
        case [str(image), str() | None as mask]:
            return {"image": image, "mask": mask or ""}
        case _:
            raise ValueError("is neither an object nor a pair of an image and its mask")
