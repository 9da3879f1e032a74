"""Schema of the results table, version 1, and the Parquet files that hold its rows.

The schema uses only types that DuckDB, Trino, Spark and pandas all read: no unsigned integers, no
float16, no dictionary types. Within version 1 columns are only added.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION: Final = 1

_SUMMARY_KEY = b"prompt_iml.summary"
_ROW_GROUP_ROWS = 4096
_HELD_BYTES = 32 << 20  # of texts and masks in rows that are not written yet
_MERGED_GROUP_ROWS = 32_768  # about 30 MB, a size that query engines read efficiently

_REGION = pa.struct(
    [
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("area", pa.int64()),
        ("mean_score", pa.float32()),
        ("max_score", pa.float32()),
    ]
)

SCHEMA: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("content_id", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("media_type", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("exif_orientation", pa.int16()),
        pa.field("frame_count", pa.int32()),
        pa.field("jpeg_quality", pa.int16()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_stage", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("score_raw", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("threshold", pa.float32()),
        pa.field("policy", pa.string()),
        pa.field("manipulated_fraction", pa.float32()),
        pa.field("regions", pa.list_(pa.field("element", _REGION))),
        pa.field("mask_rle", pa.binary()),
        pa.field("mask_height", pa.int32()),
        pa.field("mask_width", pa.int32()),
        pa.field("mask_threshold", pa.float32()),
        pa.field("heatmap_png", pa.binary()),
        pa.field("model", pa.string()),
        pa.field("model_sha256", pa.string()),
        pa.field("prompt_set", pa.string()),
        pa.field("preprocess", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("scanned_at", pa.timestamp("us", tz="UTC")),
        pa.field("decode_ms", pa.float32()),
        pa.field("infer_ms", pa.float32()),
        pa.field("mask_confidence", pa.float32()),
        pa.field("model_digest", pa.string()),
        pa.field("exif_make", pa.string()),
        pa.field("exif_model", pa.string()),
        pa.field("exif_software", pa.string()),
        pa.field("exif_taken", pa.string()),
        pa.field("digital_source_type", pa.string()),
        pa.field("has_c2pa", pa.bool_()),
        pa.field("c2pa_signer", pa.string()),
        pa.field("perceptual_hash", pa.string()),
    ],
    metadata={"prompt_iml.schema_version": str(SCHEMA_VERSION)},
)
"""Columns in order; docs/table.md explains them."""

_COLUMNS = frozenset(SCHEMA.names)

# Columns whose values never repeat, so that a Parquet dictionary would only add bytes.
_UNIQUE = {
    "image_id", "member", "content_id", "sha256", "mask_rle", "heatmap_png", "regions",
    "perceptual_hash",
}  # fmt: skip


def image_id(uri: str, member: str | None) -> str:
    """Return the first 32 hex digits of sha256(uri + NUL + member): the same in every run."""
    name = f"{uri}\0{member or ''}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(name).hexdigest()[:32]


class RowWriter:
    """Streams the rows of one unit into one Parquet file in memory.

    Args:
        unit_id, run_id: written into the file's summary.
        shard: the shard that is read, None for plain objects.
        images: number of its images that should have a row; -1 if unknown.
    """

    def __init__(
        self, unit_id: str, run_id: str, shard: str | None = None, images: int = -1
    ) -> None:
        self._summary: dict[str, Any] = {"unit_id": unit_id, "run_id": run_id}
        self._shard, self._images = shard, images
        self._broke_off = False
        self._statuses: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._rows: list[dict[str, Any]] = []
        self._held = 0
        self._sink = pa.BufferOutputStream()
        self._file = _open_writer(self._sink)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row: column name to value; columns left out are null.

        Raises:
            ValueError: a name is no column of the schema.
        """
        if not _COLUMNS.issuperset(row):
            raise ValueError(f"no such column: {sorted(row.keys() - _COLUMNS)}")
        # A row without a member stands for all of the shard that could not be read.
        self._broke_off |= row.get("member") is None and row["status"] == "failed"
        self._rows.append(row)
        self._held += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        if len(self._rows) == _ROW_GROUP_ROWS or self._held > _HELD_BYTES:
            self._flush()

    def _incomplete(self) -> dict[str, int | None]:
        """Return the shard, if images of it have no row, and their number, None if unknown."""
        lost = self._images - self._statuses.total()
        if self._shard is not None and self._images >= 0 and lost > 0:
            return {self._shard: lost}
        return {self._shard: None} if self._shard is not None and self._broke_off else {}

    def close(self) -> bytes:
        """Finish the file and return its bytes; no row can be added later."""
        if self._rows:
            self._flush()
        summary = self._summary | {
            "rows": self._statuses.total(),
            "statuses": dict(sorted(self._statuses.items())),
            "codes": dict(sorted(self._codes.items())),
            "incomplete": self._incomplete(),
        }
        self._file.add_key_value_metadata({_SUMMARY_KEY: json.dumps(summary)})
        self._file.close()
        return cast(bytes, self._sink.getvalue().to_pybytes())

    def _flush(self) -> None:
        rows, self._rows, self._held = self._rows, [], 0
        self._statuses.update(row["status"] for row in rows)
        self._codes.update(row["error_code"] for row in rows if row.get("error_code"))
        self._file.write_batch(to_batch(rows))


def to_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Convert rows, column name to value, to Arrow; columns left out are null."""
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def row_to_json(row: dict[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """Return a row for JSON with the values that a table holds (float32), without some columns."""
    answer: dict[str, Any]
    (answer,) = to_batch([row]).drop_columns(list(left_out)).to_pylist()
    if mask := answer.get("mask_rle"):
        answer["mask_rle"] = mask.decode("ascii")
    return answer | {"scanned_at": answer["scanned_at"].isoformat()}


def add_incomplete(total: dict[str, int | None], more: Mapping[str, int | None]) -> None:
    """Add the numbers of lost images, by shard; None, an unknown number, only if all are unknown.

    The units of one Parquet file are several parts.
    """
    for uri, lost in more.items():
        before = total.get(uri)
        total[uri] = lost if before is None else before + (lost or 0)


def merge_parts(parts: Iterable[bytes]) -> bytes:
    """Merge the rows of several parts of one run, in order, into one part.

    Memory holds the growing file, one part and `_MERGED_GROUP_ROWS` rows.

    Raises:
        ValueError: one is damaged or not a part, or they belong to several runs.
    """
    statuses, codes, units = Counter[str](), Counter[str](), Counter[str]()
    incomplete: dict[str, int | None] = {}
    run_ids: set[str] = set()
    sink = pa.BufferOutputStream()
    file = _open_writer(sink)
    waiting = [SCHEMA.empty_table()]
    for part in parts:
        summary, rows = read_part(part)
        run_ids.add(summary["run_id"])
        statuses.update(summary["statuses"])
        codes.update(summary["codes"])
        units.update(units_of(summary))
        add_incomplete(incomplete, summary.get("incomplete", {}))
        waiting.append(rows)
        if sum(table.num_rows for table in waiting) >= _MERGED_GROUP_ROWS:
            waiting = [_write_rows(file, waiting).slice(0, 0)]
    _write_rows(file, waiting)
    if len(run_ids) != 1:
        raise ValueError(f"parts of the runs {sorted(run_ids)}")
    merged = {"run_id": run_ids.pop(), "rows": statuses.total(), "units": dict(units)}
    counts = {"statuses": dict(sorted(statuses.items())), "codes": dict(sorted(codes.items()))}
    summary = merged | counts | {"incomplete": incomplete}
    file.add_key_value_metadata({_SUMMARY_KEY: json.dumps(summary)})
    file.close()
    return cast(bytes, sink.getvalue().to_pybytes())


def _write_rows(file: pq.ParquetWriter, tables: list[pa.Table]) -> pa.Table:
    """Write tables as one row group; columns that an older part lacks are null."""
    rows = pa.concat_tables(tables, promote_options="default").select(SCHEMA.names)
    if rows.num_rows:
        file.write_table(rows, row_group_size=rows.num_rows)
    return rows


def _open_writer(sink: pa.BufferOutputStream) -> pq.ParquetWriter:
    columns = [name for name in SCHEMA.names if name not in _UNIQUE]
    return pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", use_dictionary=columns, write_page_checksum=True
    )


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # file systems allow names that are not UTF-8
        return pa.array([value and _printable(value) for value in values], kind)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def read_summary(file: bytes | BinaryIO) -> dict[str, Any]:
    """Read the summary that `RowWriter` puts into a file's footer, without reading a row.

    Returns:
        `unit_id`, `run_id`, `rows`, `statuses` (rows by status), `codes` (rows by error code),
        `incomplete` (shards that could not be read to their end, by URI: the number of images lost,
        None if unknown; files of earlier versions lack it). A
        merged part has `units` (rows by unit id) in place of `unit_id`.

    Raises:
        ValueError: it is not a complete Parquet file (`pyarrow.ArrowInvalid`), or not a part.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    metadata = pq.read_metadata(source).metadata or {}
    if _SUMMARY_KEY not in metadata:
        raise ValueError("it is a Parquet file, but not a part of a scan")
    return cast(dict[str, Any], json.loads(metadata[_SUMMARY_KEY]))


def read_part(payload: bytes) -> tuple[dict[str, Any], pa.Table]:
    """Read the summary and all rows of a part; each page is checked by its checksum.

    Raises:
        ValueError, OSError: the part is damaged, or its footer counts other rows.
    """
    summary = read_summary(payload)
    rows = pq.read_table(pa.BufferReader(payload), page_checksum_verification=True)
    statuses = Counter(rows["status"].to_pylist())
    codes = Counter(code for code in rows["error_code"].to_pylist() if code)
    if (summary["statuses"], summary["codes"]) != (dict(statuses), dict(codes)):
        raise ValueError("other statuses or codes than its footer counts")
    if summary["rows"] != rows.num_rows:
        raise ValueError(f"{rows.num_rows} rows, and its footer counts {summary['rows']}")
    return summary, rows


def units_of(summary: dict[str, Any]) -> dict[str, int]:
    """Return the units in a part, in the order of their rows, and the number of rows of each.

    Args:
        summary: from `read_summary`.
    """
    if "units" in summary:
        return cast(dict[str, int], summary["units"])
    return {summary["unit_id"]: summary["rows"]}
