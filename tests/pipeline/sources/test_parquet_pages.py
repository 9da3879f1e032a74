"""Sizes of the pages of a Parquet column."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_iml.pipeline.sources.parquet_pages import unpacked_sizes

pytestmark = pytest.mark.fast
HEADER = 200  # bytes at most, with statistics of these values


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("has_dictionary", [False, True])
def test_the_pages_make_up_the_column(version: str, has_dictionary: bool) -> None:
    values = [bytes([n % 7]) * 5000 for n in range(100)]
    file = io.BytesIO()
    pq.write_table(
        pa.table({"image": values}),
        file,
        compression="zstd",
        data_page_size=50_000,
        data_page_version=version,
        use_dictionary=has_dictionary,
        write_batch_size=10,
    )
    column = pq.read_metadata(file).row_group(0).column(0)
    sizes = list(unpacked_sizes(file, 4, column.total_compressed_size))  # after the magic bytes
    assert (len(sizes) == 2) if has_dictionary else (len(sizes) >= 10)
    assert 0 < column.total_uncompressed_size - sum(sizes) <= HEADER * len(sizes)


@given(st.binary(max_size=60))
def test_what_is_no_header_is_an_error(data: bytes) -> None:
    try:
        sizes = list(unpacked_sizes(io.BytesIO(data), 0, len(data)))
    except ValueError:
        return
    assert len(sizes) <= len(data) // 5
