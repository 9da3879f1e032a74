"""Reading of lists of URIs: tables in text or Parquet."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urljoin

import pyarrow as pa

from prompt_iml.engine.errors import Denied, FetchError, UsageError
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.parquet import batches, open_parquet, text
from prompt_iml.pipeline.sources.tables import (
    ID_COLUMNS,
    ROWS_TRIED,
    URI_COLUMNS,
    decoded_head,
    first_of,
    is_blank,
    layout_of,
    read_table,
)
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef

PARQUET_MAGIC = b"PAR1"
MAX_NAME = 8192  # bytes that are kept of an entry: longer ones are in no store
OUTSIDE = "a list in a bucket or on a server names a file elsewhere: add --trust-lists to read it"

Entry = tuple[str, str | None]


def read_list(uri: str, *, trust_lists: bool = False) -> Iterator[ObjectRef]:
    """Yield the objects that a list names, one per line or row.

    A list is a text table (see `layout_of`) or a Parquet file with one of `URI_COLUMNS` and
    optionally one of `ID_COLUMNS`. Relative names are relative to the list's folder or, where a
    local list has no such file there, to the working directory. An entry that cannot be read is
    also an object, which fails when it is read.

    Args:
        uri: URI of the list.
        trust_lists: whether a list in a bucket or on a server may name other places, and files of
            the machines that scan; the authors of a list need not be allowed to read those.

    Raises:
        FetchError: the list cannot be read.
        UsageError: the list is damaged, or has no such column.
    """
    folder = _folder(uri)
    with storage.open_stream(uri) as stream:
        is_parquet = stream.read(4) == PARQUET_MAGIC
        stream.seek(0)
        shown, exists = storage.display_name(uri), partial(_exists, folder=folder)
        entries = _parquet_entries(uri) if is_parquet else read_table(stream, shown, exists)
        try:
            for name, content_id in entries:
                named = located(name[: MAX_NAME + 1], folder)
                refused = "" if trust_lists or not _leaves(uri, named) else OUTSIDE
                shown_id = storage.display_name((content_id or "")[:MAX_NAME]) or None
                yield ObjectRef(named, content_id=shown_id, refused=refused)
        except csv.Error as error:
            raise UsageError(f"{shown} is no CSV: {error}") from error
        except pa.ArrowException as error:
            raise UsageError(f"{shown} is damaged: {one_line(error)[:200]}") from error


def _leaves(uri: str, named: str) -> bool:
    """Return whether a list that is not local names a readable file in another place."""
    if storage.is_local(uri) or not storage.is_canonical(named):
        return False
    return storage.place(named) != storage.place(uri)


def is_list(uri: str, head: bytes) -> bool:
    """Return whether a text file with this head is a list rather than, say, a README.

    A list has a layout (see `layout_of`), or the name of a file among its first entries, or only
    comments; an empty file is a list by its extension.
    """
    text_head = decoded_head(head)
    lines = [line for line in text_head.splitlines() if not is_blank(line)]
    if not lines:
        return bool(head) or uri.lower().endswith((".txt", ".csv", ".tsv", ".lst", ".list"))
    folder = _folder(uri)
    if layout_of(lines[: ROWS_TRIED + 1], partial(_exists, folder=folder)):
        return True
    return any(_may_exist(line.strip(), folder) for line in lines[:ROWS_TRIED])


def _exists(name: str, folder: str) -> bool:
    if name.startswith("https://"):  # a name, not a sentence; it is asked for once, by the scan
        return True
    try:
        return storage.look_up(located(name, folder)) is not None
    except (FetchError, UsageError):
        return False


def _may_exist(name: str, folder: str) -> bool:
    if name.startswith("https://"):
        return True
    try:
        return storage.look_up(_absolute(name, folder)) is not None
    except Denied:  # which a store may also return for a missing object
        return True
    except (FetchError, UsageError):
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
        single = [name for name in schema.names if schema.names.count(name) == 1]
        texts = [name for name in single if _is_text(schema.field(name).type)]
        found = first_of(URI_COLUMNS, texts)
        if found is None:
            raise UsageError(
                f"{storage.display_name(uri)}: no column of image bytes or of URIs "
                f"({', '.join(URI_COLUMNS)}); there are: {', '.join(schema.names)}"
            )
        columns = [texts[found], *[name for name in ID_COLUMNS if name in single][:1]]
        for group in range(file.num_row_groups):
            for batch in batches(file, group, columns):
                for name, *ids in zip(*(batch.column(each) for each in columns), strict=True):
                    yield _name(name), text(ids[0]) if ids else None


def _name(cell: Any) -> str:
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    name = bytes(cell.as_buffer()[: MAX_NAME + 1]) if cell.is_valid else b""
    return name.decode("utf-8", "surrogateescape")


def located(name: str, folder: str) -> str:
    """Return the URI of an entry: in the list's folder or, if only there, where the user is."""
    named = _absolute(name, folder)
    is_relative = not (name.startswith("/") or "://" in name) and storage.is_local(folder)
    if is_relative and name and not os.path.lexists(storage.local_path(named)):
        here = storage.canonical(name)
        return here if os.path.lexists(storage.local_path(here)) else named
    return named


def _absolute(name: str, folder: str) -> str:
    """Return the URI of an entry; one with another scheme is left unchanged."""
    if "://" in name or not name:
        try:
            return storage.canonical(name)
        except UsageError:
            return name
    if storage.is_web(folder):
        return _url(name, folder)
    if name.startswith("/"):
        return storage.canonical(name)
    if storage.is_local(folder):
        return storage.canonical(str(storage.local_path(folder) / name))
    scheme, _, rest = folder.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}/{posixpath.normpath(posixpath.join(key, name))}"


def _url(name: str, folder: str) -> str:
    """Return the URL of an entry of a list on a server; one that is none is left unchanged."""
    try:
        return storage.canonical(urljoin(f"{folder}/", name))
    except (UsageError, ValueError):
        return name


def _folder(uri: str) -> str:
    """Return the folder of a list; a URL may have slashes in its query as well."""
    return (uri.partition("?")[0] if storage.is_web(uri) else uri).rpartition("/")[0]
