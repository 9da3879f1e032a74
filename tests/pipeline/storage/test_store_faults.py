"""Reads and writes stay exact while the store refuses, resets, stalls and truncates."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from prompt_iml.engine.errors import FetchError, NotFound
from prompt_iml.pipeline.sources.tar import read_tar
from prompt_iml.pipeline.storage import s3, storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.storage.retries import RetryPolicy, retry
from tests.helpers.archives import TarOf
from tests.helpers.ports import free_port, wait_for
from tests.helpers.stores import Bucket

RATE = 0.3


@pytest.fixture
def faulty_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Route every client of this process through the faulty proxy."""
    port = free_port()
    to = s3_endpoint.rpartition(":")[2]
    command = [sys.executable, "-m", "tests.chaos.store", "--port", str(port), "--to", to]
    proxy = subprocess.Popen([*command, "--rate", str(RATE)], stdout=subprocess.PIPE)
    wait_for(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(s3.CLIENT, "read_timeout", 0.5)
    quick = replace(storage.RETRIES, attempts=30, first_wait=0.01, longest_wait=0.1)
    monkeypatch.setattr(storage, "RETRIES", quick)
    _forget_clients()
    yield
    proxy.terminate()
    faults = json.loads(proxy.communicate()[0])
    _forget_clients()
    assert len(faults) == 7, f"not every fault occurred: {faults}"


def _forget_clients() -> None:
    s3.client.cache_clear()
    s3.filesystem.cache_clear()


def test_what_is_read_is_whole(s3: Bucket, tar_of: TarOf, faulty_store: None) -> None:
    noise = random.Random(0)
    objects = {f"{i:02}.bin": noise.randbytes(noise.randrange(1, 100_000)) for i in range(40)}
    shard = tar_of({f"{i}.png": noise.randbytes(300_000) for i in range(40)})
    for name, data in objects.items():
        s3.put(name, data)
    uri = s3.put("shard.tar", shard)
    listed = {ref.uri.rpartition("/")[2]: ref for ref in list_objects(s3.uri)}
    assert listed.keys() == {*objects, "shard.tar"}
    for name, data in objects.items():
        assert storage.read_bytes(listed[name].uri, listed[name].size_bytes) == data
    with storage.open_stream(uri) as stream:
        assert stream.read() == shard
    members = list(read_tar(uri, max_object_bytes=1 << 20))
    assert [m.error for m in members] == [None] * 40


def test_what_is_written_is_written_once(s3: Bucket, faulty_store: None) -> None:
    for number in range(40):
        uri, data = f"{s3.uri}/part-{number}", os.urandom(10_000)
        storage.create_once(uri, data)  # False when the answer to our own PUT was lost
        assert not storage.create_once(uri, b"another")
        assert (
            s3.client.get_object(Bucket=s3.name, Key=uri.rpartition("/")[2])["Body"].read() == data
        )


def test_a_missing_object_is_reported_at_once() -> None:
    calls = io.StringIO()

    def missing() -> None:
        calls.write(".")
        raise NotFound("gone")

    with pytest.raises(NotFound):
        retry(missing, RetryPolicy())
    assert calls.getvalue() == "."


def test_a_store_that_stays_down_is_reported_after_the_last_attempt() -> None:
    calls = io.StringIO()

    def down() -> None:
        calls.write(".")
        raise FetchError("503")

    with pytest.raises(FetchError, match="503"):
        retry(down, RetryPolicy(attempts=4, first_wait=0.001))
    assert calls.getvalue() == "...."
