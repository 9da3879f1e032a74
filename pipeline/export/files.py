"""Files that are written as a stream, of any length, and appear whole or not at all."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from prompt_iml.engine.errors import OutputNotWritable, UsageError
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.storage import storage

Write = Callable[[pa.RecordBatch], None]

FORMATS = (".csv", ".jsonl", ".parquet")


@contextmanager
def written(uri: str) -> Iterator[BinaryIO]:
    """Yield a file that is moved or uploaded to a canonical URI when the block ends without error.

    Raises:
        OutputNotWritable: the file cannot be written there.
    """
    try:
        with _moved(storage.local_path(uri)) if storage.is_local(uri) else _uploaded(uri) as file:
            yield file
    except (OSError, Boto3Error, BotoCoreError, ClientError) as error:
        shown = storage.display_name(uri)
        raise OutputNotWritable(f"cannot write {shown}: {one_line(error)}") from error


@contextmanager
def _moved(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{secrets.token_hex(8)}"  # the name itself may be as long as names are
    try:
        with aside.open("xb") as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _uploaded(uri: str) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile() as file:
        yield cast(BinaryIO, file)
        file.flush()
        storage.upload(uri, cast(BinaryIO, file))


def check_format(path: str) -> str:
    """Return the extension of a file of rows; raise `UsageError` for one that is not written."""
    extension = Path(path).suffix.lower()
    if extension not in FORMATS:
        raise UsageError(f"{path}: give a file that ends in {', '.join(FORMATS)}")
    return extension


@contextmanager
def row_file(file: BinaryIO, extension: str, schema: pa.Schema) -> Iterator[Write]:
    """Yield a function that writes batches of rows: as CSV, JSON lines or Parquet."""
    if extension == ".jsonl":
        yield lambda batch: _write_lines(file, batch)
    elif extension == ".csv":
        with pyarrow.csv.CSVWriter(file, schema) as table:
            yield table.write_batch
    else:
        with pq.ParquetWriter(file, schema, compression="zstd") as table:
            yield table.write_batch


def _write_lines(file: BinaryIO, batch: pa.RecordBatch) -> None:
    for row in batch.to_pylist():
        file.write(json.dumps(row, default=_as_json, allow_nan=False).encode() + b"\n")


def _as_json(value: Any) -> str:
    """Return what JSON lacks: a mask's run lengths, which are ASCII, or a time."""
    return value.decode() if isinstance(value, bytes) else value.isoformat()


def put(uri: str, data: bytes) -> None:
    """Write one file of a folder; raises `OutputNotWritable` as `written`."""
    with written(uri) as file:
        file.write(data)
