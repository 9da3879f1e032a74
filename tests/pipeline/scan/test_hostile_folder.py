"""Scans of a folder with code among the photographs, which must not run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.scan.isolated import isolated_rows
from prompt_iml.pipeline.scan.scan import row_spec
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources import list_units
from tests.helpers.listener import listener
from tests.helpers.processes import listening, processes_below

pytestmark = pytest.mark.timeout(600)
COMMAND = Path(sys.executable).parent / "prompt-iml"
MODULES = (
    "pycocotools.py", "engine.py", "numpy.py", "sitecustomize.py", "usercustomize.py",
    "pipeline/__init__.py", "cluster/__init__.py", "prompt_iml/__init__.py",
)  # fmt: skip
OURS = re.compile(
    r"run \S+: \d units on up to 1 actors|.*images.*|note: .*|(next:| {5}) prompt-iml .*"
)
SESSION = """
import json, os, sys, ray
from prompt_iml.pipeline.scan.session import ray_session
before = dict(os.environ)
with ray_session(sys.argv[1], 1):
    path, folder = ray.get(ray.remote(lambda: (sys.path, os.getcwd())).remote())
print(json.dumps([path, folder, os.environ == before]))
"""


def plant_code(folder: Path) -> Path:
    """Write modules that create a file when imported; return the folder of these files."""
    (marks := folder / "marks").mkdir()
    for number, name in enumerate(MODULES):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(marks / str(number))!r}, 'w').write({name!r})")
    return marks


def run_modules(marks: Path) -> list[str]:
    return [mark.read_text() for mark in marks.iterdir()]


@dataclass(frozen=True)
class Scanned:
    """Result of a scan that was started in a hostile folder.

    Attributes:
        imported: planted modules that were imported.
        addresses: addresses on which its processes listened while it ran.
        tokens: values of RAY_AUTH_TOKEN in the environment of its processes.
        commands: command lines of its processes.
        home: its HOME.
        writable: folders of Ray that other users can reach, while it ran.
        proxied: first bytes of what came to a proxy of the environment.
        niceness: that of its processes, 0 unless somebody changed it.
    """

    code: int
    stdout: str
    stderr: str
    rows: list[dict[str, object]]
    imported: list[str]
    addresses: set[str]
    tokens: set[str]
    commands: str
    home: Path
    writable: set[str]
    proxied: list[bytes]
    niceness: set[int]


@pytest.fixture(scope="module")
def scanned(photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    folder, home = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("home")
    (folder / "rocket.jpg").write_bytes(photographs["rocket.jpg"])
    marks = plant_code(folder)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
    command = [sys.executable, str(COMMAND), "scan", ".", "--output", "out", "--max-actors", "1"]
    pipe = subprocess.PIPE
    addresses, tokens, commands, writable = set[str](), set[str](), set[str](), set[str]()
    niceness = set[int]()
    with listener() as (proxy, proxied):
        proxies = {f"{of}_proxy": proxy for of in ("http", "https", "grpc")}
        env = kept | {"HOME": str(home)} | proxies
        scan = subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)
        while scan.poll() is None:
            for pid in [scan.pid, *processes_below(scan.pid, "")]:
                addresses |= listening(pid)
                commands.add(of_process(pid, "cmdline"))
                if stat := of_process(pid, "stat").rpartition(") ")[2].split():
                    niceness.add(int(stat[16]))
                environment = of_process(pid, "environ")
                tokens |= set(re.findall(r"RAY_AUTH_TOKEN=(\w+)", environment))
                writable |= open_to_others(re.findall(r"RAY_TMPDIR=([^\0]+)", environment))
            time.sleep(0.5)
    stdout, stderr = scan.communicate()
    rows = pq.read_table(folder / "out" / "results").to_pylist() if scan.returncode == 0 else []
    observed = (addresses, tokens, "\n".join(commands), home, writable, proxied, niceness)
    return Scanned(scan.returncode, stdout, stderr, rows, run_modules(marks), *observed)


def open_to_others(folders: list[str]) -> set[str]:
    """Return the folders that exist and that other users may enter."""
    return {each for each in folders if Path(each).exists() and Path(each).stat().st_mode & 0o77}


def of_process(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""  # it has ended


def test_no_code_of_a_scanned_folder_is_run(scanned: Scanned) -> None:
    assert scanned.code == 0, scanned.stderr
    assert scanned.imported == []
    ok = [str(row["uri"]) for row in scanned.rows if row["status"] == "ok"]
    assert [uri.rpartition("/")[2] for uri in ok] == ["rocket.jpg"]
    assert {row["error_code"] for row in scanned.rows} == {None, "not_an_image"}


def test_a_scan_listens_on_loopback_alone(scanned: Scanned) -> None:
    assert scanned.addresses == {"127.0.0.1"}


def test_a_scan_has_a_token_of_its_own(scanned: Scanned) -> None:
    (token,) = scanned.tokens
    assert len(token) == 64
    assert token not in scanned.commands  # which every user can read
    assert not (scanned.home / ".ray").exists()


def test_a_scan_tells_nobody(scanned: Scanned) -> None:
    assert scanned.proxied == []
    assert not (scanned.home / "intel").exists()


def test_its_processes_have_the_priority_of_the_command(scanned: Scanned) -> None:
    """On a busy machine a scan would take ten times as long."""
    assert scanned.niceness == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_other_users_reach_no_folder_of_its_ray(scanned: Scanned) -> None:
    assert scanned.writable == set()
    assert "--temp_dir=/tmp/ray" not in scanned.commands
    assert "--temp_dir=" in scanned.commands


def test_stderr_of_a_scan_is_ours(scanned: Scanned) -> None:
    assert [line for line in scanned.stderr.splitlines() if not OURS.fullmatch(line)] == []


def test_no_code_is_run_by_a_process_of_one_unit(
    photographs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child process that scans a unit after an actor died does not run it either."""
    (tmp_path / "rocket.jpg").write_bytes(photographs["rocket.jpg"])
    marks = plant_code(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = ScanSettings(inputs=["."], output="out")
    model = load_model(settings.model)
    (unit,) = list_units(["rocket.jpg"], images_per_unit=1)
    spec = row_spec(settings, model)
    assert [row["status"] for row in isolated_rows(spec, unit)] == ["ok"]
    assert run_modules(marks) == []


def test_no_code_is_run_by_a_verdict(photographs: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "rocket.jpg").write_bytes(photographs["rocket.jpg"])
    marks = plant_code(tmp_path)
    command = [sys.executable, str(COMMAND), "scan", "."]
    printed = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert re.fullmatch(r"authentic    0\.\d{3}  +rocket\.jpg\n", printed)
    assert run_modules(marks) == []


@pytest.mark.parametrize("joined", [False, True])
def test_workers_know_no_folder_of_the_driver(
    joined: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The import path has neither its working folder nor its script's, and the environment of
    the caller is restored."""
    address = "local"
    if joined:
        request.getfixturevalue("cluster")
        address = ray.get_runtime_context().gcs_address
    (script := tmp_path / "scripts" / "mine.py").parent.mkdir()
    script.write_text(SESSION)
    done = subprocess.check_output([sys.executable, script, address], cwd=tmp_path, text=True)
    path, folder, is_restored = json.loads(done)
    assert is_restored
    assert not {str(tmp_path), str(script.parent)} & set(path)
    assert joined or (Path(folder).parent != tmp_path and not Path(folder).exists())
