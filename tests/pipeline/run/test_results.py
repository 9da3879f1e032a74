"""Frozen schema, the Parquet file of one unit, and the mask coding."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from prompt_iml.pipeline.run.masks import decode_mask, encode_mask
from prompt_iml.pipeline.run.schema import (
    SCHEMA,
    RowWriter,
    image_id,
    merge_parts,
    read_part,
    read_summary,
)
from prompt_iml.pipeline.scan.scan import Totals
from prompt_iml.pipeline.scan.scanner import Part

GOLDEN = Path(__file__).with_name("golden_schema_v1.txt")
REGION = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 12, "mean_score": 0.5, "max_score": 1.0}


def row(**columns: Any) -> dict[str, Any]:
    return {"image_id": "0" * 32, "uri": "file:///a.jpg", "status": "ok"} | columns


def write(*rows: dict[str, Any]) -> bytes:
    writer = RowWriter(unit_id="u1", run_id="r1")
    for each in rows:
        writer.add(each)
    return writer.close()


def read(payload: bytes) -> list[dict[str, Any]]:
    return list(pq.read_table(io.BytesIO(payload)).to_pylist())


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:37, :53]
    top_left = np.zeros((5, 7), bool)
    top_left[0, 0] = True
    return {
        "one pixel": np.ones((1, 1), bool),
        "all": np.ones((31, 17), bool),
        "first pixel": top_left,
        "last pixel": top_left[::-1, ::-1],
        "row": np.ones((1, 9), bool),
        "column": np.arange(9)[:, None] > 4,
        "disc": (y - 18) ** 2 + (x - 30) ** 2 < 90,
        "stripes": np.broadcast_to(x % 2 == 0, (37, 53)),
        "noise": rng.random((40, 41)) < 0.5,
        "sparse": rng.random((200, 301)) < 0.001,
        "photograph": rng.random((30, 40)).repeat(100, 0).repeat(100, 1) < 0.1,
    }


@pytest.mark.parametrize("name", masks())
def test_a_mask_is_what_coco_writes_and_reads_back(name: str) -> None:
    mask = masks()[name]
    rle = encode_mask(mask)
    assert rle == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    decoded = decode_mask(rle, *mask.shape)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, mask)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_any_mask_comes_back(mask: np.ndarray) -> None:
    assert np.array_equal(decode_mask(encode_mask(mask), *mask.shape), mask)


def test_an_empty_mask_is_null() -> None:
    assert encode_mask(np.zeros((4, 5), bool)) is None
    assert decode_mask(None, 4, 5).shape == (4, 5)
    assert not decode_mask(None, 4, 5).any()


def test_the_schema_is_frozen() -> None:
    lines = [f"{field.name}: {field.type}{' not null' * (not field.nullable)}" for field in SCHEMA]
    assert lines == GOLDEN.read_text().splitlines()
    assert SCHEMA.metadata == {b"prompt_iml.schema_version": b"1"}


def test_a_file_carries_the_schema() -> None:
    schema = pq.read_schema(io.BytesIO(write(row())))
    assert schema.equals(SCHEMA)
    assert schema.metadata[b"prompt_iml.schema_version"] == b"1"


def test_rows_come_back() -> None:
    when = datetime(2025, 1, 2, 3, 4, 5, 678901, UTC)
    written = row(score=0.25, regions=[REGION], mask_rle=b"\x00\xff", scanned_at=when, width=9)
    (found,) = read(write(written))
    assert {name: found[name] for name in written} == written
    assert all(found[name] is None for name in found.keys() - written.keys())


def test_rows_keep_their_order_over_row_groups() -> None:
    payload = write(*(row(size_bytes=n) for n in range(8192)))
    assert pq.read_metadata(io.BytesIO(payload)).num_row_groups == 2
    assert [found["size_bytes"] for found in read(payload)] == list(range(8192))


def test_rows_with_long_names_are_not_held() -> None:
    payload = write(*(row(member=f"{n:060000}") for n in range(600)))
    assert pq.read_metadata(io.BytesIO(payload)).num_row_groups == 2


def test_a_unit_without_rows_is_a_file() -> None:
    payload = write()
    assert read(payload) == []
    assert pq.read_schema(io.BytesIO(payload)).equals(SCHEMA)
    assert read_summary(payload)["rows"] == 0


def test_the_footer_counts_the_rows(tmp_path: Path) -> None:
    bad = row(status="failed", error_code="corrupt")
    payload = write(row(), bad, bad, row(status="skipped", error_code="not_an_image"))
    assert read_summary(payload) == {
        "unit_id": "u1",
        "run_id": "r1",
        "rows": 4,
        "statuses": {"failed": 2, "ok": 1, "skipped": 1},
        "codes": {"corrupt": 2, "not_an_image": 1},
        "incomplete": {},
    }
    assert read_summary(io.BytesIO(payload)) == read_summary(payload)


def test_text_that_is_no_utf8_is_escaped() -> None:
    found = read(write(row(member="a\udcff.jpg"), row(member=None), row(member="é")))
    assert [each["member"] for each in found] == ["a\\udcff.jpg", None, "é"]


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match="scroe"):
        write(row(scroe=1.0))


def test_a_row_without_its_name_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid, match="uri"):
        write({"image_id": "0", "status": "ok"})


def test_image_ids_are_frozen_and_distinguish_objects_from_members() -> None:
    assert image_id("s3://bucket/a.tar", "b.jpg") == "b5d6e9ba180ad796d09364b92b8b97a7"
    assert image_id("s3://b/a.tar", "b") != image_id("s3://b/a.tarb", None)
    assert len(image_id("file:///\udcff", None)) == 32


def test_duckdb_reads_every_column(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(write(row(regions=[REGION], mask_rle=b"04", scanned_at=datetime.now(UTC))))
    query = duckdb.execute
    areas = query(f"select r.area from '{path}', unnest(regions) as t(r)").fetchall()
    kinds = [kind for _, kind, *_ in query(f"describe select * from '{path}'").fetchall()]
    assert areas == [(12,)]
    assert len(kinds) == len(SCHEMA)
    assert not any(kind.startswith("U") for kind in kinds)


@pytest.mark.parametrize(
    ("images", "last", "incomplete"),
    [
        (2, row(member="1"), {}),
        (5, row(member="1", status="failed"), {"s.parquet": 3}),
        (-1, row(member="1", status="failed"), {}),  # one member of a tar
        (-1, row(status="failed"), {"s.parquet": None}),  # what is left of a tar
    ],
)
def test_a_part_says_what_of_its_shard_is_lost(
    images: int, last: dict[str, Any], incomplete: dict[str, int | None]
) -> None:
    writer = RowWriter("u1", "r1", "s.parquet", images)
    for each in (row(member="0"), last):
        writer.add(each)
    assert read_summary(writer.close())["incomplete"] == incomplete


@pytest.mark.parametrize(
    ("images", "lost"), [([3, 5, 2], 7), ([-1, 4, -1], 3), ([-1, -1, -1], None)]
)
def test_lost_images_of_the_units_of_one_file_are_added(
    images: list[int], lost: int | None
) -> None:
    totals, parts = Totals(), list[bytes]()
    for number, many in enumerate(images):
        writer = RowWriter(f"u{number}", "r1", "s.parquet", many)
        writer.add(row(status="failed"))
        parts.append(writer.close())
        incomplete = read_summary(parts[-1])["incomplete"]
        totals.add(Part("f", 1, 1, "", {}, {}, incomplete, {}, [], new=True))
    assert totals.incomplete == {"s.parquet": lost}
    assert read_summary(merge_parts(parts))["incomplete"] == {"s.parquet": lost}


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_byte_that_flips_in_a_part_is_noticed(where: float) -> None:
    rows = (row(image_id=f"{n:032x}", perceptual_hash=f"{n:016x}") for n in range(200))
    payload = write(*rows)
    assert read_part(payload)[1].num_rows == 200
    pages = len(payload) - int.from_bytes(payload[-8:-4], "little") - 8  # before the footer
    flipped = bytearray(payload)
    flipped[int(pages * where)] ^= 1
    with pytest.raises((ValueError, OSError)):
        read_part(bytes(flipped))
