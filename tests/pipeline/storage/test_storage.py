"""Storage on a disk and on S3: one winner, whole files, errors that name a fix."""

from __future__ import annotations

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prompt_iml.engine.errors import (
    CredentialsFailed,
    Denied,
    FetchError,
    NotFound,
    OutputNotWritable,
    UsageError,
)
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects

if TYPE_CHECKING:
    from tests.helpers.stores import Bucket, Store


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("/a/b c.jpg", "file:///a/b c.jpg"),
        ("/a/../b/", "file:///b"),
        ("file:///a/%20", "file:///a/%20"),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/a//b/", "s3://bucket/a//b"),
        ("gcs://bucket/a/", "gs://bucket/a"),
        ("abfs://container/a", "az://container/a"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
        ("HTTPS://server:8443/a/?b=/", "https://server:8443/a/?b=/"),
    ],
)
def test_canonical(name: str, uri: str) -> None:
    assert storage.canonical(name) == uri


def test_canonical_of_a_relative_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.canonical("a/b") == f"file://{tmp_path}/a/b"


@pytest.mark.parametrize(
    "name", ["", "memory://b/k", "http://h/k", "s3:///k", "gs:///k", "file://host/k"]
)
def test_canonical_names_what_is_allowed(name: str) -> None:
    with pytest.raises(UsageError, match="use a path, file:///abs/path or s3://bucket/key"):
        storage.canonical(name)


def test_written_bytes_are_read_back(store: Store) -> None:
    uri = f"{store.uri}/folder/ümläut \x01 name"
    storage.write(uri, b"old")
    storage.write(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert storage.exists(uri)
    assert storage.exists(f"{store.uri}/folder")
    assert not storage.exists(f"{store.uri}/fold")


def test_look_up(store: Store) -> None:
    uri = store.put("folder/one", b"1234")
    found = storage.look_up(uri)
    assert found
    assert (found.uri, found.size_bytes) == (uri, 4)
    assert storage.look_up(f"{store.uri}/folder") is None


def test_look_up_sees_a_changed_file(store: Store) -> None:
    before = storage.look_up(store.put("one", b"1234"))
    after = storage.look_up(store.put("one", b"4321"))
    assert before
    assert after
    assert before.etag != after.etag


def test_nothing_there_is_not_found(store: Store) -> None:
    for read in (storage.read_bytes, storage.look_up, storage.open_stream):
        with pytest.raises(NotFound, match="none"):
            read(f"{store.uri}/none")


def test_no_bucket_is_not_found(s3: Bucket) -> None:
    with pytest.raises(NotFound, match="bucket does not exist"):
        storage.read_bytes("s3://no-such-bucket/key")


def test_stream_seeks(store: Store) -> None:
    uri = store.put("one", bytes(range(256)) * 40_000)
    with storage.open_stream(uri) as stream:
        stream.seek(10_000_000)
        assert stream.read(3) == bytes([128, 129, 130])
        assert stream.tell() == 10_000_003
        stream.seek(-1, os.SEEK_END)
        assert stream.read() == b"\xff"


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FetchError, match="not a regular file"):
        storage.look_up(f"file://{tmp_path}/pipe")


def test_a_name_that_no_system_has_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="null"):
        storage.read_bytes(f"file://{tmp_path}/a\0b")


def test_create_once_does_not_replace(store: Store) -> None:
    uri = f"{store.uri}/results/part"
    assert storage.create_once(uri, b"first")
    assert not storage.create_once(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_create_once_has_one_winner_among_threads(store: Store) -> None:
    payloads = [bytes([n]) * 200_000 for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        for name in range(4):
            uri = f"{store.uri}/{name}"
            won = list(pool.map(lambda data, uri=uri: storage.create_once(uri, data), payloads))
            assert sum(won) == 1
            assert storage.read_bytes(uri) == payloads[won.index(True)]


def test_create_once_has_one_winner_among_processes(store: Store) -> None:
    names = [f"{store.uri}/{n}" for n in range(20)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        won = list(pool.map(storage.create_once, sorted(names * 2), [b"a" * 50_000] * 40))
    assert [first + second for first, second in zip(won[::2], won[1::2], strict=True)] == [1] * 20


def test_create_once_of_a_big_object(store: Store) -> None:
    payloads = [bytes([n]) * (60 << 20) for n in range(2)]
    uri = f"{store.uri}/big"
    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(lambda data: storage.create_once(uri, data), payloads))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == payloads[won.index(True)]


def test_create_once_leaves_nothing_beside(tmp_path: Path) -> None:
    for _ in range(2):
        storage.create_once(f"file://{tmp_path}/folder/part", b"data")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["part"]


def test_a_disk_that_is_full_keeps_nothing_of_a_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputNotWritable, match="File too large; choose another --output"):
            storage.create_once(f"file://{tmp_path}/part", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_file_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    aside = storage._write_aside(path, b"half")
    assert storage.half_written_of(f"file://{aside}") == f"file://{path}"
    for uri in (f"file://{path}", f"s3://bucket/{aside.name}", f"file://{tmp_path}/.part"):
        assert storage.half_written_of(uri) is None


def test_a_folder_is_writable_twice(store: Store) -> None:
    for _ in range(2):
        storage.check_writable(f"{store.uri}/out")


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputNotWritable, match="choose another --output"):
        storage.check_writable(f"file://{tmp_path}/out")


def test_no_bucket_is_no_output(s3: Bucket) -> None:
    with pytest.raises(OutputNotWritable, match="NoSuchBucket"):
        storage.check_writable("s3://no-such-bucket/out")


def test_strangers_are_denied(strangers: Bucket) -> None:
    for read in (storage.read_bytes, storage.look_up, storage.open_stream):
        with pytest.raises(Denied):
            read(f"{strangers.uri}/one.jpg")
    with pytest.raises(Denied):
        list(list_objects(strangers.uri))


def test_strangers_cannot_write(strangers: Bucket) -> None:
    with pytest.raises(CredentialsFailed, match="set AWS_ACCESS_KEY_ID"):
        storage.check_writable(f"{strangers.uri}/out")


def test_display_name_shows_bytes_that_are_not_text() -> None:
    assert storage.display_name("a\udcffé") == "a\\xffé"


@pytest.mark.parametrize("command", ["verify", "compact"])
def test_a_store_that_refuses_all_access_is_one_line(
    command: str, strangers: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, strangers.uri]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "AWS_ACCESS_KEY_ID" in line
