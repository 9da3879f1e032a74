"""Stores that fsspec reads: by a file system of fsspec over a folder, and without a package."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from prompt_iml.engine.errors import MissingDependency, NotFound, OutputNotWritable, UsageError
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.export.files import written
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.sources.names import is_hidden
from prompt_iml.pipeline.storage import remote, storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit

FILES = {
    "bucket/photos/b.jpg": b"bb",
    "bucket/photos/a/2.jpg": b"22",
    "bucket/photos/a/10.jpg": b"10",
    "bucket/photos/.hidden/x.jpg": b"x",
    "bucket/photos-2/c d%20.jpg": b"c" * 9_000_000,
    "bucket/list.txt": b"photos/b.jpg\ngs://bucket/photos/none.jpg\ngs://other/b.jpg\nmemory://b.jpg\n",
}  # fmt: skip


@pytest.fixture
def gs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirFileSystem:
    """Buckets that are folders, by a file system of fsspec whose names have no root.

    Unlike fsspec's own, which looks first, it creates a file once however many writers there are.
    """

    def pipe_file(path: str, data: bytes, mode: str = "overwrite") -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / path).open("xb" if mode == "create" else "wb") as file:
            file.write(data)

    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    local = fsspec.filesystem("file", auto_mkdir=True, skip_instance_cache=True)
    folder = DirFileSystem(str(tmp_path), local, skip_instance_cache=True)
    monkeypatch.setattr(folder, "pipe_file", pipe_file)
    monkeypatch.setattr(remote, "filesystem", lambda scheme, pid: folder)
    return folder


def names(folder: str, starts: str = "") -> list[str]:
    return [ref.uri.removeprefix("gs://bucket/") for ref in list_objects(folder, is_hidden, starts)]


def samples(name: str) -> list[Sample]:
    units = list_units([name], images_per_unit=9)
    return [s for u in units for s in read_unit(u, max_object_bytes=10**7, threads=1)]


@pytest.mark.usefixtures("gs")
def test_listing_is_in_order_and_skips_what_is_hidden() -> None:
    assert names("gs://bucket/photos") == ["photos/a/10.jpg", "photos/a/2.jpg", "photos/b.jpg"]
    assert names("gs://bucket", "photos-") == ["photos-2/c d%20.jpg"]


@pytest.mark.usefixtures("gs")
def test_files_are_looked_up_and_read() -> None:
    found = storage.look_up("gs://bucket/photos/b.jpg")
    assert found
    assert found.size_bytes == 2
    assert found.etag
    assert storage.look_up("gs://bucket/photos") is None
    assert storage.read_bytes("gs://bucket/photos/b.jpg", 2) == b"bb"
    with storage.open_stream("gs://bucket/photos-2/c d%20.jpg") as stream:
        stream.seek(8_999_999)
        assert stream.read() == b"c"
    with pytest.raises(NotFound):
        storage.read_bytes("gs://bucket/none")


@pytest.mark.usefixtures("gs")
def test_every_kind_of_input() -> None:
    assert [s.data for s in samples("gs://bucket/photos")] == [b"10", b"22", b"bb"]
    assert [s.data for s in samples("gs://bucket/*/b.jpg")] == [b"bb"]
    codes = [s.error.code if s.error else s.data for s in samples("gs://bucket/list.txt")]
    assert codes == [b"bb", "not_found", "denied", "unsupported"]


@pytest.mark.usefixtures("gs")
def test_a_file_is_created_once() -> None:
    uri = "gs://bucket/out/part"
    assert storage.create_once(uri, b"first")
    assert not storage.create_once(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    storage.write(uri, b"third")
    assert storage.read_bytes(uri) == b"third"
    assert storage.modified(uri).tzinfo
    for _ in range(2):
        storage.remove(uri)
    assert not storage.exists(uri)
    with written(uri) as file:
        file.write(b"fourth")
    assert storage.read_bytes(uri) == b"fourth"


@pytest.mark.usefixtures("gs")
def test_a_store_where_one_of_two_writers_wins_is_an_output() -> None:
    storage.check_writable("gs://bucket/out")
    assert names("gs://bucket/out") == []


def test_a_store_that_replaces_files_is_no_output(gs: DirFileSystem) -> None:
    replace = gs.pipe_file
    gs.pipe_file = lambda path, data, mode: replace(path, data)
    with pytest.raises(OutputNotWritable, match="replaces objects in spite of the condition"):
        storage.check_writable("gs://bucket/out")


def test_a_store_without_conditions_is_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    uri = "hf://datasets/a/b/out"
    for write in (storage.create_once, storage.write):
        with pytest.raises(OutputNotWritable, match="hf:// is read and not written"):
            write(uri, b"")
    assert main(["scan", str(Path(__file__)), "--output", uri]) == 2
    assert "--output: hf:// is read and not written" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", remote.PACKAGES)
def test_a_missing_package_is_named(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = remote.PACKAGES[scheme]
    if find_spec(package):
        assert storage.filesystem(scheme)
        return
    line = f"{scheme}:// needs the package {package}: pip install {package}"
    with pytest.raises(MissingDependency, match=line):
        storage.look_up(f"{scheme}://a/b/c")
    assert main(["scan", f"{scheme}://a/b/c"]) == 2
    assert line in capsys.readouterr().err
    ref = ObjectRef(f"{scheme}://a/b/c")
    unit = Unit("objects", ref.uri, -1, objects=(ref,))
    (sample,) = read_unit(unit, max_object_bytes=9, threads=1)
    assert sample.error
    assert sample.error.code == "unsupported"


@pytest.mark.parametrize("uri", ["memory://a", "local:///etc/passwd", "github://a:b@/c", "data:,a"])
def test_no_other_scheme_of_fsspec_is_read(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once: a list may name a thousand of them."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it was tried again"))
    fsspec.filesystem("memory").pipe_file("/a", b"1")
    unit = Unit("objects", uri, -1, objects=(ObjectRef(uri, 1),))
    (sample,) = read_unit(unit, max_object_bytes=9, threads=1)
    assert sample.data is None
    if "://" in uri:
        with pytest.raises(UsageError, match="cannot read"):
            storage.canonical(uri)
