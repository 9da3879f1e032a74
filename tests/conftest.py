"""Fixtures for every test: real photographs, a real S3 server, both stores as one."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
import ray
import skimage.data
from PIL import Image

TarOf = Callable[..., bytes]
_NUMBERS = itertools.count()

# A minute and more each: begun first, so that no tester waits for another's last one.
LONG = (
    "test_cycle", "test_train_run", "test_chaos", "test_submit", "test_export", "test_poison",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


class Store(Protocol):
    """A folder of files, or a bucket of objects."""

    @property
    def uri(self) -> str: ...

    def put(self, name: str, data: bytes) -> str:
        """Write a file; returns its URI."""

    def remove(self, name: str) -> None: ...


@dataclass(frozen=True)
class Folder:
    path: Path

    @property
    def uri(self) -> str:
        return f"file://{self.path}"

    def put(self, name: str, data: bytes) -> str:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"file://{path}"

    def remove(self, name: str) -> None:
        (self.path / name).unlink()


@dataclass(frozen=True)
class Bucket:
    name: str
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, name: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.name, Key=name, Body=data)
        return f"s3://{self.name}/{name}"

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=name)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server in a process of its own, which the environment names to every S3 client."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    script = str(Path(__file__).parent / "helpers" / "s3_server.py")
    command = [sys.executable, script, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        try:
            wait_for(port)
            yield endpoint
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_for(port: int, seconds: int = 30) -> None:
    """Until a server listens on the port of this machine."""
    for _ in range(10 * seconds):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="session")
def s3_buckets(s3_endpoint: str) -> Callable[[], Bucket]:
    """A function that makes an empty bucket."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)

    def make() -> Bucket:
        name = f"test-{os.getpid()}-{next(_NUMBERS)}"
        client.create_bucket(Bucket=name)
        return Bucket(name, client)

    return make


@pytest.fixture(scope="session")
def cluster(s3_endpoint: str) -> Iterator[None]:
    """Two CPUs of Ray on this machine; its actors know the S3 server."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def s3(s3_buckets: Callable[[], Bucket]) -> Bucket:
    """An empty bucket of this test's own, on a real S3 server."""
    return s3_buckets()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder of this test's own."""
    return Folder(tmp_path)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """The test runs twice: in a local folder and in a bucket."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def strangers(s3: Bucket, s3_endpoint: str) -> Iterator[Bucket]:
    """A bucket with `one.jpg` that knows nobody: the server checks credentials now."""
    s3.put("one.jpg", b"1234")
    _check_credentials_after(s3_endpoint, "0")
    yield s3
    _check_credentials_after(s3_endpoint, "inf")


def _check_credentials_after(endpoint: str, requests: str) -> None:
    headers = {"Content-Type": "text/plain"}
    url = f"{endpoint}/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(url, requests.encode(), headers)).close()


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """Four real photographs by file name, freshly encoded, each of another format or size."""
    return {
        "astronaut.jpg": _encoded("astronaut.png", "JPEG", quality=90),
        "chelsea.png": _encoded("chelsea.png", "PNG"),
        "coffee.webp": _encoded("coffee.png", "WEBP", quality=80),
        "rocket.jpg": _encoded("rocket.jpg", "JPEG", quality=75),
    }


def _encoded(name: str, encoding: str, **options: int) -> bytes:
    sink = io.BytesIO()
    with Image.open(Path(skimage.data.__file__).parent / name) as photograph:
        photograph.convert("RGB").save(sink, encoding, **options)
    return sink.getvalue()


@pytest.fixture(scope="session")
def tar_of() -> TarOf:
    """`pack_tar`."""
    return pack_tar


def pack_tar(members: Mapping[str, bytes], *, gzipped: bool = False, **options: Any) -> bytes:
    """Members by name, and options of tarfile, to the bytes of a tar."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return gzip.compress(sink.getvalue()) if gzipped else sink.getvalue()
