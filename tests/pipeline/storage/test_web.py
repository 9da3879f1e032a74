"""Files by https from a real server: limits, redirects, private addresses, and what goes wrong."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from prompt_iml.engine.errors import (
    BadAnswer,
    Denied,
    FetchError,
    FetchTimeout,
    ImageError,
    NotFound,
    TooLarge,
    UsageError,
)
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.sources import list_units, read_unit
from prompt_iml.pipeline.storage import storage, web
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.storage.s3 import Access, use
from prompt_iml.pipeline.units import ObjectRef, Sample, Unit
from tests.helpers.archives import TarOf
from tests.helpers.web_server import WebServer, serving, write_certificate

MOST = 100_000


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server that is trusted."""
    certificate, key = write_certificate(tmp_path_factory.mktemp("server"))
    with serving(certificate, key) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        patch.setattr(web, "TOTAL_SECONDS", 1.0)
        patch.setattr(web, "SILENT_SECONDS", 0.5)
        web._session.cache_clear()
        running.files |= {"a.jpg": picture(), "big": bytes(MOST + 1), "empty": b""}
        yield running
        web._session.cache_clear()


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Private addresses are allowed, as the server has one; errors are retried at once."""
    quick = replace(storage.RETRIES, attempts=3, first_wait=0.001)
    monkeypatch.setattr(storage, "RETRIES", quick)
    use(Access(private_addresses=True))
    yield
    use(Access())


@pytest.fixture
def refused() -> None:
    """Private addresses are refused."""
    use(Access())


def read(uri: str) -> bytes:
    return storage.read_bytes(uri, most=MOST)


def fetched(*uris: str) -> list[Sample]:
    unit = Unit("objects", uris[0], -1, objects=tuple(map(ObjectRef, uris)))
    return list(read_unit(unit, max_object_bytes=MOST, threads=2))


@pytest.mark.parametrize("word", ["file", "whole", "gzip", "flaky", "to/to/file"])
def test_a_file_is_read(server: WebServer, word: str) -> None:
    server.requests.clear()
    assert read(f"{server.uri}/{word}/a.jpg?width=9&a=%2F") == server.files["a.jpg"]


def test_streams_ask_for_parts(server: WebServer) -> None:
    server.files["shard"] = os.urandom(20_000_000)
    with storage.open_stream(f"{server.uri}/file/shard") as stream:
        stream.seek(19_000_000)
        assert stream.read() == server.files["shard"][19_000_000:]
    assert server.requests["/file/shard"] <= 3


@pytest.mark.parametrize("word", ["file", "whole"])
@pytest.mark.parametrize("name", ["a.jpg", "empty"])
def test_streams_of_small_files(server: WebServer, word: str, name: str) -> None:
    with storage.open_stream(f"{server.uri}/{word}/{name}") as stream:
        assert stream.read() == server.files[name]


def test_a_stream_without_a_size_is_refused(server: WebServer) -> None:
    server.requests.clear()
    for word in ("endless", "gzip"):
        with pytest.raises(FetchError, match="does not say its size"):
            storage.open_stream(f"{server.uri}/{word}/a.jpg")
    assert server.requests.total() == 2


def test_a_large_stream_without_parts_is_refused(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MOST_WHOLE", 100)
    with pytest.raises(BadAnswer, match="does not send parts of files"):
        storage.open_stream(f"{server.uri}/whole/a.jpg")


def test_a_lookup_has_size_and_version(server: WebServer) -> None:
    size = len(server.files["a.jpg"])
    assert storage.look_up(f"{server.uri}/file/a.jpg") == ObjectRef(
        f"{server.uri}/file/a.jpg", size, "1"
    )


FAULTS: list[tuple[str, type[ImageError], str, int]] = [
    ("status/404", NotFound, "HTTP 404", 1),
    ("status/410", NotFound, "HTTP 410", 1),
    ("status/401", Denied, "HTTP 401", 1),
    ("status/403", Denied, "HTTP 403", 1),
    ("status/400", BadAnswer, "HTTP 400", 1),
    ("status/429", FetchError, "HTTP 429", 3),
    ("status/500", FetchError, "HTTP 500", 3),
    ("status/503", FetchError, "HTTP 503", 3),
    ("short/a.jpg", FetchError, "Not enough data", 3),
    ("silent/a.jpg", FetchTimeout, "in time", 3),
    ("slow/a.jpg", FetchTimeout, "in time", 3),
    ("file/big", TooLarge, "100001 bytes, more than the limit of 100000", 1),
    ("endless/a.jpg", TooLarge, "more than the limit of 100000 bytes", 1),
    ("gzip/big", TooLarge, "more than the limit", 1),
    ("round/a.jpg", BadAnswer, "more than 5 redirects", 6),
    ("to/a.jpg?http://localhost/a.jpg", BadAnswer, "redirect to http://", 1),
    ("to/a.jpg?ftp://localhost/a.jpg", BadAnswer, "redirect to ftp://", 1),
]


@pytest.mark.parametrize(("path", "kind", "message", "requests"), FAULTS)
def test_faults(
    server: WebServer, path: str, kind: type[ImageError], message: str, requests: int
) -> None:
    server.requests.clear()
    with pytest.raises(kind, match=message) as raised:
        read(f"{server.uri}/{path}")
    assert type(raised.value) is kind
    assert server.requests.total() == requests


def test_a_fault_is_a_row(server: WebServer) -> None:
    paths = ("file/a.jpg", "status/404", "status/403", "endless/a.jpg", "status/400")
    samples = fetched(*(f"{server.uri}/{path}" for path in paths))
    codes = [sample.error.code if sample.error else None for sample in samples]
    assert codes == [None, "not_found", "denied", "too_large", "bad_answer"]


@pytest.mark.parametrize("uri", ["http://localhost/a.jpg", "https://me:secret@localhost/a.jpg"])
def test_what_is_not_asked_for_is_a_row_too(uri: str) -> None:
    (sample,) = fetched(uri)
    assert sample.error
    assert sample.error.code == "unsupported"


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_private_addresses_are_refused(server: WebServer, host: str) -> None:
    server.requests.clear()
    with pytest.raises(Denied, match="--allow-private-addresses"):
        read(server.uri.replace("localhost", host) + "/file/a.jpg")
    assert not server.requests


@pytest.mark.usefixtures("refused")
def test_a_redirect_to_a_private_address_is_refused(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "is_public", "127.0.0.1".__eq__)
    uri = server.uri.replace("localhost", "127.0.0.1")
    assert read(f"{uri}/to/file/a.jpg")
    with pytest.raises(Denied, match=r"127\.0\.0\.2 is a private address"):
        read(f"{uri}/to/a.jpg?{uri.replace('127.0.0.1', '127.0.0.2')}/file/a.jpg")


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.9.9.9", "169.254.169.254",
        "172.16.0.1", "192.0.0.192", "192.168.1.1", "168.63.129.16", "224.0.0.251", "240.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1%lo", "fd00:ec2::254", "ff02::1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert web.is_public(address)


def test_an_unknown_certificate_is_refused_once(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(write_certificate(tmp_path)[0]))
    web._session.cache_clear()
    with pytest.raises(BadAnswer, match="set SSL_CERT_FILE"):
        read(f"{server.uri}/file/a.jpg")
    web._session.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "https://",
        "https:///a",
        "https://a:b@c/",
        "https://c:99999/",
        "https://[::1/a",
        "http://c/a",
    ],
)
def test_names_that_are_no_url(name: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        storage.canonical(name)


def test_a_server_is_no_output(server: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", f"{server.uri}/file/a.jpg", "--output", f"{server.uri}/out"]) == 2
    assert "https:// is read and not written" in capsys.readouterr().err
    for write in (storage.create_once, storage.write):
        with pytest.raises(UsageError, match="read and not written"):
            write(f"{server.uri}/out", b"")


def test_a_server_has_no_folders(server: WebServer) -> None:
    with pytest.raises(FetchError, match="give a list of URLs"):
        list(list_objects(f"{server.uri}/file"))


def test_every_kind_of_input(server: WebServer, tar_of: TarOf, tmp_path: Path) -> None:
    jpeg = server.files["a.jpg"]
    server.files |= {
        "s.tar": tar_of({"1.jpg": jpeg, "2.jpg": jpeg}),
        "l.txt": b"a.jpg\n/file/b.jpg\n",
    }
    local = tmp_path / "list.txt"
    local.write_text(f"{server.uri}/file/a.jpg?size=large\n{server.uri}/file/s.tar\n")
    for name, members in {
        f"{server.uri}/file/a.jpg": [None],
        f"{server.uri}/file/s.tar?token=a/b": ["1.jpg", "2.jpg"],
        f"{server.uri}/file/l.txt?token=a/b": [None, None],
        str(local): ["1.jpg", "2.jpg", None],
    }.items():
        units = list(list_units([name], images_per_unit=9))
        samples = [s for u in units for s in read_unit(u, max_object_bytes=MOST, threads=1)]
        assert [sample.member for sample in samples] == members
        assert [bool(s.error) for s in samples] == [s.uri.endswith("b.jpg") for s in samples]


def test_a_list_on_a_server_names_nothing_elsewhere(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "own.jpg").write_bytes(b"secret")
    names = [f"file://{tmp_path}/own.jpg", "s3://bucket/a.jpg", "https://elsewhere.test/a.jpg"]
    server.files["l.txt"] = "\n".join(["a.jpg", *names]).encode()
    (unit,) = list_units([f"{server.uri}/file/l.txt"], images_per_unit=9)
    assert [bool(ref.refused) for ref in unit.objects] == [False, True, True, True]


def test_a_verdict_on_a_url(server: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{server.uri}/file/a.jpg"
    assert main(["scan", url, "--allow-private-addresses"]) == 0
    assert capsys.readouterr().out.split()[-1] == url
    assert main(["scan", url]) == 2
    assert "--allow-private-addresses" in capsys.readouterr().err
    assert main(["scan", f"{server.uri}/status/404", "--allow-private-addresses"]) == 2
    assert "no such input" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_asked_once(
    server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.requests.clear()
    assert main(["scan", f"{server.uri}/status/503", "--allow-private-addresses"]) == 2
    assert "HTTP 503" in capsys.readouterr().err
    assert server.requests.total() == 1
