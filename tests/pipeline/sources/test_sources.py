"""Sources of every kind give the same images, in a folder and in a bucket."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prompt_iml.engine.errors import (
    CredentialsFailed,
    DamagedShard,
    Empty,
    EmptySource,
    MissingInput,
    NotFound,
    TooLarge,
    Unsupported,
    UsageError,
)
from prompt_iml.pipeline.sources import list_units, read_unit, tar, uri_list, zipped
from prompt_iml.pipeline.sources.names import claims_to_be_image
from prompt_iml.pipeline.sources.packing import divided, objects_unit
from prompt_iml.pipeline.storage import listing
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit

if TYPE_CHECKING:
    from tests.helpers.archives import TarOf
    from tests.helpers.stores import Bucket, Folder, Store

Photographs = dict[str, bytes]
MEMBERS = {"a.jpg": b"\xff\xd8\xff" + b"a" * 997, "b.txt": b"b" * 300, "c.jpg": b"c" * 700}


def units(*names: str, images_per_unit: int = 3, **options: Any) -> list[Unit]:
    return list(list_units(names, images_per_unit=images_per_unit, **options))


def read(found: list[Unit], max_object_bytes: int = 1 << 24) -> list[Sample]:
    arguments = {"max_object_bytes": max_object_bytes, "threads": 4}
    return [sample for unit in found for sample in read_unit(unit, **arguments)]


def scan(*names: str, **options: Any) -> list[Sample]:
    return read(units(*names, **options))


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def lines(*names: str) -> bytes:
    return "\n".join(names).encode()


# Each puts the photographs into a store as one kind of source, and returns the INPUT.


def as_folder(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    for name, data in photographs.items():
        store.put(f"in/{name[0]}/{name}", data)
    return f"{store.uri}/in"


def as_glob(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    as_folder(store, photographs, tar_of)
    store.put("in/not.txt", b"not matched")
    return f"{store.uri}/i*/**/*.[jpw]*"


def as_tar(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    return store.put("shard.tar", tar_of({"sidecar.json": b"{}"} | photographs))


def as_tar_gz(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    return store.put("shards/one.tgz", tar_of(photographs, gzipped=True)).rpartition("/")[0]


def as_unnamed_tar(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    return store.put("shard", tar_of(photographs, gzipped=True))


def as_parquet(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    columns = {"id": [1, 2, 3, 4], "content": list(photographs.values()), "note": [b""] * 4}
    return store.put("part.parquet", parquet(columns, row_group_size=1))


def as_hugging_face(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    structs = [{"bytes": data, "path": name} for name, data in photographs.items()]
    return store.put("in/0.parquet", parquet({"image": structs})).rpartition("/")[0]


def as_text(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    as_folder(store, photographs, tar_of)
    names = [f"in/{name[0]}/{name}" for name in photographs]
    uris = [f"{store.uri}/{name}" for name in names[:2]]
    return store.put("list", lines("# relative or not", *uris, "", *names[2:]))


def as_csv(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    as_folder(store, photographs, tar_of)
    rows = [f'{n},"../in/{name[0]}/{name}"' for n, name in enumerate(photographs)]
    return store.put("lists/list.csv", lines("Content_ID,URI", *rows, ""))


def as_parquet_list(store: Store, photographs: Photographs, tar_of: TarOf) -> str:
    as_folder(store, photographs, tar_of)
    names = [f"in/{name[0]}/{name}" for name in photographs]
    paths = pa.array(names).dictionary_encode()
    return store.put("list.parquet", parquet({"path": paths, "id": [1, 2, 3, 4]}))


KINDS = [
    *(as_folder, as_glob, as_tar, as_tar_gz, as_unnamed_tar, as_parquet, as_hugging_face),
    *(as_text, as_csv, as_parquet_list),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images(
    kind: Callable[..., str], store: Store, photographs: Photographs, tar_of: TarOf
) -> None:
    samples = scan(kind(store, photographs, tar_of))
    assert sorted(s.data or b"" for s in samples) == sorted(photographs.values())
    assert [s.error for s in samples] == [None] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 3, 9])
def test_limit_is_exact(
    kind: Callable[..., str], limit: int, folder: Folder, photographs: Photographs, tar_of: TarOf
) -> None:
    name = kind(folder, photographs, tar_of)
    found = units(name, images_per_unit=2, limit=limit)
    assert len(read(found)) == sum(unit.images for unit in found) == min(limit, 4)


def test_limit_spans_shards(folder: Folder, tar_of: TarOf) -> None:
    for name in ("1.tar", "2.tar", "3.tar"):
        folder.put(name, tar_of({"x.txt": b"", "a.jpg": b"1", "b.jpg": b"22"}))
    assert [s.member for s in scan(folder.uri, limit=3)] == ["a.jpg", "b.jpg", "a.jpg"]


def test_a_photograph_is_an_input(store: Store, photographs: Photographs) -> None:
    names = [store.put(name, data) for name, data in photographs.items()]
    found = units(*names, images_per_unit=4)
    assert [unit.images for unit in found] == [4]
    assert [s.data for s in read(found)] == list(photographs.values())


@pytest.mark.parametrize("data", [b"", b"\x00\x01", b"READ ME\n\nSome photographs.\n", b"in\n.\n"])
def test_an_input_that_is_nothing_we_know_is_refused(data: bytes, folder: Folder) -> None:
    folder.put("in/a.jpg", b"data")
    name = folder.put("noise", data)
    with pytest.raises(UsageError, match=r"noise is neither an image nor .*: give a folder"):
        units(name)
    assert [s.data for s in scan(name, format="objects")] == [data]


def test_format_overrules(folder: Folder, tar_of: TarOf) -> None:
    folder.put("list.jpg", lines("shard.bin"))
    folder.put("shard.bin", tar_of(MEMBERS))
    assert len(scan(f"{folder.uri}/shard.bin", format="objects")) == 1
    assert len(scan(f"{folder.uri}/*.bin", format="tar")) == 2
    assert [s.uri for s in scan(f"{folder.uri}/l*", format="list")] == [f"{folder.uri}/shard.bin"]


# Folders.


def test_hidden_files_and_bookkeeping_are_passed_over(store: Store) -> None:
    for name in (".git/a.jpg", "_runs/r/plan.parquet", "x/_SUCCESS", "x/.a.jpg", "x/_DSC1.JPG"):
        store.put(name, b"data")
    assert [s.uri for s in scan(store.uri)] == [f"{store.uri}/x/_DSC1.JPG"]


def test_own_results_are_no_input(folder: Folder) -> None:
    results = pa.table({"mask_rle": [b""]}, metadata={"prompt_iml.schema_version": "1"})
    pq.write_table(results, folder.path / "part-1.parquet")
    folder.put("a.jpg", b"data")
    assert [s.uri for s in scan(folder.uri)] == [f"{folder.uri}/a.jpg"]


def test_parquet_without_images_is_an_object_in_a_folder(folder: Folder) -> None:
    folder.put("meta.parquet", parquet({"caption": ["one"]}))
    folder.put("a.jpg", b"data")
    assert {s.uri.rpartition("/")[2] for s in scan(folder.uri)} == {"a.jpg", "meta.parquet"}


def test_links(folder: Folder) -> None:
    folder.put("in/sub/a.jpg", b"data")
    (folder.path / "in/sub/loop").symlink_to(folder.path / "in")
    (folder.path / "in/gone.jpg").symlink_to("nowhere.jpg")
    (folder.path / "in/self.jpg").symlink_to("self.jpg")
    os.mkfifo(folder.path / "in/pipe")
    codes = {s.uri.rpartition("/")[2]: s.error and s.error.code for s in scan(f"{folder.uri}/in")}
    failed = dict.fromkeys(["self.jpg", "pipe"], "fetch_failed")
    assert codes == {"a.jpg": None, "gone.jpg": "not_found"} | failed


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_not_waited_for(folder: Folder) -> None:
    names = ["pipe.jpg", "pipe.tar", "pipe.parquet"]
    for name in names:
        os.mkfifo(folder.path / name)
    listed = folder.put("list.txt", lines("# all", *names, "/dev/zero"))
    in_folder = [sample for sample in scan(folder.uri) if sample.uri != listed]
    for sample in [*scan(listed, format="list"), *in_folder]:
        assert str(sample.error).endswith("not a regular file")
    with pytest.raises(UsageError, match="/dev/zero: not a regular file"):
        units("/dev/zero")


def test_links_that_multiply_are_refused(folder: Folder) -> None:
    """Each of thirty folders has two links to the next: a thousand million ways to the last."""
    for n in range(30):
        (folder.path / f"in{n}").mkdir()
        for name in ("a", "b"):
            (folder.path / f"in{n}" / name).symlink_to(folder.path / f"in{n + 1}")
    (folder.path / "in30").mkdir()
    with pytest.raises(UsageError, match="links lead to this folder in too many ways"):
        units(f"{folder.uri}/in0")


def test_deep_folders(tmp_path: Path) -> None:
    folders = [Path(f"{tmp_path}{'/d' * depth}") for depth in range(1, 1200)]
    for path in folders:
        path.mkdir()
    (folders[-1] / "a.jpg").write_bytes(b"data")
    try:
        assert [s.data for s in scan(str(tmp_path))] == [b"data"]
    finally:  # pytest cannot remove so many
        (folders[-1] / "a.jpg").unlink()
        for path in reversed(folders):
            path.rmdir()


def test_strange_names(store: Store) -> None:
    names = ["a b#c?.jpg", "100%41.jpg", "line\x01\x7f.jpg", "[1].jpg", "ümläut.jpg", "a*.jpg"]
    for name in names:
        store.put(f"in/{name}", name.encode())
    assert {s.data for s in scan(f"{store.uri}/in")} == {name.encode() for name in names}
    assert [s.data for s in scan(f"{store.uri}/in/[1].jpg")] == [b"[1].jpg"]


def test_names_that_are_not_utf8(tmp_path: Path, tar_of: TarOf) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"data")
    (tmp_path / "list").write_bytes(b"\xff.jpg\n\xfe.jpg")
    (tmp_path / "a.tar").write_bytes(tar_of({os.fsdecode(b"\xfd.jpg"): b"data"}))
    samples = scan(str(tmp_path), str(tmp_path / "list"))
    assert [s.error and s.error.code for s in samples] == [None, None, None, None, "not_found"]
    assert str(samples[-1].error).isascii()


def test_locals_are_in_the_order_of_keys(store: Store) -> None:
    names = ["a-b/x", "a/x", "a/y/z", "a0/x", "b"]
    for name in reversed(names):
        store.put(name, b"data")
    assert [
        ref.uri.removeprefix(f"{store.uri}/") for ref in listing.list_objects(store.uri)
    ] == names


@pytest.mark.parametrize(
    ("pattern", "listed", "names"),
    [
        ("2024*/*.jpg", ["in", "in/2024-1", "in/2024-2"], ["2024-1/a.jpg", "2024-2/c.jpg/d.jpg"]),
        ("*.jpg", ["in"], ["b.jpg"]),
        ("*/x/*.jpg", ["in", "in/2024-1", "in/2024-2", "in/old"], ["2024-1/x/e.jpg"]),
        ("2024-[1]", ["in", "in/2024-1"], ["2024-1/a.jpg", "2024-1/x/e.jpg"]),
        ("2024-1*/**/e.jpg", ["in", "in/2024-1"], ["2024-1/x/e.jpg"]),
    ],
)
def test_a_glob_lists_only_folders_on_its_way(
    pattern: str, listed: list[str], names: list[str], folder: Folder, monkeypatch: Any
) -> None:
    """Others need not be readable: each disk has a lost+found."""
    for name in ("2024-1/a.jpg", "b.jpg", "2024-2/c.jpg/d.jpg", "2024-1/x/e.jpg", "old/f.jpg"):
        folder.put(f"in/{name}", b"data")
    seen: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or scandir(path))
    found = [s.uri for s in scan(f"{folder.uri}/in/{pattern}")]
    assert sorted(found) == [f"{folder.uri}/in/{name}" for name in names]
    assert {os.path.relpath(path, folder.path) for path in seen} >= set(listed)
    others = {"in/2024-1", "in/2024-2", "in/old"} - set(listed)
    assert not others & {os.path.relpath(path, folder.path) for path in seen}


# Listing S3.


CORNERS = ["top/", "top/!", "top/05/", "top/05/a/b", "top/9", "top/zz"]


@pytest.fixture(scope="module")
def crowd(s3_buckets: Callable[[], Bucket]) -> Bucket:
    """Write 130 keys: a folder of 30, twelve of 8, and one in each corner."""
    bucket = s3_buckets()
    names = [f"top/big/{n}" for n in range(30)]
    names += [f"top/{folder:02d}/{n}" for folder in range(12) for n in range(8)]
    for name in names + CORNERS:
        bucket.put(name, b"")
    return bucket


@pytest.fixture
def crowded(crowd: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """List the keys in pages of 7."""
    monkeypatch.setattr(listing, "KEYS_PER_PAGE", 7)
    monkeypatch.setattr(listing, "RANGES_PER_PAGE", 3)
    return crowd


def test_a_crowded_prefix_is_listed_whole(crowded: Bucket) -> None:
    names = [ref.uri for ref in listing.list_objects(f"{crowded.uri}/top")]
    assert len(names) == len(set(names)) == 130
    assert names == [ref.uri for ref in listing.list_objects(crowded.uri)]


def test_a_folder_of_files_is_listed_in_order(crowded: Bucket) -> None:
    names = [ref.uri for ref in listing.list_objects(f"{crowded.uri}/top/big")]
    assert len(names) == 30
    assert names == sorted(names)


def test_a_glob_takes_only_what_matches(crowded: Bucket) -> None:
    assert len(units(f"{crowded.uri}/top/0?", images_per_unit=1000)[0].objects) == 81


def test_a_limit_ends_the_listing(crowded: Bucket) -> None:
    assert sum(unit.images for unit in units(crowded.uri, limit=5)) == 5


def test_more_keys_than_a_page_of_s3(s3: Bucket) -> None:
    names = [f"{folder}/{n:03d}" for folder in "abc" for n in range(340)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: s3.put(name, b""), names))
    assert sorted(ref.uri for ref in listing.list_objects(s3.uri)) == [
        f"{s3.uri}/{name}" for name in names
    ]


def test_a_slash_names_the_folder_whatever_object_has_its_name(s3: Bucket) -> None:
    for name in ("in", "in/", "in/a.jpg"):
        s3.put(name, b"data")
    (unit,) = units(f"{s3.uri}/in/")
    assert f"{s3.uri}/in/a.jpg" in [ref.uri for ref in unit.objects]
    assert f"{s3.uri}/in" not in [ref.uri for ref in unit.objects]


# Errors of a whole input.


def test_missing_inputs(store: Store) -> None:
    store.put("a.jpg", b"data")
    for name in ("none", "none/*.jpg", "*.png"):
        with pytest.raises(MissingInput, match="no such input"):
            units(f"{store.uri}/{name}")


def test_a_missing_object_is_named_once(s3: Bucket) -> None:
    with pytest.raises(MissingInput, match=f"^no such input: {s3.uri}/none: nothing is there$"):
        units(f"{s3.uri}/none")


def test_empty_sources(store: Store) -> None:
    for name in (
        store.put("list", b"# nothing\n"),
        store.put("list.txt", b""),
        store.put("0.parquet", parquet({"data": pa.array([], pa.binary())})),
    ):
        with pytest.raises(EmptySource, match="nothing to scan in"):
            units(name)


def test_an_empty_bucket_and_folder(s3: Bucket, tmp_path: Path) -> None:
    with pytest.raises(EmptySource, match=f"nothing to scan in {s3.uri}"):
        units(s3.uri, str(tmp_path))


def test_a_foreign_scheme_as_input() -> None:
    with pytest.raises(UsageError, match="s3://bucket/key"):
        units("ftp://server/photos")


def test_strangers_cannot_list(strangers: Bucket) -> None:
    for name in (strangers.uri, f"{strangers.uri}/one.jpg"):
        with pytest.raises(CredentialsFailed, match=r"InvalidAccessKeyId|no permission to"):
            units(name)


# Objects that cannot be read are samples all the same.


def test_objects_that_cannot_be_read(store: Store) -> None:
    store.put("folder/big.jpg", b"x" * 100)
    store.put("folder/gone.jpg", b"x")
    found = units(f"{store.uri}/folder")
    store.remove("folder/gone.jpg")
    big, missing = read(found, max_object_bytes=99)
    assert isinstance(big.error, TooLarge)
    assert big.error.facts == {"size_bytes": 100}
    assert isinstance(missing.error, NotFound)


def test_list_entries_that_cannot_be_read(store: Store) -> None:
    store.put("folder/big.jpg", b"x" * 100)
    entries = [
        "ftp://h/a.jpg",
        "none.jpg",
        "none.parquet",
        "none.tar",
        "folder",
        "folder/big.jpg",
    ]
    samples = read(units(store.put("list.txt", lines(*entries))), max_object_bytes=99)
    codes = {s.uri.rpartition("/")[2]: s.error and s.error.code for s in samples}
    assert codes == dict.fromkeys(
        ["none.jpg", "none.parquet", "none.tar", "folder"], "not_found"
    ) | {
        "a.jpg": "unsupported",
        "big.jpg": "too_large",
    }


def test_lists_carry_ids(folder: Folder) -> None:
    name = folder.put("list.tsv", lines("\ufeffimage\tid", "a.jpg\t7", "b.jpg\t", "", "c.jpg"))
    assert [s.content_id for s in scan(name)] == ["7", None, None]


def test_one_long_line_is_no_list(folder: Folder) -> None:
    name = folder.put("list.txt", b"x" * 200_000)
    with pytest.raises(UsageError, match="nor a list"):
        units(name)
    (sample,) = scan(name, format="list")
    assert sample.error


def test_a_long_cell_refuses_no_list(folder: Folder) -> None:
    data = lines("uri,mask", f"a.jpg,{'1' * 140_000}", "b.jpg,1")
    assert len(scan(folder.put("list.csv", data))) == 2


def test_rows_of_blank_cells_are_passed_over(folder: Folder) -> None:
    data = lines("uri,id", "a.jpg,1", "  ", ",", " , ", "b.jpg,2", ",,")
    assert [s.content_id for s in units(folder.put("list.csv", data))[0].objects] == ["1", "2"]


def test_half_a_surrogate_pair_in_json_is_replaced(folder: Folder) -> None:
    data = jsonl({"url": "https://e.org/\ud83d.jpg", "id": "x\ud83d"}, {"url": "\U0001f600.jpg"})
    first, second = units(folder.put("list.jsonl", data))[0].objects
    assert (first.uri, first.content_id) == ("https://e.org/\ufffd.jpg", "x\ufffd")
    assert second.uri.endswith("/\U0001f600.jpg")


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        (b"READ ME\n\nSome photographs.\n", False),
        (b"in\n.\n", False),
        (b"", False),
        (b"x" * 9000, False),
        (b'{"caption": "in/a.jpg"}\n', False),
        (b"none.jpg\nin/a.jpg\n", True),
        (b"gone.jpg\n", True),
        (b"s3://bucket/a.jpg\n", True),
        (b"id,path\n", True),
    ],
)
def test_a_list_is_distinguished_from_other_text(
    text: bytes, is_list: bool, folder: Folder
) -> None:
    folder.put("in/a.jpg", b"data")
    assert uri_list.is_list(folder.put("README", text), text) is is_list


ENTRIES = ["../in/0.jpg", "../in/1.jpg"]


def jsonl(*rows: dict[str, Any]) -> bytes:
    return lines(*map(json.dumps, rows))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pairs.txt", lines(*(f"{entry},None" for entry in ENTRIES))),
        ("masks.txt", lines(*(f"{entry},{entry}.png" for entry in ENTRIES))),
        ("labels.txt", lines(*(f"{entry} 0" for entry in ENTRIES))),
        ("odd-header.tsv", lines("label\tpicture", *(f"0\t{entry}" for entry in ENTRIES))),
        ("metadata.csv", lines("file_name,text", *(f"{entry},a cat" for entry in ENTRIES))),
        ("semicolons.csv", lines('uri;"label"', *(f"{entry};1" for entry in ENTRIES))),
        ("excel.csv", b"\xef\xbb\xbf" + lines("sep=;", "uri;label", *(f"{e};1" for e in ENTRIES))),
        ("rows.jsonl", jsonl(*({"id": 7, "file_name": entry} for entry in ENTRIES))),
        ("utf16.txt", "\r\n".join(ENTRIES).encode("utf-16")),
        ("utf16be.txt", "\r\n".join(ENTRIES).encode("utf-16-be")),
        ("packed.txt.gz", gzip.compress(lines(*ENTRIES))),
        ("from-here.txt", lines("in/0.jpg", "in/1.jpg")),
        ("commas.txt", lines("../in/0,1.jpg", "../in/1.jpg")),
    ],
)
def test_a_list_is_read_as_people_write_it(
    name: str, data: bytes, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.path)
    for image in ("0.jpg", "1.jpg", "0,1.jpg"):
        folder.put(f"in/{image}", image.encode())
    samples = scan(folder.put(f"lists/{name}", data))
    first = b"0,1.jpg" if name == "commas.txt" else b"0.jpg"
    assert [s.data for s in samples] == [first, b"1.jpg"]
    assert {s.content_id for s in samples} == ({"7"} if name == "rows.jsonl" else {None})


A, B = "https://e.org/a.jpg", "https://e.org/b.jpg"


@pytest.mark.parametrize(
    "rows",
    [
        [f"{A}\tcat", f"{B}\t"], [f"cat\t{A}", f"dog\t{B}"], [f"{A}\t{A}", f"{B}\t{B}"],
        [f"{A},1", f"{B},0"], [f"{A};1;cat", f"{B};0;dog"], [f"{A} 0", f"{B} 1"],
        ["Image URL,caption", f"{A},a cat", f"{B},a dog"], [f"1,{A}", f"0,{B}"], [A, B],
    ],
)  # fmt: skip
def test_a_table_of_urls_without_a_known_header(rows: list[str], folder: Folder) -> None:
    (unit,) = units(folder.put("list.txt", lines(*rows)))
    assert [ref.uri for ref in unit.objects] == [A, B]


@pytest.mark.parametrize(
    "urls",
    [
        ["https://e.org/w_300,h_200/a.jpg", "https://e.org/w_300,h_200/b.jpg"],
        ["https://e.org/w_300,h_200/0a", "https://e.org/w_300,h_200/0b"],
        ["https://e.org/a.jpg?size=1,2", "https://e.org/b.jpg?size=1,2"],
        ["https://e.org/a;1", "https://e.org/b.jpg"],
        ["https://e.org/a.jpg,1", "https://e.org/b.jpg"],
    ],
)
def test_a_comma_in_a_url_divides_no_list_of_urls(urls: list[str], folder: Folder) -> None:
    (unit,) = units(folder.put("list.txt", lines(*urls)))
    assert [ref.uri for ref in unit.objects] == urls


def test_the_first_entries_of_a_list_may_be_gone(folder: Folder) -> None:
    folder.put("in/0.jpg", b"data")
    gone = [f"in/gone{n}.jpg" for n in range(12)]
    samples = scan(folder.put("list.txt", lines(*gone, "in/0.jpg")))
    assert [s.error and s.error.code for s in samples] == ["not_found"] * 12 + [None]


def test_a_broken_line_of_json_is_a_failed_row(folder: Folder) -> None:
    folder.put("0.jpg", b"data")
    data = jsonl({"uri": "0.jpg"}, {"uri": 3}) + b'\n{"uri": \n' + b'{"a":' * 100_000
    samples = scan(folder.put("list.jsonl", data))
    assert [s.error is None for s in samples] == [True, False, False, False]


@pytest.mark.parametrize("data", [b'uri,t\na.jpg,"x\nb.jpg,x\n', b'a.jpg,"x\nb.jpg,x\n'])
def test_a_quote_that_is_not_closed_hides_no_rows(data: bytes, folder: Folder) -> None:
    folder.put("a.jpg", b"data")
    with pytest.raises(UsageError, match=r"list\.csv is no CSV"):
        scan(folder.put("list.csv", data))


def test_a_damaged_gzip_list_is_refused(folder: Folder) -> None:
    packed = gzip.compress(lines("a.jpg", *(f"{n}.jpg" for n in range(999))))
    with pytest.raises(UsageError, match=r"list\.gz: "):
        units(folder.put("list.gz", packed[: len(packed) // 2]), format="list")


# Tar shards.


def test_members_that_are_images(folder: Folder, tar_of: TarOf) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"x" * 900
    members = {
        "./a.JPG": b"1",
        "no_suffix": png,
        "empty.jpg": b"",
        "0.json": b"{}",
        "._a.jpg": b"2",
        "x/.h/a.jpg": b"3",
        "_temporary/.b.jpg": b"4",
    }
    samples = scan(folder.put("a.tar", tar_of(members)))
    skipped = ("0.json", "._a.jpg")
    assert {s.member: s.data for s in samples} == {
        name: data for name, data in members.items() if name not in skipped
    }


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(format: int, folder: Folder, tar_of: TarOf) -> None:  # noqa: A002
    names = [f"{'d' * 80}/{'f' * 90}.jpg"]
    names += [f"{'é' * 200}.jpg", "ü.jpg"] if format != tarfile.USTAR_FORMAT else []
    shard = tar_of({name: name.encode() for name in names}, format=format)
    assert [(s.member, s.data) for s in scan(folder.put("a.tar", shard))] == [
        (name, name.encode()) for name in names
    ]


def tar_of_links(
    links: dict[str, tuple[bytes, str]],
    mode: Literal["w", "w:gz"] = "w",
    first: Photographs = MEMBERS,
) -> bytes:
    """Return a shard of members, and then of links or other entries: type and target."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, data in first.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, (kind, target) in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return sink.getvalue()


def test_folders_and_devices_in_a_tar_are_no_images(folder: Folder) -> None:
    kinds = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    shard = tar_of_links({f"{kind.decode()}.jpg": (kind, "") for kind in kinds})
    assert [s.member for s in scan(folder.put("a.tar", shard))] == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_a_tar_give_what_they_point_to(mode: Literal["w", "w:gz"], folder: Folder) -> None:
    long = f"{'l' * 150}.jpg"
    links = {
        "hard.jpg": (tarfile.LNKTYPE, "./a.jpg"),
        "hard.txt": (tarfile.LNKTYPE, "b.txt"),
        long: (tarfile.LNKTYPE, "hard.jpg"),
        "x/.soft": (tarfile.SYMTYPE, f"../{long}"),
        "x/folder": (tarfile.SYMTYPE, "."),
    }
    *_, hard, again, soft = scan(folder.put("a.tar", tar_of_links(links, mode)))
    assert [s.member for s in (hard, again, soft)] == ["hard.jpg", long, "x/.soft"]
    assert {s.data for s in (hard, again, soft)} == {MEMBERS["a.jpg"]}
    assert (soft.claims_image, soft.media_type) == (False, "image/jpeg")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_to_nothing_is_a_failed_row(kind: bytes, folder: Folder) -> None:
    shard = tar_of_links({"gone.jpg": (kind, "blobs/a"), "gone": (kind, "blobs/a")}, first={})
    (sample,) = scan(folder.put("a.tar", shard))
    assert sample.member == "gone.jpg"
    assert isinstance(sample.error, Unsupported)
    assert "link to blobs/a, which is no image of this shard" in str(sample.error)


def test_a_link_to_a_member_over_the_limit_is_over_it_too(folder: Folder) -> None:
    shard = folder.put("a.tar", tar_of_links({"l.jpg": (tarfile.LNKTYPE, "a.jpg")}))
    codes = [s.error and s.error.code for s in read(units(shard), max_object_bytes=999)]
    assert codes == ["too_large", None, "too_large"]


@pytest.mark.parametrize(("mode", "code"), [("w", None), ("w:gz", "unsupported")])
def test_what_links_may_point_to_is_bounded(
    mode: Literal["w", "w:gz"], code: str | None, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed stream keeps the last images; a plain one goes back to any."""
    monkeypatch.setattr(tar, "LINKED_BYTES", 1500 + 1000)
    links = {"far.jpg": (tarfile.LNKTYPE, "a.jpg"), "near.jpg": (tarfile.LNKTYPE, "c.jpg")}
    samples = scan(folder.put("a.tar", tar_of_links(links, mode)))
    assert [s.error and s.error.code for s in samples] == [None, None, code, None]


def test_a_member_over_the_limit_is_not_read(folder: Folder, tar_of: TarOf) -> None:
    shard = folder.put("a.tar", tar_of({"a.jpg": b"1" * 3000, "b.jpg": b"2"}))
    big, small = read(units(shard), max_object_bytes=2999)
    assert isinstance(big.error, TooLarge)
    assert big.member == "a.jpg"
    assert small.data == b"2"


def test_what_a_tar_knows_of_a_member_is_carried(folder: Folder, tar_of: TarOf) -> None:
    png = b"\x89PNG\r\n\x1a\n"
    shard = folder.put("a.tar", tar_of({"a.jpg": png, "b.jpg": b"?", "c": png, "d": b"?"}))
    found = {s.member: (s.claims_image, s.media_type) for s in scan(shard)}
    assert found == {"a.jpg": (True, "image/png"), "b.jpg": (True, None), "c": (False, "image/png")}


# MEMBERS as a tar: headers at 0, 1536, 2560; bodies at 512, 2048, 3072; end mark at 4096.
@pytest.mark.parametrize(
    ("length", "members", "position"),
    [
        (0, [], 0),
        (100, [], 0),
        (512, [], 512),
        (1000, [], 1000),
        (1536, ["a.jpg"], 1536),
        (1800, ["a.jpg"], 1536),
        (3071, ["a.jpg"], 2560),
        (3500, ["a.jpg"], 3500),
        (4000, ["a.jpg", "c.jpg"], 4000),
        (4096, ["a.jpg", "c.jpg"], 4096),
    ],
)
def test_truncated_tar(
    length: int, members: list[str], position: int, folder: Folder, tar_of: TarOf
) -> None:
    uri = folder.put("cut.tar", tar_of(MEMBERS)[:length])
    *whole, damage = scan(uri)
    assert [s.member for s in whole] == members
    assert isinstance(damage.error, DamagedShard)
    assert damage.member is None
    assert f"cut.tar at byte {position}:" in str(damage.error)


def test_a_tar_may_end_after_one_block_of_zeros(folder: Folder, tar_of: TarOf) -> None:
    assert len(scan(folder.put("a.tar", tar_of(MEMBERS)[:4608]))) == 2


@pytest.mark.parametrize("spoil", [b"\xff" * 20, b"\0" * 512])
def test_a_spoilt_header_is_reported(spoil: bytes, folder: Folder, tar_of: TarOf) -> None:
    shard = bytearray(tar_of(MEMBERS))
    shard[1536 : 1536 + len(spoil)] = spoil
    first, damage = scan(folder.put("a.tar", bytes(shard)))
    assert first.data == MEMBERS["a.jpg"]
    assert isinstance(damage.error, DamagedShard)


def test_tars_behind_each_other(folder: Folder, tar_of: TarOf) -> None:
    assert len(scan(folder.put("a.tar", tar_of(MEMBERS) + tar_of(MEMBERS)))) == 4


def test_truncated_gzip(folder: Folder, photographs: Photographs, tar_of: TarOf) -> None:
    shard = tar_of(photographs, gzipped=True)
    for length in range(len(shard) - 1, 0, -len(shard) // 7):
        samples = scan(folder.put("a.tgz", shard[:length]))
        assert [s.data for s in samples[:-1]] == list(photographs.values())[: len(samples) - 1]
        assert isinstance(samples[-1].error, DamagedShard)


def test_spoilt_gzip(folder: Folder, photographs: Photographs, tar_of: TarOf) -> None:
    shard = bytearray(tar_of(photographs, gzipped=True))
    shard[len(shard) // 2 :] = b"\x55" * (len(shard) - len(shard) // 2)
    *_, damage = scan(folder.put("a.tar.gz", bytes(shard)))
    assert isinstance(damage.error, DamagedShard)
    assert "gzip" in str(damage.error)


def pax_tar(records: bytes, body: bytes) -> bytes:
    extension, member = tarfile.TarInfo("pax"), tarfile.TarInfo("short.jpg")
    extension.type, extension.size, member.size = tarfile.XHDTYPE, len(records), len(body)
    blocks = [extension.tobuf(), records, member.tobuf(), body]
    padded = [block + b"\0" * (-len(block) % 512) for block in blocks]
    return b"".join([*padded, b"\0" * 1024])


def test_pax_records(folder: Folder) -> None:
    shard = pax_tar(b"19 path=a=\xff b.jpg\n6 a=1\n".replace(b"19", b"18"), b"data")
    assert [s.member for s in scan(folder.put("a.tar", shard))] == ["a=\udcff b.jpg"]


def test_what_follows_many_records_and_zeros_is_read(folder: Folder, tar_of: TarOf) -> None:
    records = b"".join(b"%d k%06d=\n" % (12, n) for n in range(60_000)) + b"14 path=a.jpg\n"
    gap = bytes(512 * 100_000)
    shard = folder.put("a.tar", pax_tar(records, b"data") + gap + tar_of({"b.jpg": b"b"}))
    found = [(sample.member, sample.data) for sample in scan(shard)]
    assert found == [("a.jpg", b"data"), ("b.jpg", b"b")]


@pytest.mark.parametrize(
    "records",
    [
        b"x a=1\n",
        b"0 a=1\n",
        b"999 a=1\n",
        b"5 a1\n",
        b"10 size=-1\n",
        b"11 size=1_0\n",
        b"28 size=9999999999999999999\n",
        b"5011 size=" + b"9" * 5000 + b"\n",
    ],
)
def test_corrupt_pax_records(records: bytes, folder: Folder) -> None:
    (damage,) = scan(folder.put("a.tar", pax_tar(records, b"data")))
    assert isinstance(damage.error, DamagedShard)


def test_a_hostile_long_name_is_not_read(folder: Folder) -> None:
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (damage,) = scan(folder.put("a.tar", header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024))
    assert "an extended header of 1099511627776 bytes" in str(damage.error)


def extension(size_bytes: int, kind: bytes = tarfile.GNUTYPE_LONGNAME) -> bytes:
    header = tarfile.TarInfo("name")
    header.type, header.size = kind, size_bytes
    return header.tobuf(tarfile.GNU_FORMAT) + b"n" * size_bytes + bytes(-size_bytes % 512)


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_long_names_and_many_headers_are_damage(
    packed: Callable[[bytes], bytes], folder: Folder, tar_of: TarOf
) -> None:
    """Names are held for thousands of rows; headers accumulate until a member comes."""
    long_name = extension(tar.MAX_NAME + 1)
    many = extension(200_000, tarfile.XGLTYPE) * 6
    for start, message in ((long_name, "a name of 65537"), (many, "an extended header of 1200000")):
        shard = tar_of(MEMBERS)[:1536] + start + tar_of(MEMBERS)
        first, damage = scan(folder.put("a.tar", packed(shard)))
        assert first.data == MEMBERS["a.jpg"]
        assert message in str(damage.error)


def test_gaps_between_members_are_read_once(folder: Folder, tar_of: TarOf) -> None:
    """A block of zeros before each of 40,000 headers: looking far ahead at each took minutes."""
    shard = (bytes(512) + tar_of({"b.txt": b""})[:512]) * 40_000 + tar_of(MEMBERS)
    started = time.process_time()
    assert [s.member for s in scan(folder.put("a.tar", shard))] == ["a.jpg", "c.jpg"]
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("odd"), "damaged_shard"), (MemoryError(), "out_of_memory")]
)
def test_whatever_a_reader_raises_is_a_row_that_names_the_shard(
    error: Exception, code: str, folder: Folder, tar_of: TarOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(uri: str, archive: Any, member: Any, limit: int) -> Sample:
        if member.name == "c.jpg":
            raise error
        return Sample(uri, member.name, data=archive.read(member.size_bytes))

    monkeypatch.setattr(tar, "_image", images)
    *_, last = scan(folder.put("a.tar", tar_of(MEMBERS)))
    assert last.error
    assert (last.member, last.error.code, last.error.stage) == (None, code, "fetch")
    assert "a.tar" in str(last.error)


@pytest.mark.parametrize("name", ["shard-0.tar", "a.tgz", "a.zip", "train-00000.parquet"])
def test_shards_that_stand_elsewhere_are_named(name: str, folder: Folder) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"
    folder.put(f"in/{name}", pointer)
    (sample,) = scan(f"{folder.uri}/in")
    assert isinstance(sample.error, DamagedShard)
    assert f"{name} is a Git LFS pointer" in str(sample.error)


def test_a_list_that_stands_elsewhere_is_named(folder: Folder) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"
    with pytest.raises(UsageError, match=r"list\.csv is a Git LFS pointer"):
        units(folder.put("list.csv", pointer))


def test_a_sparse_member_is_refused_and_passed(folder: Folder, tar_of: TarOf) -> None:
    member = tarfile.TarInfo("sparse.jpg")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 600
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # its map goes on in another block
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * ord(" "))
    shard = header + b"\0" * 512 + b"x" * 1024 + tar_of(MEMBERS)
    samples = scan(folder.put("a.tar", bytes(shard)))
    assert [s.member for s in samples] == ["sparse.jpg", "a.jpg", "c.jpg"]
    assert isinstance(samples[0].error, Unsupported)


# Other archives.


def zip_of(members: Photographs, **options: Any) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_tars_of_other_compressions(
    pack: Callable[[bytes], bytes], folder: Folder, photographs: Photographs, tar_of: TarOf
) -> None:
    shard = tar_of(photographs)
    packed = pack(shard[:4000]) + pack(shard[4000:])  # as parallel compressors write
    names = [folder.put(name, packed) for name in ("a.tar.bz2", "a.txz", "unnamed")]
    assert [s.data for s in scan(*names)] == [*photographs.values()] * 3
    *_, damage = scan(folder.put("a.tar.xz", pack(shard)[:-40]))
    assert isinstance(damage.error, DamagedShard)


def test_an_xz_that_asks_for_much_memory_is_refused(folder: Folder, tar_of: TarOf) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}]
    shard = lzma.compress(tar_of(MEMBERS), filters=filters)
    (damage,) = scan(folder.put("a.tar.xz", shard))
    assert isinstance(damage.error, DamagedShard)


def test_a_zip_is_a_shard(store: Store, photographs: Photographs) -> None:
    others = {"notes.txt": b"text", "__MACOSX/._a.jpg": b"attributes", "d.jpg/": b""}
    shard = zip_of(others | photographs, compression=zipfile.ZIP_DEFLATED)
    samples = scan(store.put("in/a.zip", shard), store.put("unnamed", shard), f"{store.uri}/in")
    assert [s.data for s in samples] == [*photographs.values()] * 3
    assert [s.member for s in samples] == [*photographs] * 3


def test_members_of_a_zip_that_cannot_be_read(folder: Folder) -> None:
    shard = zip_of({"ok.jpg": b"1", "spoilt.jpg": b"spoilt", "big.jpg": b"b" * 3000})
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = stat.S_IFLNK << 16
    sink = io.BytesIO(shard.replace(b"spoilt.jpgspoilt", b"spoilt.jpgspoilT"))
    with zipfile.ZipFile(sink, "a") as archive:
        archive.writestr(link, "ok.jpg")
        archive.writestr("lzma.jpg", b"1", zipfile.ZIP_LZMA)
    samples = read(units(folder.put("a.zip", sink.getvalue())), max_object_bytes=2999)
    assert {s.member: s.error and s.error.code for s in samples} == {
        "ok.jpg": None,
        "spoilt.jpg": "damaged_shard",
        "big.jpg": "too_large",
        "link.jpg": "unsupported",
        "lzma.jpg": "unsupported",
    }


def test_an_encrypted_zip_is_refused(folder: Folder) -> None:
    shard = bytearray(zip_of({"a.jpg": b"1"}))
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        shard[shard.index(magic) + at] |= 1
    (sample,) = scan(folder.put("a.zip", bytes(shard)))
    assert isinstance(sample.error, Unsupported)
    assert "encrypted" in str(sample.error)


def test_a_spoilt_member_without_an_extension_is_a_failed_row(folder: Folder) -> None:
    shard = zip_of({"0a": b"\xff\xd8\xff" + b"a" * 5000, "0b": b"b" * 5000, "0c": b"c" * 9})
    for name, body in (("0a", b"a" * 5000), ("0b", b"b" * 5000), ("0c", b"c" * 9)):
        shard = shard.replace(body, body[:-1] + name[:1].encode())
    samples = scan(folder.put("a.zip", shard))
    assert [s.member for s in samples] == ["0a", "0c"]  # the head of 0b is no image's
    assert all(isinstance(s.error, DamagedShard) for s in samples)


@pytest.mark.parametrize("pack", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_are_not_unpacked_are_failed_rows(pack: int, folder: Folder) -> None:
    names = ["0a", "0a.cls", "in/0b", "__MACOSX/._0a", "notes.TXT", ".DS_Store", "c.jpg", "in.tar"]
    samples = scan(folder.put("a.zip", zip_of(dict.fromkeys(names, b"1"), compression=pack)))
    assert [s.member for s in samples] == ["0a", "in/0b", "c.jpg", "in.tar"]
    assert all(isinstance(s.error, Unsupported) for s in samples)


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_zip_is_one_failed_sample(cut: int, folder: Folder) -> None:
    (damage,) = scan(folder.put("a.zip", zip_of(MEMBERS)[:cut]))
    assert isinstance(damage.error, DamagedShard)
    assert "a.zip" in str(damage.error)


def test_an_empty_zip_has_no_images(folder: Folder) -> None:
    """Its 22 bytes are fewer than what is looked for at its end."""
    assert scan(folder.put("a.zip", zip_of({}))) == []


def test_zip_bombs_are_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One body that all members share, and a directory of many members."""
    shard = zip_of({f"{n}.jpg": b"x" * 500 for n in range(9)})
    at, end = shard.index(b"PK\1\2"), shard.index(b"PK\5\6")
    entry = shard[at : shard.index(b"PK\1\2", at + 1)]
    body = shard[: shard.index(b"PK\3\4", 1)]
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 9 * len(entry), len(body), 0)
    (overlap,) = scan(folder.put("a.zip", body + 9 * entry + tail))
    assert "overlap" in str(overlap.error)
    monkeypatch.setattr(zipped, "MAX_DIRECTORY", end - at - 1)
    (directory,) = scan(folder.put("b.zip", shard))
    assert isinstance(directory.error, DamagedShard)


@pytest.mark.parametrize(
    "name",
    ["a.7z", "a.RAR", "a.tar.zst", "a.7z.001", "a.tar.001", "a.tar.gz.aa", "a.z01", "a.cbz"],
)
def test_archives_that_are_not_read_are_named(name: str, folder: Folder) -> None:
    shard = folder.put(f"in/{name}", b"packed")
    with pytest.raises(UsageError, match=f"{name} is an archive that is not read: unpack it"):
        units(shard)
    (sample,) = scan(f"{folder.uri}/in")
    assert isinstance(sample.error, Unsupported)


def test_archives_in_a_shard_are_failed_rows(folder: Folder, tar_of: TarOf) -> None:
    members = {"a.jpg": b"1", "in.tar": tar_of({"b.jpg": b"2"}), "x/in.zip": b"PK", "c.7z": b"7z"}
    for shard in (tar_of(members), zip_of(members)):
        samples = scan(folder.put("shard", shard))
        assert [s.error and s.error.code for s in samples] == [None] + ["unsupported"] * 3
        assert "unpack the shard" in str(samples[1].error)


# Parquet.


def test_members_of_parquet_are_rows(folder: Folder) -> None:
    columns = {"image": [b"0", None, b"2" * 11, b"3"], "id": ["a", "b", None, "d"]}
    samples = read(units(folder.put("a.parquet", parquet(columns, row_group_size=2))), 10)
    assert [s.member for s in samples] == ["0", "1", "2", "3"]
    assert [s.content_id for s in samples] == ["a", "b", None, "d"]
    assert [type(s.error) for s in samples] == [type(None), Empty, TooLarge, type(None)]


def test_a_path_in_the_struct_is_the_content_id(folder: Folder) -> None:
    structs = [{"bytes": b"0", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    samples = scan(folder.put("a.parquet", parquet({"image": structs})))
    assert [(s.data, s.content_id) for s in samples] == [
        (b"0", "a.jpg"),
        (None, "b.jpg"),
        (None, None),
    ]


def test_units_are_ranges_of_row_groups(folder: Folder) -> None:
    uri = folder.put("a.parquet", parquet({"data": [b"x"] * 10}, row_group_size=2))
    found = units(uri, images_per_unit=4)
    assert [(u.first, u.last, u.images) for u in found] == [(0, 2, 4), (2, 4, 4), (4, 5, 2)]
    assert [s.member for s in read(found[1:])] == ["4", "5", "6", "7", "8", "9"]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"a": [b""], "JPG": [b"x"]}, None),
        ({"a": [b""], "b": [{"bytes": b"x"}], "image": [b""]}, None),
        ({"a": [b""], "b": [b"x"]}, "b"),
        ({"b": pa.array([b"x"], pa.large_binary()), "text": ["a"]}, None),
    ],
)
def test_the_image_column(columns: dict[str, Any], chosen: str | None, folder: Folder) -> None:
    uri = folder.put("a.parquet", parquet(columns))
    assert [s.data for s in scan(uri, image_column=chosen)] == [b"x"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [b""], "b": [b"x"]}, {}, "choose with --image-column: a, b"),
        ({"a": [b""], "b": ["x"]}, {"image_column": "b"}, "may: a; all: a, b"),
        ({"a": ["x"]}, {}, "no column .* image bytes"),
        ({"a": ["x"]}, {"format": "parquet"}, "no column holds image bytes: a"),
        ({"a": ["x"]}, {"format": "list"}, "uri, url, path, image"),
    ],
)
def test_no_image_column(
    columns: dict[str, Any], options: dict[str, Any], message: str, folder: Folder
) -> None:
    with pytest.raises(UsageError, match=message):
        units(folder.put("a.parquet", parquet(columns)), **options)


def test_a_spoilt_page_loses_only_its_row_group(folder: Folder) -> None:
    columns = {"image": [b"photograph" * 10] * 6}
    file = bytearray(parquet(columns, row_group_size=2, compression="zstd"))
    at = pq.ParquetFile(io.BytesIO(file)).metadata.row_group(1).column(0).data_page_offset
    file[at : at + 20] = b"\x55" * 20
    samples = scan(folder.put("a.parquet", bytes(file)))
    assert [s.member for s in samples] == ["0", "1", "2", "4", "5"]
    assert "rows 2 to 3 (row group 1)" in str(samples[2].error)


def test_a_parquet_file_replaced_since_it_was_planned(folder: Folder) -> None:
    """The new file lacks the planned column, has it, or has two possible columns."""
    planned = units(folder.put("a.parquet", parquet({"crop": [b"x"]})), image_column="crop")
    for columns in ({"other": [b"x"]}, {"crop": ["text"]}, {"crop": [1]}):
        folder.put("a.parquet", parquet(columns))
        (sample,) = read(planned)
        assert isinstance(sample.error, DamagedShard)
    uri = folder.put("a.parquet", b"rubbish")
    planned = units(uri, image_column="crop", format="parquet")
    folder.put("a.parquet", parquet({"image": [b"wrong"], "crop": [b"right"]}))
    assert [sample.data for sample in read(planned)] == [b"right"]
    folder.put("b.parquet", b"rubbish")
    planned = units(f"{folder.uri}/b.parquet", format="parquet")
    folder.put("b.parquet", parquet({"left": [b"x"], "right": [b"y"]}))
    (sample,) = read(planned)
    assert "which column holds the images?" in str(sample.error)


def test_two_columns_of_one_name_are_no_image_column(folder: Folder) -> None:
    twice = pa.Table.from_arrays([pa.array([b"x"])] * 3, ["image", "image", "jpg"])
    sink = io.BytesIO()
    pq.write_table(twice, sink)
    assert [s.data for s in scan(folder.put("a.parquet", sink.getvalue()))] == [b"x"]


def parquet_of(names: list[str], arrays: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(each) for each in arrays], names), sink)
    return sink.getvalue()


JPEG = b"\xff\xd8\xff" + b"x" * 2000


@pytest.mark.parametrize(
    "value",
    [
        [{"bytes": JPEG, "path": "a.jpg"}],
        [JPEG],
        {"origin": "a.jpg", "height": 1, "data": JPEG},
        {"content": JPEG, "mime": "image/jpeg", "path": "a.jpg"},
        [{"origin": "a.jpg", "height": 1, "data": JPEG}],
    ],
)
def test_images_that_are_nested(value: Any, folder: Folder) -> None:
    folder.put("in/a.parquet", parquet({"images": [value] * 50, "text": ["x"] * 50}))
    samples = scan(f"{folder.uri}/in")
    assert [(s.data, s.error) for s in samples] == [(JPEG, None)] * 50
    assert {s.content_id for s in samples} == {None if value == [JPEG] else "a.jpg"}


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ([JPEG, JPEG], "unsupported", "a list of 2 images: write one image a row"),
        ([], "empty", "null"),
        ({"origin": "a.jpg", "data": b"\0" * 900}, "unsupported", "pixels that Spark"),
        ({"bytes": None, "path": "in/a.jpg"}, "empty", "only the path in/a.jpg: embed"),
    ],
)
def test_rows_without_one_image_are_named(
    value: Any, code: str, message: str, folder: Folder
) -> None:
    key = "bytes" if "bytes" in value else "data"
    other = [JPEG] if isinstance(value, list) else value | {key: JPEG}
    ids = ["1", "2"]
    uri = folder.put("a.parquet", parquet({"image": [value, other], "id": ids}))
    sample = scan(uri)[0]
    assert sample.error
    assert (sample.error.code, sample.content_id) == (code, "1")
    assert message in str(sample.error)


@pytest.mark.parametrize("value", [list(JPEG), {"path": "a.jpg"}, {"bytes": "/9j/", "path": "a"}])
def test_nested_pictures_without_bytes_are_named(value: Any, folder: Folder) -> None:
    folder.put("in/a.parquet", parquet({"images": [value], "text": ["x"]}))
    (sample,) = scan(f"{folder.uri}/in")
    assert "a.parquet: column images holds bytes" in str(sample.error)


@pytest.mark.parametrize(
    "value",
    [
        {"left": JPEG, "right": JPEG},
        [{"a": JPEG, "b": JPEG}],
        {"images": [{"bytes": JPEG, "path": "a.jpg"}]},
        pa.scalar(JPEG, pa.binary(len(JPEG))),
    ],
)
def test_bytes_in_several_fields_are_named(value: Any, folder: Folder) -> None:
    folder.put("in/a.parquet", parquet({"pair": [value], "text": ["x"]}))
    (sample,) = scan(f"{folder.uri}/in")
    assert "a.parquet: column pair holds bytes in several fields" in str(sample.error)


def test_a_column_of_other_bytes_is_not_taken_for_nested_images(folder: Folder) -> None:
    folder.put("in/a.parquet", parquet({"images": [[JPEG]], "md5": [b"x"]}))
    (sample,) = scan(f"{folder.uri}/in")
    assert "choose with --image-column: md5, images" in str(sample.error)
    (chosen,) = scan(f"{folder.uri}/in", image_column="images")
    assert chosen.data == JPEG


@pytest.mark.parametrize(
    ("value", "code"), [(b"", "empty"), (base64.b64encode(JPEG), "unsupported")]
)
def test_bytes_that_are_no_file_of_an_image(value: bytes, code: str, folder: Folder) -> None:
    _, sample = scan(folder.put("a.parquet", parquet({"image": [JPEG, value]})))
    assert sample.error
    assert sample.error.code == code


def test_base64_in_parquet_is_named(folder: Folder) -> None:
    texts = [None, base64.b64encode(JPEG).decode()]
    uri = folder.put("in/a.parquet", parquet({"encoded": texts}))
    for name in (uri, f"{folder.uri}/in"):
        (sample,) = scan(name)
        assert "a.parquet: column encoded holds base64 text" in str(sample.error)


TWICE = pa.StructArray.from_arrays([pa.array([b"x"])] * 2, names=["bytes", "bytes"])


@pytest.mark.parametrize(
    ("names", "arrays", "code"),
    [
        (["image", "id", "id"], [[b"x"], ["a"], ["b"]], None),
        (["image", "image"], [[b"x"], [b"y"]], "damaged_shard"),
        (["image"], [TWICE], "damaged_shard"),
        (["left", "right"], [[b"x"], [b"y"]], "damaged_shard"),
    ],
)
def test_an_odd_parquet_does_not_end_the_scan_of_a_folder(
    names: list[str], arrays: list[Any], code: str | None, folder: Folder
) -> None:
    folder.put("in/odd.parquet", parquet_of(names, arrays))
    folder.put("in/well.parquet", parquet({"image": [b"y"], "id": ["a"]}))
    odd, well = scan(f"{folder.uri}/in")
    assert (odd.error and odd.error.code, odd.content_id) == (code, None)
    assert code is None or "odd.parquet" in str(odd.error)
    assert well.data == b"y"


@pytest.mark.parametrize(("names", "arrays"), [(["image"] * 2, [[b"x"]] * 2), (["image"], [TWICE])])
def test_an_input_with_a_column_twice_is_a_failed_row(
    names: list[str], arrays: list[Any], folder: Folder
) -> None:
    (odd,) = scan(folder.put("odd.parquet", parquet_of(names, arrays)))
    assert "odd.parquet: column image, or a field of it, is there twice" in str(odd.error)


def test_an_id_that_python_has_no_value_for_is_none(folder: Folder) -> None:
    ids = pa.array([2**62], pa.timestamp("us"))
    (sample,) = scan(folder.put("a.parquet", parquet({"image": [b"x"], "id": ids})))
    assert (sample.data, sample.content_id) == (b"x", None)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1 and more", b"\0" * 100])
def test_what_is_no_parquet_is_one_failed_sample(data: bytes, folder: Folder) -> None:
    (sample,) = scan(folder.put("a.parquet", data), folder.uri)[:1]
    assert isinstance(sample.error, DamagedShard)
    assert "a.parquet" in str(sample.error)


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("a.JPEG", True),
        ("s3://b/a.heic", True),
        ("README", False),
        ("jpg", False),
        ("a.jpg.txt", False),
        ("a.CRW", True),
        ("a.3fr", True),
    ],
)
def test_claims_to_be_image(name: str, claims: bool) -> None:
    assert claims_to_be_image(name) is claims


def test_a_small_job_is_divided_for_many_actors(folder: Folder) -> None:
    for number in range(200):
        folder.put(f"in/{number:03}.jpg", b"data")
    folder.put("in/a.tar", b"")
    units = list(list_units([f"{folder.path}/in"], images_per_unit=256))
    shares = list(divided(iter(units)))
    assert sorted(len(unit.objects) for unit in shares) == [0, *[8] * 25]
    names = [ref.uri for unit in shares for ref in unit.objects]
    assert names == [ref.uri for unit in units for ref in unit.objects]


def test_a_large_job_is_not_divided() -> None:
    units = [objects_unit([ObjectRef(f"file:///{n}")] * 256) for n in range(40)]
    assert list(divided(units)) == units
