"""Reading of Parquet files that hold the bytes of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_iml.engine.errors import (
    DamagedShard,
    Empty,
    FetchError,
    ImageError,
    Unsupported,
    UsageError,
)
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, describe_stand_in, sniff
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.parquet_pages import unpacked_sizes
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit, too_large

BATCH_BYTES = 16 << 20  # of values that are unpacked together, unless one alone has more
MAX_BATCH_ROWS = 1024
# A page is unpacked whole, and takes thrice its size. Images hardly shrink when they are packed: of
# columns that claim to be larger than both of these, each page is looked at first.
UNPACKED_BYTES = 512 << 20
UNPACKED_TIMES = 16
TEXT_BYTES = 1 << 16  # of a path or an id
MOST = 1 << 53  # rows or bytes; a footer with more is damaged
ID_COLUMNS = ("content_id", "id")
# What pyarrow raises on files that it does not foresee; its `ArrowException`s are other types too.
READER_ERRORS = (
    pa.ArrowException, OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError,
    OverflowError,
)  # fmt: skip
BASE64_LENGTH = 200  # characters at least of an image; shorter texts may be paths
_BASE64_STARTS = ("data:image/", "/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
RESULTS_MARK = b"prompt_iml.schema_version"

_USUAL_NAMES = (
    "image", "image_bytes", "bytes", "data", "content", "jpg", "jpeg", "png", "webp", "img",
    "picture", "photo",
)  # fmt: skip
_PICTURES = ("image", "img", "picture", "photo")  # names of columns, also with an s


class ParquetFile(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file, with the stream that it is read from."""

    def __init__(self, stream: IO[bytes]) -> None:
        # Without pre_buffer a row group is streamed, not held in memory whole.
        super().__init__(stream, pre_buffer=False, buffer_size=1 << 20)
        self.stream = stream


@contextmanager
def open_parquet(uri: str) -> Iterator[ParquetFile]:
    """Open a file and read its footer.

    Raises:
        FetchError: the file cannot be read; `DamagedShard`: it is not a Parquet file.
    """
    with storage.open_stream(uri) as stream:
        try:
            file = ParquetFile(stream)
        except READER_ERRORS as error:
            stream.seek(0)
            stand_in = describe_stand_in(stream.read(HEAD_BYTES))
            why = f" is {stand_in}" if stand_in else f": {one_line(error)}"
            raise DamagedShard(f"{storage.display_name(uri)}{why}") from error
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) > MOST:
            raise DamagedShard(f"{storage.display_name(uri)}: its footer counts impossible rows")
        yield file


def batches(file: ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of a row group, in batches of some `BATCH_BYTES` or of one row.

    A value may be as large as all that is stored of its column, and be repeated in each row. Not
    so for numbers, and where a batch holds each value once, in a dictionary.

    Raises:
        READER_ERRORS: a page is damaged, or does not fit into memory.
    """
    metadata, schema = file.metadata.row_group(group), file.schema_arrow
    _check_pages(file, metadata, columns)
    types = {name: schema.field(name).type for name in columns}
    stored = sum(
        _column_bytes(metadata, name, "total_uncompressed_size")
        for name, kind in types.items()
        if not (pa.types.is_dictionary(kind) or pa.types.is_primitive(kind))
    )
    rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // (stored or 1)))
    yield from file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


def _check_pages(file: ParquetFile, row_group: Any, columns: list[str]) -> None:
    """Raise `ValueError` if a column is far smaller in the file and a page of it is too large."""
    for chunk in [chunk for name in columns for chunk in _chunks_of(row_group, name)]:
        packed = chunk.total_compressed_size
        if chunk.total_uncompressed_size <= max(UNPACKED_BYTES, UNPACKED_TIMES * packed):
            continue
        start = chunk.data_page_offset
        if chunk.has_dictionary_page:
            start = min(start, chunk.dictionary_page_offset)
        largest = max(unpacked_sizes(file.stream, start, packed), default=0)
        if largest > UNPACKED_BYTES:
            raise ValueError(
                f"a page of column {chunk.path_in_schema} unpacks to {largest} bytes: write pages "
                f"of at most {UNPACKED_BYTES}"
            )


def column_of_images(uri: str, schema: pa.Schema, wanted: str | None) -> str | None:
    """Return the column with the bytes of images; None if no column can hold them.

    Candidates, in order: a struct with `bytes` (Hugging Face), a binary column with a usual name,
    the only column that can; without bytes in these, a struct with one field of bytes (such as
    Spark's) or a list of one of them.

    Raises:
        UsageError: `wanted` cannot hold bytes, or several columns can and none has a usual name.
        DamagedShard: the only columns that can have a name, or a field, that is there twice.
    """
    single = [field for field in schema if schema.names.count(field.name) == 1]
    flat: list[str] = [field.name for field in single if _holds_bytes(field.type)]
    nested = [f.name for f in single if f.name not in flat and _holds_nested_bytes(f.type)]
    usable = flat + nested
    file = storage.display_name(uri)
    if wanted in usable:
        return wanted
    if wanted:
        raise UsageError(
            f"{file}: --image-column {wanted} holds no image bytes; "
            f"columns that may: {', '.join(usable) or 'none'}; all: {', '.join(schema.names)}"
        )
    if not usable:
        if doubled := [field.name for field in schema if _is_doubled(field, schema)]:
            raise DamagedShard(f"{file}: column {doubled[0]}, or a field of it, is there twice")
        return None
    structs = [name for name in flat or nested if pa.types.is_struct(schema.field(name).type)]
    usual = [name for usual in _USUAL_NAMES for name in flat or nested if name.lower() == usual]
    for candidates in (structs, usual[:1], usable):
        if len(candidates) == 1:
            return candidates[0]
    raise UsageError(
        f"{file}: which column holds the images? choose with --image-column: {', '.join(usable)}"
    )


def base64_column(file: ParquetFile) -> str | None:
    """Return the column whose first value is an image as base64 text; None without any."""
    single = [f for f in file.schema_arrow if file.schema_arrow.names.count(f.name) == 1]
    texts = [f.name for f in single if f.type in (pa.string(), pa.large_string())]
    for name in texts if file.num_row_groups else []:
        try:
            batch = next(batches(file, 0, [name]), None)
        except READER_ERRORS:  # a damaged page
            continue
        values = batch.column(0).drop_null() if batch else []
        value = text(values[0]) if len(values) else None
        if value and len(value) >= BASE64_LENGTH and value.startswith(_BASE64_STARTS):
            return str(name)
    return None


def plan_parquet(
    ref: ObjectRef, *, images_per_unit: int, image_column: str | None, required: bool
) -> list[Unit] | None:
    """Split a file's row groups into units of about `images_per_unit` rows.

    A file that cannot be read, or whose column of images is not clear, is one unit, which fails
    when it is read. A part of prompt-iml's own
    results gives no unit. The result is None for a file without image bytes.

    Raises:
        UsageError: a column is `required`, and there is none or it is not clear which.
    """
    whole = Unit("parquet", ref.uri, ref.size_bytes, ref.etag, column=image_column or "")
    try:
        with open_parquet(ref.uri) as file:
            schema = file.schema_arrow
            if RESULTS_MARK in (schema.metadata or {}):
                return []
            column = column_of_images(ref.uri, schema, image_column)
            if column:
                return _row_group_units(
                    replace(whole, column=column), file.metadata, images_per_unit
                )
            if base64_column(file) or _nested_bytes(schema):
                return [whole]  # reading it says what is wrong
    except FetchError:
        return [whole]
    except UsageError:
        if required:
            raise
        return [whole]
    if required:
        raise UsageError(
            f"{storage.display_name(ref.uri)}: no column holds image bytes: "
            f"{', '.join(schema.names)}"
        )
    return None


def _row_group_units(whole: Unit, metadata: Any, images_per_unit: int) -> list[Unit]:
    units = []
    first = images = size = row = 0
    for group in range(metadata.num_row_groups):
        images += metadata.row_group(group).num_rows
        stored = _column_bytes(metadata.row_group(group), whole.column, "total_compressed_size")
        size = min(size + max(stored, 0), MOST)
        is_last = group == metadata.num_row_groups - 1
        if images >= images_per_unit or (images and is_last):
            rows = {"first": first, "last": group + 1, "first_row": row, "images": images}
            units.append(replace(whole, size_bytes=size, **rows))
            row += images
            first, images, size = group + 1, 0, 0
    return units


def read_parquet(unit: Unit, *, max_object_bytes: int) -> Iterator[Sample]:
    """Yield the images of a unit's row groups, in order; `member` is the row number in the file.

    If a row group is damaged, one failed sample replaces the rest of its rows; if the file cannot
    be read, one replaces the rest of the unit. Its member is the first of these rows, because other
    units of the file fail too; None for row 0.
    """
    row = unit.first_row
    try:
        with open_parquet(unit.uri) as file:
            column = column_of_images(unit.uri, file.schema_arrow, unit.column or None)
            if column is None:
                raise DamagedShard(f"{storage.display_name(unit.uri)}: {_lack(file)}")
            counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            if unit.last > len(counts):
                fewer = f"has {len(counts)} row groups, fewer than when it was listed"
                raise DamagedShard(f"{storage.display_name(unit.uri)} {fewer}")
            row = sum(counts[: unit.first])
            for group in range(unit.first, unit.last or len(counts)):
                end = row + counts[group]
                for sample in _read_row_group(unit.uri, file, group, row, column, max_object_bytes):
                    yield sample
                    row += 1
                row = end
    except FetchError as error:
        yield Sample(unit.uri, str(row) if row else None, error=error)
    except UsageError as error:  # the file has changed since it was planned
        damage = DamagedShard(str(error))
        yield Sample(unit.uri, str(row) if row else None, error=damage)


def _lack(file: ParquetFile) -> str:
    if name := base64_column(file):
        return f"column {name} holds base64 text, which is not read: write it as bytes"
    if name := _nested_bytes(file.schema_arrow):
        how = "in several fields, or in a type that is not read"
        return f"column {name} holds bytes {how}: write one column of image bytes"
    return "no column of image bytes"


def _read_row_group(
    uri: str, file: ParquetFile, group: int, row: int, column: str, max_object_bytes: int
) -> Iterator[Sample]:
    end = row + file.metadata.row_group(group).num_rows
    names = file.schema_arrow.names
    ids = [name for name in ID_COLUMNS if names.count(name) == 1][:1]
    try:
        for batch in batches(file, group, [column, *ids]):
            for cells in zip(*(batch.column(name) for name in [column, *ids]), strict=True):
                yield _sample(uri, row, cells, max_object_bytes)
                row += 1
    except READER_ERRORS as error:
        rows = f"rows {row} to {end - 1} (row group {group}): {one_line(error)}"
        yield Sample(uri, str(row), error=DamagedShard(f"{storage.display_name(uri)} {rows}"))


def _sample(uri: str, row: int, cells: tuple[Any, ...], max_object_bytes: int) -> Sample:
    content_id = None
    try:
        value, content_id = _bytes_and_path(cells[0])
    except Unsupported as refusal:
        return Sample(uri, str(row), text(cells[1]) if cells[1:] else None, error=refusal)
    path = content_id
    if len(cells) > 1:
        content_id = text(cells[1])
    if value is None:
        return Sample(uri, str(row), content_id, error=_no_bytes(path))
    if error := _refusal(value.as_buffer(), max_object_bytes):
        return Sample(uri, str(row), content_id, error=error)
    return Sample(uri, str(row), content_id, value.as_py(), claims_image=False)


def _refusal(value: pa.Buffer, max_object_bytes: int) -> ImageError | None:
    """Return why the bytes of a row are no image, or None."""
    if not value.size:
        return Empty("0 bytes")
    start = bytes(value[:BASE64_LENGTH]).decode("latin-1")
    if len(start) == BASE64_LENGTH and start.startswith(_BASE64_STARTS):
        return Unsupported("base64 text in place of image bytes: write it as bytes")
    return too_large(value.size, max_object_bytes)


def _no_bytes(path: str | None) -> Empty:
    if path is None:
        return Empty("null in place of image bytes")
    shown = one_line(path)[:150]
    return Empty(f"no image bytes, only the path {shown}: embed the bytes, or scan the files")


def _bytes_and_path(cell: Any) -> tuple[pa.BinaryScalar | None, str | None]:
    """Return the image in a cell, and its path.

    Raises:
        Unsupported: a list of several images, or pixels in place of a file.
    """
    if isinstance(cell, pa.ListScalar):
        return _only_image(cell)
    if not isinstance(cell, pa.StructScalar):
        return _value(cell), None
    if not cell.is_valid:
        return None, None
    if _holds_bytes(cell.type):
        return _value(cell["bytes"]), text(cell["path"]) if "path" in cell else None
    value = _value(cell[_field_of_bytes(cell.type)])
    if "origin" not in cell:
        return value, text(cell["path"]) if "path" in cell else None
    if value is not None and sniff(bytes(value.as_buffer()[:HEAD_BYTES])) is None:
        raise Unsupported("pixels that Spark has decoded: write the bytes of the files")
    return value, text(cell["origin"])


def _only_image(cell: Any) -> tuple[pa.BinaryScalar | None, str | None]:
    """Return the image and its path of a list of at most one."""
    images: Any = cell.values if cell.is_valid else []
    if len(images) > 1:
        raise Unsupported(f"a list of {len(images)} images: write one image a row")
    return _bytes_and_path(images[0]) if len(images) else (None, None)


def _value(cell: Any) -> pa.BinaryScalar | None:
    """Return the cell without copying it; None if it is null."""
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    return cell if cell.is_valid else None


def text(cell: Any) -> str | None:
    """Return a cell as text, with bytes that are not UTF-8 escaped; None if null or empty.

    What is beyond `TEXT_BYTES` is cut.
    """
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    if isinstance(cell, pa.BinaryScalar):
        value = bytes(cell.as_buffer()[:TEXT_BYTES])
        return value.decode("utf-8", "backslashreplace") or None
    try:
        return str(cell.as_py())
    except (ValueError, OverflowError):  # a time outside of Python's range
        return None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _holds_nested_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type) or _holds_nested_bytes(kind.value_type)
    return pa.types.is_struct(kind) and _field_of_bytes(kind) is not None


def _nested_bytes(schema: pa.Schema) -> str | None:
    """Return the first column in which bytes are nested, or which is nested and has the name of a
    picture; None without any."""

    def holds(kind: pa.DataType) -> bool:
        inner = [kind.field(n).type for n in range(kind.num_fields)]
        is_wide = pa.types.is_fixed_size_binary(kind) and kind.byte_width >= BASE64_LENGTH
        return is_wide or _holds_bytes(kind) or any(map(holds, inner))

    def is_picture(field: pa.Field) -> bool:
        name = field.name.lower().removesuffix("s")
        return pa.types.is_nested(field.type) and name in _PICTURES

    return next((each.name for each in schema if holds(each.type) or is_picture(each)), None)


def _field_of_bytes(kind: pa.DataType) -> str | None:
    """Return the only field of a struct that holds bytes; None without any, or of several."""
    names = [field.name for field in kind if _holds_bytes(field.type)]
    is_clear = len(names) == 1 and kind.get_field_index(names[0]) >= 0
    return names[0] if is_clear and not pa.types.is_struct(kind.field(names[0]).type) else None


def _is_doubled(field: pa.Field, schema: pa.Schema) -> bool:
    """Return whether a column may hold bytes, but cannot be told from another of its name."""
    if pa.types.is_struct(field.type) and len(field.type.get_all_field_indices("bytes")) > 1:
        return True
    return _holds_bytes(field.type) and schema.names.count(field.name) > 1


def _column_bytes(row_group: Any, column: str, measure: str) -> int:
    return sum(getattr(chunk, measure) for chunk in _chunks_of(row_group, column))


def _chunks_of(row_group: Any, column: str) -> list[Any]:
    chunks = [row_group.column(index) for index in range(row_group.num_columns)]
    return [
        chunk
        for chunk in chunks
        if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}.")
    ]
