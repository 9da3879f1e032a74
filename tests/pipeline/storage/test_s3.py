"""S3 as it is met: public and requester-pays buckets, and errors that name what is lacking."""

from __future__ import annotations

import datetime
import io
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from prompt_iml.cluster.retraining.retrain import train_settings
from prompt_iml.cluster.settings import RetrainSettings
from prompt_iml.engine.errors import BadCredentials, Denied, NotFound, OutputNotWritable
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.scan.scan import row_spec
from prompt_iml.pipeline.scan.scanner import RowSpec
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources.uri_list import OUTSIDE, read_list
from prompt_iml.pipeline.storage import s3 as clients
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.storage.s3 import SIGNED, Access, use
from tests.helpers.gate import Answer, Refuse, gate
from tests.helpers.listener import listener
from tests.helpers.stores import Bucket

Headers = Mapping[str, str]
Behind = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def behind(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    """Return a function that puts a gate between this process and the S3 server."""

    @contextmanager
    def put(refuse: Refuse, certificate: Path | None = None) -> Iterator[str]:
        with gate(s3_endpoint, refuse, certificate) as url, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            forget_clients()
            yield url

    yield put
    use(SIGNED)
    forget_clients()


def forget_clients() -> None:
    clients.client.cache_clear()
    clients.filesystem.cache_clear()


def read_all(bucket: Bucket) -> None:
    """Read in each of the ways of `storage`."""
    (ref,) = list_objects(bucket.uri)
    assert storage.look_up(ref.uri) == ref
    assert storage.read_bytes(ref.uri) == b"1234"
    with storage.open_stream(ref.uri) as stream:
        assert stream.read() == b"1234"


def test_a_public_bucket_is_read_without_credentials(
    s3_buckets: Callable[[], Bucket], behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, own = s3_buckets(), s3_buckets()
    public.client.put_object(Bucket=public.name, Key="one.jpg", Body=b"1234", ACL="public-read")

    def refuse(method: str, path: str, headers: Headers) -> Answer | None:
        is_signed = any(name.lower() == "authorization" for name in headers)
        return None if is_signed is path.startswith(f"/{own.name}") else Answer(403, "AccessDenied")

    with behind(refuse):
        use(Access("anonymous", (own.name,)))
        storage.check_writable(f"{own.uri}/out")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        forget_clients()
        read_all(public)


def test_no_credentials_are_sought_where_none_are_needed(
    s3: Bucket, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual search ends at the metadata service of a cloud."""
    s3.client.put_object(Bucket=s3.name, Key="one.jpg", Body=b"1234", ACL="public-read")
    with behind(signs), listener() as (service, asked):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{service}/")
        use(Access("anonymous"))
        read_all(s3)
    assert asked == []


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId")])
def test_credentials_that_end_are_known_from_every_request(
    status: int, code: str, s3: Bucket, behind: Behind
) -> None:
    """The answer to a HEAD has a status and no code."""
    s3.put("one.jpg", b"1234")
    with behind(lambda *_: Answer(status, code)):
        with pytest.raises(BadCredentials, match=code):
            storage.look_up(f"{s3.uri}/one.jpg")
        with pytest.raises(BadCredentials, match=code), storage.open_stream(f"{s3.uri}/one.jpg"):
            pass


def test_a_key_that_looks_like_a_version_is_a_key(s3: Bucket) -> None:
    for key in ("q.jpg", "q.jpg?versionId=3"):
        s3.put(key, key.encode())
        assert storage.read_bytes(f"{s3.uri}/{key}") == key.encode()
        with storage.open_stream(f"{s3.uri}/{key}") as stream:
            assert stream.read() == key.encode()


@pytest.mark.parametrize("name", ["s3://No_Bucket!/a.jpg", "s3://bucket/\udcff.jpg"])
def test_what_no_store_can_hold_is_not_tried_again(
    name: str, s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it is tried again"))
    for read in (storage.look_up, storage.read_bytes):
        with pytest.raises(NotFound):
            read(name)


def test_labels_in_a_public_bucket_are_read_without_credentials(
    s3: Bucket, behind: Behind, tmp_path: Path
) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "PNG")
    table = b"image,label\nphoto.png,0\n"
    for key, body in {"photo.png": photo.getvalue(), "labels.csv": table}.items():
        s3.client.put_object(Bucket=s3.name, Key=key, Body=body, ACL="public-read")
    into = str(tmp_path / "labels.parquet")
    with behind(signs):
        assert main(["import", f"{s3.uri}/labels.csv", "--output", into]) == 2
        flags = ["--s3-access", "anonymous", "--output", into]
        assert main(["import", f"{s3.uri}/labels.csv", *flags]) == 0
    assert pq.read_table(into)["uri"].to_pylist() == [f"{s3.uri}/photo.png"]


def signs(method: str, path: str, headers: Headers) -> Answer | None:
    signed = any(name.lower() == "authorization" for name in headers)
    return Answer(403, "AccessDenied") if signed else None


def pays(method: str, path: str, headers: Headers) -> Answer | None:
    payer = {name.lower(): value for name, value in headers.items()}.get("x-amz-request-payer")
    return None if payer == "requester" else Answer(403, "AccessDenied")


def test_who_pays_may_read_and_write(s3: Bucket, behind: Behind) -> None:
    s3.put("one.jpg", b"1234")
    with behind(pays):
        use(Access("requester-pays"))
        read_all(s3)
        storage.check_writable(f"{s3.uri}/out")


def test_who_does_not_pay_is_pointed_to_the_setting(s3: Bucket, behind: Behind) -> None:
    with behind(pays), pytest.raises(Denied, match=r"list it .*--s3-access"):
        list(list_objects(s3.uri))


def test_the_access_travels_to_every_process() -> None:
    flags: Any = {"s3_access": "anonymous", "allow_private_addresses": True}
    settings = ScanSettings(inputs=["s3://public/a"], output="s3://mine/out", **flags)
    spec = row_spec(settings, load_model(settings.model))
    assert spec.access == Access("anonymous", ("mine",), private_addresses=True)
    assert RowSpec.from_json(spec.to_json()) == spec
    folders = {"output": "s3://mine/runs", "registry": "s3://ours/prompts"}
    cycle = RetrainSettings(
        **folders, photos="-", labels="s3://public/l", eval_sets=["-"], s3_access="anonymous"
    )
    assert cycle.access == Access("anonymous", ("mine", "ours"))
    model = load_model(cycle.model)
    training = train_settings(cycle, model, None, [])
    assert training.access == Access("anonymous", ("mine",))


def no_list(method: str, path: str, headers: Headers) -> Answer | None:
    return Answer(403, "AccessDenied") if "list-type" in path else None


def other_region(method: str, path: str, headers: Headers) -> Answer:
    return Answer(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (no_list, "AccessDenied: no permission to list it (s3:ListBucket)"),
        (other_region, "AWS_DEFAULT_REGION=eu-west-1"),
        (lambda *_: Answer(404, "NoSuchBucket"), "the bucket does not exist"),
        (lambda *_: Answer(403, "InvalidAccessKeyId"), "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_a_scan_lacks_is_named(
    refuse: Refuse, message: str, s3: Bucket, behind: Behind, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    s3.put("one.jpg", b"1234")
    with behind(refuse):
        assert message in error_of(["scan", s3.uri, "--output", str(tmp_path)], capsys)


def test_a_certificate_that_nobody_signed_is_named(
    s3: Bucket, behind: Behind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with behind(lambda *_: None, self_signed(tmp_path / "server.pem")):
        line = error_of(["report", f"{s3.uri}/out"], capsys)
    assert "self-signed certificate" in line
    assert "AWS_CA_BUNDLE" in line


@pytest.mark.parametrize("is_mute", [False, True])
def test_a_store_that_does_not_answer_is_named(
    is_mute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(clients._FIRST_CONTACT, "read_timeout", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if is_mute:
            server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        assert url in error_of(["scan", str(tmp_path), "--output", "s3://bucket/out"], capsys)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line of a command that refuses within seconds."""
    started = time.monotonic()
    assert main(arguments) == 2
    assert time.monotonic() - started < 15
    (line,) = capsys.readouterr().err.splitlines()
    return line


def self_signed(path: Path) -> Path:
    """Write a certificate of 127.0.0.1 and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(certificate.public_bytes(pem) + private)
    return path


def test_a_store_that_looks_before_it_writes_is_refused(s3: Bucket, behind: Behind) -> None:
    """It refuses a second PUT, and lets two at once both succeed."""

    def looks(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        if method == "PUT" and headers.pop("If-None-Match", None):
            key = path.partition("/")[2].partition("/")[2]
            if s3.client.list_objects_v2(Bucket=s3.name, Prefix=key)["KeyCount"]:
                return Answer(412, "PreconditionFailed")
            time.sleep(0.3)
        return None

    with behind(looks):
        uri = f"{s3.uri}/part"
        assert (storage.create_once(uri, b"1"), storage.create_once(uri, b"2")) == (True, False)
        with pytest.raises(OutputNotWritable, match="in spite of the condition"):
            storage.check_writable(f"{s3.uri}/out")


def test_a_probe_leaves_nothing_behind(s3: Bucket) -> None:
    storage.check_writable(f"{s3.uri}/out")
    assert list(list_objects(s3.uri)) == []


def test_a_list_names_other_buckets_only_by_a_setting(s3: Bucket) -> None:
    uri = s3.put("list.txt", f"{s3.uri}/a.jpg\ns3://another/b.jpg\nc.jpg\n".encode())
    assert [ref.refused for ref in read_list(uri)] == ["", OUTSIDE, ""]
    assert [ref.refused for ref in read_list(uri, trust_lists=True)] == ["", "", ""]
