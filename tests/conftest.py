"""Fixtures for every test: real photographs, a real S3 server, both stores as one."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import ray
import skimage.data
from PIL import Image

from tests.helpers.archives import TarOf, pack_tar
from tests.helpers.ports import free_port, wait_for
from tests.helpers.stores import Bucket, Folder, Store, check_credentials_after

_NUMBERS = itertools.count()

# Files of a minute or more: begun first, so that no tester waits for another's last one.
LONG = (
    "test_cycle", "test_train_run", "test_chaos", "test_submit", "test_export", "test_poison",
)  # fmt: skip

# Files whose tests start Ray or servers, train, export, build or compile.
SLOW = {
    *LONG, "test_api", "test_autoscaler", "test_bad_images", "test_blob_cache", "test_build",
    "test_cuda_emulated", "test_cuda_kernel_text", "test_demo", "test_estimate",
    "test_evaluation_commands", "test_fuzz", "test_gpu_bench", "test_hostile",
    "test_hostile_folder", "test_metrics", "test_package", "test_preflight", "test_retrain",
    "test_retry", "test_review_in_browser", "test_review_process", "test_runtimes", "test_scan",
    "test_serve", "test_session", "test_store_faults", "test_stored_output", "test_train",
    "test_validation", "test_web",
}  # fmt: skip
SERVED = {"cluster", "s3_endpoint"}  # fixtures that start Ray or a server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of long files first, and mark those for `make test-fast`."""
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        fixtures, parameters = item.fixturenames, getattr(item, "callspec", None)  # type: ignore
        on_s3 = parameters is not None and "s3" in parameters.params.values()
        if item.path.stem not in SLOW and not on_s3 and not SERVED & set(fixtures):
            item.add_marker(pytest.mark.fast)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their size: compressed ones hold the clock, and testers compare names."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a moto server in a process of its own; the environment names it to S3 clients."""
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


@pytest.fixture(scope="session")
def s3_buckets(s3_endpoint: str) -> Callable[[], Bucket]:
    """Return a function that makes an empty bucket."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)

    def make() -> Bucket:
        name = f"test-{os.getpid()}-{next(_NUMBERS)}"
        client.create_bucket(Bucket=name)
        return Bucket(name, client)

    return make


@pytest.fixture(scope="session")
def cluster(s3_endpoint: str) -> Iterator[None]:
    """Ray with two CPUs on this machine; its actors use the S3 server."""
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
    """An empty folder, then an empty bucket: the test runs once in each."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def strangers(s3: Bucket, s3_endpoint: str) -> Iterator[Bucket]:
    """A bucket with `one.jpg` on a server that now checks credentials, and refuses ours."""
    s3.put("one.jpg", b"1234")
    check_credentials_after(s3_endpoint, "0")
    yield s3
    check_credentials_after(s3_endpoint, "inf")


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
    """Return the function `pack_tar`."""
    return pack_tar
