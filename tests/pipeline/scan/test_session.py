"""A scan that is ended or prevented from outside says so in one line, and can be resumed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline import checks
from prompt_iml.pipeline.scan.session import _temporary_folder
from tests.bench.null_model import write_null_model
from tests.helpers.processes import scan_command

LIMITED = """
import resource, sys
from prompt_iml.pipeline.cli import main
kind = getattr(resource, sys.argv[1])
resource.setrlimit(kind, (int(sys.argv[2]),) * 2)
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture
def photos(tmp_path: Path, photographs: dict[str, bytes]) -> Path:
    """A folder of 100 photographs."""
    (tmp_path / "in").mkdir()
    for number in range(100):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(photographs["rocket.jpg"])
    return tmp_path / "in"


def test_sigterm_ends_a_scan_as_sigint_does(photos: Path, tmp_path: Path) -> None:
    command = scan_command(photos, tmp_path / "out")
    command += ["--model", str(write_null_model(tmp_path / "model")), "--images-per-unit", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as scan:
        while scan.poll() is None and not list(tmp_path.glob("out/results/*.parquet")):
            time.sleep(0.02)
        scan.send_signal(signal.SIGTERM)
        _, log = scan.communicate()
    assert scan.returncode == 130, log
    assert log.decode().splitlines()[-1] == "interrupted: the same command resumes"
    again = subprocess.run(command, capture_output=True, check=True)
    summary = json.loads(again.stdout.splitlines()[-1])
    assert summary["ok"] == 100
    assert 0 < summary["scanned_now"] < 100


@pytest.mark.parametrize(("kind", "limit"), [("RLIMIT_NOFILE", 256), ("RLIMIT_AS", 8 << 30)])
def test_a_limit_below_what_ray_needs_is_named(
    kind: str, limit: int, tmp_path: Path, photographs: dict[str, bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(photographs["rocket.jpg"])
    command = ["scan", str(tmp_path / "a.jpg"), "--output", str(tmp_path / "out")]
    driver = [sys.executable, "-c", LIMITED, kind, str(limit)]
    refused = subprocess.run([*driver, *command], capture_output=True, text=True)
    assert refused.returncode == 2, refused.stderr
    assert "raise `ulimit -" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("folder", "message"),
    [("/dev/null", "Not a directory.*: set TMPDIR or"), ("/tmp/" + 15 * "a", "more than 19 char")],
)
def test_a_folder_that_ray_cannot_use_is_named(
    folder: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(UsageError, match=message):
        _temporary_folder(for_ray=True)


def test_a_cluster_that_accepts_and_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"no Ray cluster at {address} .timed out"):
            checks.check_cluster(address)


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_answers_is_accepted() -> None:
    import ray

    checks.check_cluster(ray.get_runtime_context().gcs_address)
