"""`prompt-iml submit` to a real head with token authentication."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from prompt_iml.cluster.fleet import working_dir
from prompt_iml.cluster.fleet.submit import run_id_of, scan_command, submit
from prompt_iml.cluster.fleet.working_dir import packed
from prompt_iml.cluster.settings import SubmitSettings
from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline.cli import commands, main
from prompt_iml.pipeline.run.folder import Json
from tests.bench.null_model import write_null_model
from tests.helpers.heads import TOKEN, environment, ray_head
from tests.helpers.ports import free_port

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Head:
    """A cluster of one node; `source` has two images and a broken one."""

    address: str
    source: Path
    model: Path
    env: dict[str, str]

    def submit(self, output: Path, *flags: str, token: str = TOKEN) -> tuple[Json, int]:
        """Submit in a child process, because Ray reads its token once in a process."""
        words = [str(self.source), f"--output={output}", f"--model={self.model}", "--max-actors=1"]
        command = [*words, f"--address={self.address}", *flags]
        done = subprocess.run(
            [sys.executable, "-m", "prompt_iml.pipeline.cli", "submit", *command],
            env=self.env | {"RAY_AUTH_TOKEN": token},
            capture_output=True,
            text=True,
        )
        summary = json.loads(done.stdout) if done.stdout else {}
        return summary | {"stderr": done.stderr}, done.returncode


@pytest.fixture(scope="module")
def head(photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    (folder / "in").mkdir()
    for name in ("rocket.jpg", "chelsea.png"):
        (folder / "in" / name).write_bytes(photographs[name])
    (folder / "in" / "broken.jpg").write_bytes(photographs["rocket.jpg"][:2000])
    env = environment()
    with ray_head(env, "--num-cpus=2") as ports:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        yield Head(address, folder / "in", write_null_model(folder / "model"), env)


@dataclass(frozen=True)
class Submitted:
    """Results of four calls: submitted, refused with other flags, attached, resumed."""

    output: Path
    results: tuple[tuple[Json, int], ...]


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    output, settings = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("settings")
    (settings / "prompt-iml.toml").write_text("[scan]\nmax_failure_rate = 0.5\n")
    begun = head.submit(output, "--run-id=one", "--no-wait")
    other = head.submit(output, "--run-id=one", "--limit=1")
    attached = head.submit(output, "--run-id=one")
    resumed = head.submit(output, "--run-id=one", f"--working-dir={settings}")
    return Submitted(output, (begun, other, attached, resumed))


def test_submitting_returns_at_once(submitted: Submitted) -> None:
    summary, code = submitted.results[0]
    assert (summary["run_id"], summary["submission_id"], code) == ("one", "one", 0)
    assert summary["status"] in ("pending", "running")


def test_another_command_under_the_same_run_is_refused(submitted: Submitted) -> None:
    summary, code = submitted.results[1]
    assert code == 2
    assert "one is running as `prompt-iml scan" in summary["stderr"]


def test_attaching_exits_as_the_scan_does(submitted: Submitted) -> None:
    summary, code = submitted.results[2]
    assert code == 3  # a third failed, and a hundredth may
    assert (summary["run_id"], summary["ok"], summary["failed"]) == ("one", 2, 1)
    assert summary["scanned_now"] == 3
    assert "attaching to job one" in summary["stderr"]


def test_submitting_again_is_a_new_attempt_of_the_run(submitted: Submitted) -> None:
    summary, _ = submitted.results[3]
    assert "resuming run one as job one~2" in summary["stderr"]
    assert (summary["run_id"], summary["scanned_now"]) == ("one", 0)
    assert ds.dataset(submitted.output / "results").count_rows() == 3


def test_the_working_directory_is_uploaded(submitted: Submitted) -> None:
    """Its settings file allows half of the images to fail."""
    assert submitted.results[3][1] == 0


def test_ray_job_submit_works(head: Head, tmp_path: Path) -> None:
    """The command is that of the documentation; it uploads the code of this folder."""
    plain = [f"--address={head.address}", "--submission-id=plain", "--working-dir=."]
    scan = ["prompt-iml", "scan", str(head.source), f"--output={tmp_path}", f"--model={head.model}"]
    command = [
        "ray",
        "job",
        "submit",
        *plain,
        "--",
        *scan,
        "--max-failure-rate=1",
        "--max-actors=1",
    ]
    done = subprocess.run(command, cwd=ROOT, env=head.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ds.dataset(tmp_path / "results").count_rows() == 3


def test_a_wrong_token_is_one_line(head: Head, tmp_path: Path) -> None:
    summary, code = head.submit(tmp_path, token=TOKEN[::-1])
    assert (code, summary["stderr"].count("\n")) == (2, 1)
    assert "RAY_AUTH_TOKEN" in summary["stderr"]


def test_an_address_without_a_cluster_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # so that the test restores it
    address = f"http://127.0.0.1:{free_port()}"
    assert main(["submit", "/in", "--output=/out", f"--address={address}"]) == 2
    assert address in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": ["s3://a/b c", "/d"], "heatmap": True, "limit": 3, "max_actors": 4},
        {"retry_failed": "one", "retry_codes": ["timeout", "denied"]},
    ],
)
def test_the_command_gives_the_same_settings(fields: Json) -> None:
    """The command is parsed by the scan's own parser."""
    from pydantic_settings import CliApp

    given = SubmitSettings(output="s3://o", address="x", **fields)
    words = shlex.split(shlex.join(scan_command(given)))
    parsed = CliApp.run(commands()[words[1]].settings, words[2:])
    different = {"address", "working_dir", "wait"}
    assert parsed.model_dump(exclude=different) == given.model_dump(exclude=different)


def test_the_run_id_depends_on_settings_of_the_rows() -> None:
    def own(**changes: object) -> str:
        fields = {"inputs": ["/a"], "output": "/o", "address": "x"} | changes
        return run_id_of(SubmitSettings(**fields))  # type: ignore[arg-type]

    assert own() == own(address="y", max_actors=9)
    assert own() != own(limit=1)


def test_relative_paths_are_refused() -> None:
    settings = SubmitSettings(inputs=["photos"], output="/o", address="x")
    with pytest.raises(UsageError, match="photos is relative"):
        submit(settings)


def test_uploaded_files_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("list.txt", ".env", "deep/more.csv", "deep/__pycache__/x.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with packed(str(tmp_path)) as first, packed(str(tmp_path)) as second:
        assert first
        assert second
        assert first.read_bytes() == second.read_bytes()
    log = capsys.readouterr().err
    assert "Uploading 2 files" in log
    assert json.dumps("list.txt")[1:-1] in log
    assert ".env" not in log


def test_what_links_lead_to_is_uploaded_once_by_their_name(tmp_path: Path) -> None:
    """The package of a checkout is links to its folders; a link in a circle ends."""
    for name in ("part/module.py", "part/__pycache__/module.pyc", "package/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "package/part").symlink_to("../part")
    (tmp_path / "part/above").symlink_to("..")
    with packed(str(tmp_path)) as package:
        assert package
        names = zipfile.ZipFile(package).namelist()
    assert names == ["package/__init__.py", "package/part/module.py"]


def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"caf\\udce9\.txt is not UTF-8"), packed(str(tmp_path)):
        pass


def test_a_large_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_dir, "MAX_BYTES", 10)
    (tmp_path / "large.bin").write_bytes(b"x" * 11)
    with pytest.raises(UsageError, match=r"leave out large\.bin"), packed(str(tmp_path)):
        pass
