"""Hostile inputs fail as rows and read nothing else."""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_iml.engine.errors import Unsupported
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.units import Sample
from tests.helpers.archives import TarOf
from tests.helpers.stores import Bucket

ROOT = Path(__file__).parents[3]
REPEATED = 50 << 20  # bytes
READ_IT = """
import sys
from prompt_iml.pipeline.sources import list_units, read_unit
for unit in list_units(sys.argv[1:], images_per_unit=4096):
    for sample in read_unit(unit, max_object_bytes=1 << 20, threads=1):
        print(sample.error.code if sample.error else len(sample.data))
"""


def read(*inputs: str, **options: bool) -> list[Sample]:
    units = list_units(inputs, images_per_unit=100, **options)
    return [s for u in units for s in read_unit(u, max_object_bytes=1 << 20, threads=2)]


def repeated(size_bytes: int, count: int, others: int) -> pa.DictionaryArray:
    """Return a value many times, and then others that differ."""
    values = [b"x" * size_bytes, *(b"%d" % n for n in range(others))]
    indices = [0] * count + list(range(1, others + 1))
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(values))


def read_in_little_memory(path: Path) -> list[str]:
    """Return the code or the size of each sample, as a process with 1 GiB reads them."""

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    reader = subprocess.run(
        [sys.executable, "-c", READ_IT, str(path)],
        cwd=ROOT,
        preexec_fn=little_memory,
        capture_output=True,
        text=True,
    )
    assert reader.returncode == 0, reader.stderr[-500:]
    return reader.stdout.split()


@pytest.mark.parametrize(
    ("count", "others", "is_struct"), [(80, 1, False), (80, 1, True), (60, 20_000, False)]
)
def test_a_value_repeated_many_times_takes_memory_once(
    count: int, others: int, is_struct: bool, tmp_path: Path
) -> None:
    """A Parquet file of some kB repeats gigabytes: the mean of its rows may be large or small."""
    column = repeated(REPEATED, count, others)
    if is_struct:
        column = pa.StructArray.from_arrays([column], ["bytes"])
    path = tmp_path / "bomb.parquet"
    pq.write_table(
        pa.table({"image": column}),
        path,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        store_schema=False,
    )
    assert path.stat().st_size < 200_000
    assert Counter(read_in_little_memory(path))["too_large"] == count


def test_large_values_before_many_small_ones_are_read_one_by_one(tmp_path: Path) -> None:
    """The mean of the rows is 1 % of the first ones: 200 of 9 MB are read for a batch of 16."""
    large, small = pa.array([bytes(9 << 20)]), pa.array([b"x"] * 20_000)
    path = tmp_path / "bomb.parquet"
    pq.write_table(
        pa.table({"image": pa.chunked_array([large] * 200 + [small])}),
        path,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_batch_size=16,
    )
    assert path.stat().st_size < 200_000
    assert Counter(read_in_little_memory(path)) == {"too_large": 200, "1": 20_000}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_that_unpacks_to_gigabytes_is_not_unpacked(version: str, tmp_path: Path) -> None:
    bomb = pa.array([bytes(600 << 20)] * 2)
    path = tmp_path / "bomb.parquet"
    with pq.ParquetWriter(
        path,
        pa.schema({"image": pa.binary()}),
        compression="zstd",
        use_dictionary=False,
        data_page_version=version,
    ) as writer:
        for rows in (bomb, pa.array([b"x"])):
            writer.write_table(pa.table({"image": rows}))
    assert path.stat().st_size < 200_000
    assert read_in_little_memory(path) == ["damaged_shard", "1"]


@pytest.mark.parametrize("has_dictionary", [False, True])
def test_a_long_name_repeated_in_a_list_takes_memory_once(
    has_dictionary: bool, tmp_path: Path
) -> None:
    names = repeated(4 << 20, 400, 1).cast(pa.dictionary(pa.int32(), pa.string()))
    path = tmp_path / "list.parquet"
    pq.write_table(
        pa.table({"uri": names, "id": names}),
        path,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        store_schema=has_dictionary,
    )
    assert read_in_little_memory(path) == ["fetch_failed"] * 400 + ["not_found"]


def test_long_names_of_members_take_little_memory(tmp_path: Path) -> None:
    """A packed tar of 5 MB holds gigabytes of names."""
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 20
    member = tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT)
    piece = header.tobuf(tarfile.GNU_FORMAT) + b"n" * (1 << 20) + member
    path = tmp_path / "a.tgz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(piece)
    assert read_in_little_memory(path) == ["damaged_shard"]


def test_a_list_in_a_bucket_names_no_local_file(s3: Bucket, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "secret.tar").write_bytes(b"secret")
    s3.put("one.jpg", b"1234")
    lines = f"file://{tmp_path}/secret.jpg\n{tmp_path}/secret.tar\none.jpg\n"
    lines += f"local://{tmp_path}/secret.tar\ngs://bucket/secret.parquet\n"  # fsspec knows both
    lines += "https://server/secret.jpg\nhttp://server/secret.jpg\n"
    listed = s3.put("list.txt", lines.encode())
    found = [sample.error.code if sample.error else sample.data for sample in read(listed)]
    refused = ["unsupported", "denied", "denied", "unsupported"]
    assert found == ["denied", "denied", b"1234", *refused]
    assert b"secret" in [sample.data for sample in read(listed, trust_lists=True)]


def test_members_with_hostile_names_are_only_names(tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    names = ["/etc/passwd.jpg", "../../up.jpg", "a\x1b[2Jb.jpg", "x" * 5000 + ".jpg"]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            header = tarfile.TarInfo("link.jpg")
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    *named, symbolic, hard = read(str(path))
    assert [sample.member for sample in named] == names
    for link in (symbolic, hard):  # outside the archive: a row with a reason, and no bytes
        assert (link.member, link.data) == ("link.jpg", None)
        assert isinstance(link.error, Unsupported)
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.tar"]


damage = st.lists(
    st.tuples(st.integers(0, 10**6), st.binary(max_size=40), st.integers(0, 600)), max_size=4
)


def damaged(data: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Return the data with some places overwritten or replaced by other bytes."""
    for place, new, removed in changes:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + removed :]
    return data


@settings(max_examples=150, deadline=None)
@given(changes=damage)
def test_any_tar_ends(
    changes: list[tuple[int, bytes, int]],
    tmp_path_factory: pytest.TempPathFactory,
    tar_of: TarOf,
) -> None:
    members = {f"{n}.jpg": b"\xff\xd8\xff" + bytes(400 * n) for n in range(4)}
    _ends(damaged(tar_of(members), changes), "a.tar", tmp_path_factory)


@settings(max_examples=150, deadline=None)
@given(changes=damage)
def test_any_parquet_ends(
    changes: list[tuple[int, bytes, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [bytes(100 * n) for n in range(50)]}), sink)
    _ends(damaged(sink.getvalue().to_pybytes(), changes), "a.parquet", tmp_path_factory)


def _ends(data: bytes, name: str, folders: pytest.TempPathFactory) -> None:
    """Assert that reading ends, and that each sample has either data or an error."""
    path = folders.mktemp("damaged") / name
    path.write_bytes(data)
    for sample in read(str(path.parent)):
        assert (sample.data is None) == (sample.error is not None)
