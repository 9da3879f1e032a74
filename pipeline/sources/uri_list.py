"""Reading of lists of URIs: text, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

import pyarrow as pa

from prompt_iml.engine.errors import Denied, FetchError, UsageError
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.parquet import ID_COLUMNS, open_parquet, text
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef

URI_COLUMNS = ("uri", "url", "path", "image")
PARQUET_MAGIC = b"PAR1"
ENTRIES_TRIED = 10
LOCAL_FILE = "a list in an object store names a local file: add --trust-lists to read it"

Entry = tuple[str, str | None]


def read_list(uri: str, *, trust_lists: bool = False) -> Iterator[ObjectRef]:
    """Yield the objects that a list names, one per line or row.

    A list is text with one URI per line (blank lines and `#` comments are skipped), or CSV or
    Parquet with a column `uri`, `url`, `path` or `image` and optionally `content_id` or `id`.
    Relative names are relative to the list's folder. An entry that cannot be read is also an
    object, which fails when it is read.

    Args:
        uri: URI of the list.
        trust_lists: whether a list in an object store may name files of the machines that scan;
            the authors of a list need not be allowed to read those.

    Raises:
        FetchError: the list cannot be read.
        UsageError: the list is damaged, or has no such column.
    """
    folder = uri.rpartition("/")[0]
    with storage.open_stream(uri) as stream:
        is_parquet = stream.read(4) == PARQUET_MAGIC
        stream.seek(0)
        entries = _parquet_entries(uri) if is_parquet else _text_entries(stream)
        try:
            for name, content_id in entries:
                named = _absolute(name, folder)
                is_strange = storage.is_s3(uri) and named.startswith("file://")
                refused = LOCAL_FILE if is_strange and not trust_lists else ""
                yield ObjectRef(named, content_id=content_id, refused=refused)
        except csv.Error as error:
            raise UsageError(f"{storage.display_name(uri)} is no CSV: {error}") from error
        except pa.ArrowException as error:
            name, reason = storage.display_name(uri), one_line(error)[:200]
            raise UsageError(f"{name} is damaged: {reason}") from error


def is_list(uri: str, head: bytes) -> bool:
    """Return whether a text file with this head is a list rather than, say, a README.

    A list has a URI or the name of a file among its first entries, or the header of a list, or only
    comments; an empty file is a list by its extension.
    """
    text_head = head.decode("utf-8-sig", "surrogateescape")
    lines = [line.strip() for line in text_head.splitlines() if not _is_blank(line)]
    if not lines:
        return bool(head) or uri.lower().endswith((".txt", ".csv", ".tsv", ".lst", ".list"))
    if _first_of(URI_COLUMNS, _header(lines[0])) is not None:
        return True
    folder = uri.rpartition("/")[0]
    return any("://" in line or _is_file(_absolute(line, folder)) for line in lines[:ENTRIES_TRIED])


def _is_file(uri: str) -> bool:
    try:
        return storage.look_up(uri) is not None
    except Denied:  # which a store may also return for a missing object
        return True
    except FetchError:
        return False


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _parquet_entries(uri: str) -> Iterator[Entry]:
    with open_parquet(uri) as file:
        schema = file.schema_arrow
        texts = [field.name for field in schema if _is_text(field.type)]
        found = _first_of(URI_COLUMNS, texts)
        if found is None:
            raise UsageError(
                f"{storage.display_name(uri)}: no column of image bytes or of URIs "
                f"({', '.join(URI_COLUMNS)}); there are: {', '.join(schema.names)}"
            )
        ids = [name for name in ID_COLUMNS if name in schema.names][:1]
        for batch in file.iter_batches(columns=[texts[found], *ids]):
            names = batch.column(texts[found]).cast(pa.large_string()).cast(pa.large_binary())
            content_ids = map(text, batch.column(ids[0])) if ids else [None] * len(names)
            for name, content_id in zip(names.to_pylist(), content_ids, strict=True):
                yield (name or b"").decode("utf-8", "surrogateescape"), content_id


def _text_entries(stream: BinaryIO) -> Iterator[Entry]:
    lines = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    first = next((line for line in lines if not _is_blank(line)), "")
    header = _header(first)
    column, id_column = _first_of(URI_COLUMNS, header), _first_of(ID_COLUMNS, header)
    if column is None:
        yield from ((line.strip(), None) for line in chain([first], lines) if not _is_blank(line))
        return
    for row in filter(None, csv.reader(lines, delimiter=_delimiter(first))):
        yield _cell(row, column), storage.display_name(_cell(row, id_column)) or None


def _header(line: str) -> list[str]:
    fields = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return [name.strip().lower() for name in fields]


def _delimiter(header: str) -> str:
    return "\t" if "\t" in header else ","


def _is_blank(line: str) -> bool:
    return not line.strip() or line.startswith("#")


def _first_of(names: tuple[str, ...], header: list[str]) -> int | None:
    """Return the index in the header of the first name that it contains; None without any."""
    return next((header.index(name) for name in names if name in header), None)


def _cell(row: list[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""


def _absolute(name: str, folder: str) -> str:
    """Return the URI of an entry; one with another scheme is left unchanged."""
    if "://" in name or not name:
        try:
            return storage.canonical(name)
        except UsageError:
            return name
    if name.startswith("/") or not storage.is_s3(folder):
        return storage.canonical(str(storage.local_path(folder) / name))
    bucket, key = storage.split_s3(folder)
    return f"s3://{bucket}/{posixpath.normpath(posixpath.join(key, name))}"
