"""Reading of Parquet files that hold the bytes of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_iml.engine.errors import DamagedShard, Empty, FetchError, Unsupported, UsageError
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, sniff
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit, too_large

BATCH_BYTES = 16 << 20
MAX_BATCH_ROWS = 1024
INDEX_BYTES = 16  # upper bound per value, with its share of page headers
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


@contextmanager
def open_parquet(
    uri: str, dictionaries: Callable[[pq.ParquetFile], list[str]] = lambda file: []
) -> Iterator[pq.ParquetFile]:
    """Open a file and read its footer.

    Args:
        uri: URI of the file.
        dictionaries: returns the columns of the file, as paths, to keep dictionary-encoded.

    Raises:
        FetchError: the file cannot be read; `DamagedShard`: it is not a Parquet file.
    """
    with storage.open_stream(uri) as stream:
        try:
            # Without pre_buffer a row group is streamed, not held in memory whole.
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        except READER_ERRORS as error:
            raise DamagedShard(f"{storage.display_name(uri)}: {one_line(error)}") from error
        if columns := dictionaries(file):
            file = pq.ParquetFile(
                stream,
                metadata=file.metadata,
                read_dictionary=columns,
                pre_buffer=False,
                buffer_size=1 << 20,
            )
        yield file


def column_of_images(uri: str, schema: pa.Schema, wanted: str | None) -> str | None:
    """Return the column with the bytes of images; None if no column can hold them.

    Candidates, in order: a struct with `bytes` (Hugging Face), a binary column with a usual name,
    the only binary column; without any of these, Spark's image struct or a list of one of them.

    Raises:
        UsageError: `wanted` cannot hold bytes, or several columns can and none has a usual name.
        DamagedShard: the only columns that can have a name, or a field, that is there twice.
    """
    single = [field for field in schema if schema.names.count(field.name) == 1]
    usable: list[str] = [field.name for field in single if _holds_bytes(field.type)]
    usable = usable or [field.name for field in single if _holds_nested_bytes(field.type)]
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
    structs = [name for name in usable if pa.types.is_struct(schema.field(name).type)]
    usual = [name for usual in _USUAL_NAMES for name in usable if name.lower() == usual]
    for candidates in (structs, usual[:1], usable):
        if len(candidates) == 1:
            return candidates[0]
    raise UsageError(
        f"{file}: which column holds the images? choose with --image-column: {', '.join(usable)}"
    )


def base64_column(file: pq.ParquetFile) -> str | None:
    """Return the column whose first value is an image as base64 text; None without any."""
    single = [f for f in file.schema_arrow if file.schema_arrow.names.count(f.name) == 1]
    texts = [f.name for f in single if f.type in (pa.string(), pa.large_string())]
    for name in [name for name in texts if name.lower() in _USUAL_NAMES]:
        try:
            batch = next(file.iter_batches(batch_size=1, columns=[name]), None)
        except READER_ERRORS:  # a damaged page
            continue
        value = text(batch.column(0)[0]) if batch and len(batch) else None
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
            if base64_column(file):
                return [whole]
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
        size += _column_bytes(metadata.row_group(group), whole.column, "total_compressed_size")
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
        with open_parquet(unit.uri, partial(_repeating, unit)) as file:
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


def _lack(file: pq.ParquetFile) -> str:
    if name := base64_column(file):
        return f"column {name} holds base64 text, which is not read: write it as bytes"
    return "no column of image bytes"


def _repeating(unit: Unit, file: pq.ParquetFile) -> list[str]:
    """Return the paths of the image column whose values are repeated through a dictionary.

    Such a column stays encoded: a file of 2 kB may repeat an image of 50 MB a thousand times.
    """
    column = column_of_images(unit.uri, file.schema_arrow, unit.column or None) or ""
    groups = range(file.num_row_groups)[unit.first : unit.last or None]
    chunks = [c for group in groups for c in _chunks_of(file.metadata.row_group(group), column)]
    return sorted({chunk.path_in_schema for chunk in chunks if _in_dictionary(chunk)})


def _in_dictionary(chunk: Any) -> bool:
    """Return whether the pages after the dictionary hold little more than indices into it."""
    if not chunk.has_dictionary_page:
        return False
    dictionary_bytes = chunk.data_page_offset - chunk.dictionary_page_offset
    page_bytes = chunk.total_compressed_size - dictionary_bytes
    return bool(page_bytes <= INDEX_BYTES * chunk.num_values)


def _read_row_group(
    uri: str, file: pq.ParquetFile, group: int, row: int, column: str, max_object_bytes: int
) -> Iterator[Sample]:
    metadata = file.metadata.row_group(group)
    end = row + metadata.num_rows
    names = file.schema_arrow.names
    ids = [name for name in ID_COLUMNS if names.count(name) == 1][:1]
    image_bytes = _column_bytes(metadata, column, "total_uncompressed_size") // (end - row or 1)
    batches = file.iter_batches(
        batch_size=max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // (image_bytes or 1))),
        row_groups=[group],
        columns=[column, *ids],
        use_threads=False,
    )
    try:
        for batch in batches:
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
    if error := too_large(value.as_buffer().size, max_object_bytes):
        return Sample(uri, str(row), content_id, error=error)
    return Sample(uri, str(row), content_id, value.as_py(), claims_image=False)


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
    if "bytes" in cell:
        return _value(cell["bytes"]), text(cell["path"]) if "path" in cell else None
    value = _value(cell["data"])
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
    """Return a cell as text, with bytes that are not UTF-8 escaped; None if null or empty."""
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.BinaryScalar):
        return bytes(cell.as_buffer()).decode("utf-8", "backslashreplace") or None
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
    if not pa.types.is_struct(kind) or kind.get_field_index("origin") < 0:
        return False
    index = kind.get_field_index("data")
    return index >= 0 and _holds_bytes(kind.field(index).type)


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
