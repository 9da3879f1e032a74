"""Reading of tables in text as people write them: CSV, TSV, semicolons, JSON lines, plain lines.

The text is UTF-8 or UTF-16, with or without a byte order mark, and may be compressed with gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_URL = "https://"
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of a surrogate pair; others stand for bytes

csv.field_size_limit(MAX_LINE)  # of the process: a cell may hold a mask or an embedding

Entry = tuple[str, str]
Columns = Mapping[str, Sequence[str]]
Cells = dict[str, str]


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
    with _damage(name):
        lines = _lines(stream)
        start = next((line for line in lines if not is_blank(line)), "")
        first = [start, *islice(lines, ROWS_TRIED)]
        layout = layout_of([line for line in first if not is_blank(line)], exists) or Layout()
        rows: Iterator[str] = chain(first[layout.header_lines :], lines)
        if not layout.is_known:
            rows = (line for line in rows if not is_blank(line))
        yield from _entries(rows, layout)


def open_rows(stream: BinaryIO, name: str, columns: Columns) -> tuple[set[str], Iterator[Cells]]:
    """Return which columns a table has, and its rows as cells by column.

    Args:
        stream: seekable stream of the file.
        name: name of the file, for errors.
        columns: the columns to read, each with the names that people give it, best first. In a
            table without a header, whose rows begin with an image's name, the first two.

    Raises:
        DamagedShard, csv.Error: as `read_table`, also while the rows are read.
    """
    with _damage(name):
        lines = _lines(stream)
        first = next((line for line in lines if not is_blank(line)), "")
        if first.startswith("sep="):
            first = next(lines, "")
    if (keys := _parsed(first)) is not None:
        return set(_named(columns, list(keys))), _json_rows(name, chain([first], lines), columns)
    delimiter, places, is_header = _places(first, columns)
    rows = lines if is_header else chain([first], lines)
    return set(places), _rows(name, rows, delimiter, places)


def read_text(stream: BinaryIO, name: str) -> str:
    """Return the whole text of a file; raises `DamagedShard` as `read_table`."""
    with _damage(name):
        return "".join(_lines(stream))


@contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
        raise DamagedShard(f"{name}: {error}") from error


def layout_of(lines: Sequence[str], exists: Callable[[str], bool]) -> Layout | None:
    """Find the names in a table by its first lines that are not blank; None without any.

    In order: JSON lines, a header with one of `URI_COLUMNS`, whole lines of which one exists, a
    column of URLs, whole lines of which one begins as a URL, a column of names, whole lines that
    are URIs or have the extensions of images or shards.

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
    others = [line for line in tried if not line.startswith(_URL)]
    if any(map(exists, others)):
        return Layout()
    if found := next(filter(None, (_by_urls(tried, mark) for mark in "\t;, ")), None):
        return found
    if len(others) < len(tried):
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
        for row in _filled_rows(lines, layout.delimiter):
            yield _cell(row, layout.column), _cell(row, layout.id_column)


def _json_entry(line: str) -> Entry:
    """Return the name and id in a line; one without a name is an entry that cannot be read."""
    row = _parsed(line)
    if not (key := _key(row)):
        return line.strip()[:200], ""
    ids = [row[name] for name in ID_COLUMNS if isinstance(row.get(name), str | int)]
    return _whole(row[key].strip()), _whole(str(ids[0])) if ids else ""


def _whole(text: str) -> str:
    """Return a text without halves of surrogate pairs, which only JSON can write."""
    return _HALF.sub("\ufffd", text)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line) if line.lstrip().startswith(_JSON) else None
    except (ValueError, RecursionError):
        return None


def _key(row: Any) -> str | None:
    """Return the key of a JSON object whose value names an image; None without any."""
    texts = {} if row is None else {k.lower(): k for k, v in row.items() if isinstance(v, str)}
    return next((texts[name] for name in URI_COLUMNS if name in texts), None)


def _places(line: str, columns: Columns) -> tuple[str, dict[str, int], bool]:
    """Return the delimiter, the index of each column, and whether the line is a header."""
    tried = [
        (mark, [cell.strip() for cell in _cells(line, mark)])
        for mark in ("\t" if "\t" in line else ",; ")
    ]
    essential, *_ = columns
    headers = [
        (mark, {name: cells.index(found) for name, found in _named(columns, cells).items()}, True)
        for mark, cells in tried
    ]
    positions = {name: at for at, name in enumerate([*columns][:2])}
    rows = [
        (mark, positions, False)
        for mark, cells in tried
        if len(cells) > 1 and claims_to_be_image(cells[0])
    ]
    known = [each for each in headers if essential in each[1]]
    return next(chain(known, rows), max(headers, key=lambda each: len(each[1])))


def _named(columns: Columns, names: list[str]) -> dict[str, str]:
    """Return the name that each column has among the names of a table."""
    lowered = [name.strip().lower() for name in names]
    found = {column: first_of(known, lowered) for column, known in columns.items()}
    return {column: names[at] for column, at in found.items() if at is not None}


def _rows(
    name: str, lines: Iterator[str], delimiter: str, places: dict[str, int]
) -> Iterator[Cells]:
    with _damage(name):
        for row in _filled_rows(lines, delimiter):
            yield {column: _cell(row, at) for column, at in places.items()}


def _json_rows(name: str, lines: Iterator[str], columns: Columns) -> Iterator[Cells]:
    with _damage(name):
        for line in filter(str.strip, lines):
            yield cells_of(_parsed(line) or {}, columns)


def cells_of(row: Mapping[str, Any], columns: Columns) -> Cells:
    """Return the columns of a row with names of its own; null is an empty cell."""
    found = _named(columns, list(row))
    return {c: "" if row[key] is None else str(row[key]).strip() for c, key in found.items()}


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


def _by_urls(lines: list[str], delimiter: str) -> Layout | None:
    """Return the layout with a column of URLs; None without any, or where it may be no column.

    No URL has a tab in it. Other delimiters it may have: there the cell must end as a name does,
    and no other cell may be one, as in `https://server/w_300,h_200/a.jpg`.
    """
    rows = [_cells(line, delimiter) for line in lines]
    widths = {len(row) for row in rows}
    is_tab = delimiter == "\t"
    if max(widths, default=0) < 2 or not (is_tab or len(widths) == 1):
        return None
    cells = [[cell.strip() for cell in column] for column in zip(*rows, strict=False)]
    urls = [at for at, texts in enumerate(cells) if _are_urls(texts, are_names=not is_tab)]
    names = [at for at, texts in enumerate(cells) if _are_names(texts)]
    if not urls or not (is_tab or urls == names):
        return None
    column = urls[0]
    return Layout(delimiter, column, header_lines=0 if cells[column][0].startswith(_URL) else 1)


def _are_urls(texts: list[str], *, are_names: bool) -> bool:
    """Return whether all are URLs, or such without a query; the first may be a header."""
    rows = texts[1:] if len(texts) > 1 and not texts[0].startswith(_URL) else texts
    return all(
        text.startswith(_URL) and (not are_names or (_is_name(text) and not set("?#") & set(text)))
        for text in rows
    )


def _are_names(texts: list[str]) -> bool:
    """Return whether all are names of images or shards; the first may be a header."""
    rows = texts[1:] if len(texts) > 1 else texts
    return bool(rows) and all(map(_is_name, rows))


def _is_name(text: str) -> bool:
    return claims_to_be_image(text) or kind_of_name(text) != "objects"


def _reader(
    lines: Iterator[str] | list[str], delimiter: str, *, strict: bool = False
) -> Iterator[list[str]]:
    """Return the cells of each row; a strict reader refuses a quote that is never closed."""
    skip = delimiter == " "
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=skip, strict=strict)


def _filled_rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of rows; spreadsheets write rows of blank cells at the end of a table."""
    rows = _reader(lines, delimiter, strict=True)
    return (row for row in rows if any(map(str.strip, row)))


def _cells(line: str, delimiter: str) -> list[str]:
    return next(_reader([line], delimiter), [])


def _cell(row: list[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""
