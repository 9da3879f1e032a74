"""Reading of tables in text as people write them: CSV, TSV, semicolons, JSON lines, plain lines.

The text is UTF-8 or UTF-16, with or without a byte order mark, and may be compressed with gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO, cast

from prompt_iml.engine.errors import DamagedShard
from prompt_iml.pipeline.sources.names import claims_to_be_image, kind_of_name
from prompt_iml.pipeline.sources.packed import GZIP_MAGIC

URI_COLUMNS = (
    "uri", "url", "path", "image", "file_name", "filename", "file", "filepath", "file_path",
    "image_path", "img_path", "img", "image_name", "img_name", "image_file", "image_uri",
    "image_url",
)  # fmt: skip
ID_COLUMNS = ("content_id", "id")
ROWS_TRIED = 10
MAX_LINE = 1 << 20  # characters; the rest of a longer line counts as another
_HEAD_BYTES = 512
_JSON = "{"

Entry = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """Place of the names in a table.

    Attributes:
        delimiter: between cells; empty for whole lines, `{` for JSON lines.
        column: index of the names; JSON lines have keys instead.
        id_column: index of the caller's own ids; None without any.
        header_lines: number of lines before the first row.
        is_known: whether a header names the column.
    """

    delimiter: str = ""
    column: int = 0
    id_column: int | None = None
    header_lines: int = 0
    is_known: bool = False


def decoded_head(head: bytes) -> str:
    """Return the text at the start of a file, which may break off anywhere; NUL for no text."""
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, len(head))
        except zlib.error:
            return "\0"
    return head.decode(*_encoding(head))


def read_table(stream: BinaryIO, name: str, exists: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield the name and the id in each row; an id may be empty.

    Blank lines are skipped and, without a header, lines that start with `#`.

    Args:
        stream: seekable stream of the file.
        name: name of the file, for errors.
        exists: see `layout_of`.

    Raises:
        DamagedShard: the gzip stream or the text is damaged.
        csv.Error: the table is no CSV.
    """
    try:
        lines = _lines(stream)
        start = next((line for line in lines if not is_blank(line)), "")
        first = [start, *islice(lines, ROWS_TRIED)]
        layout = layout_of([line for line in first if not is_blank(line)], exists) or Layout()
        rows: Iterator[str] = chain(first[layout.header_lines :], lines)
        if not layout.is_known:
            rows = (line for line in rows if not is_blank(line))
        yield from _entries(rows, layout)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
        raise DamagedShard(f"{name}: {error}") from error


def layout_of(lines: Sequence[str], exists: Callable[[str], bool]) -> Layout | None:
    """Find the names in a table by its first lines that are not blank; None without any.

    In order: JSON lines, a header with one of `URI_COLUMNS`, whole lines of which one exists, a
    column of names, whole lines that are URIs or have the extensions of images or shards.

    Args:
        lines: the first lines.
        exists: returns whether there is a file of a name.
    """
    if lines and _key(_parsed(lines[0])):
        return Layout(_JSON)
    skipped = 1 if lines and lines[0].startswith("sep=") else 0  # Excel's choice of a delimiter
    if header := next(map(_by_header, lines[skipped : skipped + 1]), None):
        column, id_column, delimiter = header
        return Layout(delimiter, column, id_column, skipped + 1, is_known=True)
    tried = [line.strip() for line in lines[:ROWS_TRIED]]
    if any(map(exists, tried)):
        return Layout()
    for delimiter in "\t;, ":
        if found := _by_names([_cells(line, delimiter) for line in tried], delimiter):
            return found
    return Layout() if any("://" in line for line in tried) or _are_names(tried) else None


def is_blank(line: str) -> bool:
    """Return whether a line is blank or a comment."""
    return not line.strip() or line.startswith("#")


def first_of(names: Sequence[str], header: list[str]) -> int | None:
    """Return the index in the header of the first name that it contains; None without any."""
    return next((header.index(name) for name in names if name in header), None)


def _encoding(head: bytes) -> tuple[str, str]:
    """Return the encoding of a text and the handling of its errors."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", "replace"
    zeros = [head[at::2].count(0) / (len(head) // 2 or 1) for at in (0, 1)]  # of either byte
    if max(zeros) > 0.8 and min(zeros) < 0.2:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le", "replace"
    return "utf-8-sig", "surrogateescape"


def _lines(stream: BinaryIO) -> Iterator[str]:
    if stream.read(2) == GZIP_MAGIC:
        stream.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    stream.seek(0)
    encoding, errors = _encoding(stream.read(_HEAD_BYTES))
    stream.seek(0)
    text = io.TextIOWrapper(stream, encoding, errors, newline="")
    while line := text.readline(MAX_LINE):
        yield line


def _entries(lines: Iterator[str], layout: Layout) -> Iterator[Entry]:
    if not layout.delimiter:
        yield from ((line.strip(), "") for line in lines)
    elif layout.delimiter == _JSON:
        yield from map(_json_entry, lines)
    else:
        for row in filter(None, _reader(lines, layout.delimiter)):
            yield _cell(row, layout.column), _cell(row, layout.id_column)


def _json_entry(line: str) -> Entry:
    """Return the name and id in a line; one without a name is an entry that cannot be read."""
    row = _parsed(line)
    if not (key := _key(row)):
        return line.strip()[:200], ""
    ids = [row[name] for name in ID_COLUMNS if isinstance(row.get(name), str | int)]
    return row[key].strip(), str(ids[0]) if ids else ""


def _parsed(line: str) -> Any:
    try:
        return json.loads(line) if line.lstrip().startswith(_JSON) else None
    except (ValueError, RecursionError):
        return None


def _key(row: Any) -> str | None:
    """Return the key of a JSON object whose value names an image; None without any."""
    texts = {} if row is None else {k.lower(): k for k, v in row.items() if isinstance(v, str)}
    return next((texts[name] for name in URI_COLUMNS if name in texts), None)


def _by_header(line: str) -> tuple[int, int | None, str] | None:
    """Return the columns of names and ids, and the delimiter."""
    for delimiter in "\t" if "\t" in line else ",;":
        header = [cell.strip().lower() for cell in _cells(line, delimiter)]
        column = first_of(URI_COLUMNS, header)
        if column is not None:
            return column, first_of(ID_COLUMNS, header), delimiter
    return None


def _by_names(rows: list[list[str]], delimiter: str) -> Layout | None:
    """Return the layout with the first column of names in rows of several cells, all as many."""
    width = len(rows[0]) if rows else 0
    if width < 2 or any(len(row) != width for row in rows):
        return None
    for column in range(width):
        names = [row[column].strip() for row in rows]
        if _are_names(names):
            return Layout(delimiter, column, header_lines=0 if _is_name(names[0]) else 1)
    return None


def _are_names(texts: list[str]) -> bool:
    """Return whether all are names of images or shards; the first may be a header."""
    rows = texts[1:] if len(texts) > 1 else texts
    return bool(rows) and all(map(_is_name, rows))


def _is_name(text: str) -> bool:
    return claims_to_be_image(text) or kind_of_name(text) != "objects"


def _reader(lines: Iterator[str] | list[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter == " ")


def _cells(line: str, delimiter: str) -> list[str]:
    return next(_reader([line], delimiter), [])


def _cell(row: list[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""
