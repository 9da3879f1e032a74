"""`prompt-iml scan` without `--output`: lines, objects, overlays, exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml.engine.runtimes.blob_cache import VARIABLE, default_folder
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.run.schema import SCHEMA
from tests.bench.null_model import write_null_model
from tests.helpers.archives import TarOf
from tests.helpers.forged import forged

WITHOUT_RAY = """
import sys
from prompt_iml.pipeline.cli import main
sys.modules["ray"] = sys.modules["torch"] = None
sys.exit(main(["scan", *sys.argv[1:]]))
"""
# Prints what a scan does with sockets and processes, also in threads that end after it.
WATCHED = """
import atexit, sys
from prompt_iml.pipeline.cli import main
asked = []
atexit.register(lambda: print(*asked))
away = "socket.", "subprocess.", "os.fork", "os.posix_spawn"
sys.addaudithook(lambda event, of: event.startswith(away) and asked.append(f"{event} {of}"))
main(["scan", *sys.argv[1:]])
"""


@pytest.fixture
def folder(photographs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a forged picture, another, a broken one and a text."""
    (photos := tmp_path / "photos").mkdir()
    (photos / "forged.jpg").write_bytes(forged("JPEG", orientation=6))
    small = io.BytesIO()
    Image.open(io.BytesIO(photographs["rocket.jpg"])).crop((0, 0, 256, 256)).save(small, "PNG")
    (photos / "other.png").write_bytes(small.getvalue())
    (photos / "broken.jpg").write_bytes(photographs["rocket.jpg"][:900])
    (photos / "README").write_text("Three photographs.")
    monkeypatch.chdir(tmp_path)
    return photos


def test_a_line_for_each_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "photos", "--max-failure-rate", "0.5"]) == 0
    out, err = capsys.readouterr()
    broken, found, other = out.splitlines()
    assert broken.startswith("failed       truncated          photos/broken.jpg: image/jpeg")
    assert re.fullmatch(r"manipulated  0\.\d{3}  [0-9] regions?   photos/forged\.jpg", found)
    assert re.fullmatch(r"(authentic  |uncertain  )  0\.\d{3}  .{10}  photos/other\.png", other)
    assert len({line.index("photos/") for line in (broken, found, other)}) == 1
    assert re.search(r"\n4 images: 1 manipulated, .* 1 failed, 1 skipped, in", err)


def test_no_ray_and_no_torch_for_a_picture(folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, "photos/forged.jpg"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("note: .*\n", done.stderr)
    assert done.stdout.startswith("manipulated")


def test_a_verdict_tells_nobody(folder: Path, tmp_path: Path) -> None:
    """Some of what it imports would report its use."""
    (home := tmp_path / "home").mkdir()
    command = [sys.executable, "-c", WATCHED, "photos/forged.jpg"]
    environment = {VARIABLE: str(default_folder()), **os.environ, "HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert re.fullmatch("manipulated .*forged.jpg\n\n", done.stdout), done.stdout + done.stderr
    assert not list(home.iterdir())


def test_an_object_for_each_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "photos", "--json"]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kept = [name for name in SCHEMA.names if name not in ("mask_rle", "heatmap_png", "run_id")]
    assert [list(row) for row in rows] == [kept] * 4
    assert [row["status"] for row in rows] == ["skipped", "failed", "ok", "ok"]
    assert rows[1]["error_code"] == "truncated"
    assert rows[2]["regions"][0]["area"] > 1000


@pytest.mark.parametrize(
    ("name", "said"), [("broken.jpg", "truncated"), ("README", "1 image: 0 ok, 1 skipped")]
)
def test_nothing_that_could_be_looked_at_is_a_failure(
    folder: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    null = str(write_null_model(folder.parent / "model"))
    assert main(["scan", f"photos/{name}", "--format", "objects", "--model", null]) == 3
    assert said in "".join(capsys.readouterr())


def test_overlays_are_upright_and_only_of_pictures_with_a_mask(folder: Path) -> None:
    twice = ["scan", "photos/forged.jpg", "photos", "--overlay", "seen", "--max-failure-rate", "1"]
    assert main(twice) == 0
    names = ["forged-overlay-2.jpg", "forged-overlay.jpg"]
    assert sorted(path.name for path in Path("seen").iterdir()) == names
    with Image.open("photos/forged.jpg") as stored, Image.open(f"seen/{names[1]}") as shown:
        assert shown.size == stored.size[::-1]


def test_rows_lost_in_a_parquet_file_are_a_failure(folder: Path) -> None:
    image = (folder / "other.png").read_bytes()
    images = [image + b"%d" % n for n in range(6)]
    pq.write_table(pa.table({"image": images}), "a.parquet", row_group_size=2, compression="zstd")
    at = pq.read_metadata("a.parquet").row_group(1).column(0).data_page_offset
    file = bytearray(Path("a.parquet").read_bytes())
    file[at : at + 20] = b"\x55" * 20
    Path("a.parquet").write_bytes(file)
    null = str(write_null_model(folder.parent / "model"))
    assert main(["scan", "a.parquet", "--model", null, "--max-failure-rate", "0.5"]) == 3
    intact = ["scan", "a.parquet", "--limit", "2", "--model", null]
    assert main(intact) == 0


def test_an_overlay_of_a_long_name_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = folder / f"{83 * chr(0x753B)}.jpg"
    (folder / "forged.jpg").rename(long)
    assert main(["scan", str(long), "--overlay", "seen"]) == 0
    (overlay,) = Path("seen").iterdir()
    assert overlay.name == f"{50 * chr(0x753B)}-overlay.jpg"
    overlay.unlink()
    overlay.mkdir()
    assert main(["scan", str(long), "--overlay", "seen"]) == 2
    assert re.search("choose another --overlay$", capsys.readouterr().err.strip())


def test_a_full_disk_behind_stdout_is_one_line(folder: Path) -> None:
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(folder / "other.png")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "prompt-iml scan: cannot write to stdout: no space" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_name_that_the_terminal_lacks_ends_nothing(folder: Path) -> None:
    (folder / "other.png").rename(folder / "日本.png")
    (folder / "broken.jpg").unlink()
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(folder)]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "\\u65e5\\u672c.png" in done.stdout


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_store_that_answers_nothing_delays_no_signal(ending: int, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        urls = [f"https://127.0.0.1:{silent.getsockname()[1]}/{n}.jpg" for n in range(9)]
        (folder / "list.txt").write_text("\n".join(urls))
        command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan"]
        command += [str(folder / "list.txt"), "--allow-private-addresses"]
        scan = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        with silent.accept()[0]:
            time.sleep(1)
            scan.send_signal(ending)
            _, err = scan.communicate(timeout=20)
    assert (scan.returncode, err.count(b"interrupted: ")) == (130, 1), err


def test_a_reader_that_has_enough_is_no_error(folder: Path) -> None:
    null = str(write_null_model(folder.parent / "model"))
    command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", "--model", null]
    command += ["photos"] * 3
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_members_of_a_shard_have_its_name(
    folder: Path, tar_of: TarOf, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"a\x1b.jpg": (folder / "forged.jpg").read_bytes()}
    Path("some.tar").write_bytes(tar_of(members)[:-12_000])
    assert main(["scan", "some.tar", "--overlay", "seen"]) == 3  # the shard breaks off
    assert "damaged_shard      some.tar: " in capsys.readouterr().out
    Path("some.tar").write_bytes(tar_of(members))
    assert main(["scan", "some.tar", "--overlay", "seen"]) == 0
    assert "some.tar: a\\u001b.jpg" in capsys.readouterr().out
    assert [path.name for path in Path("seen").iterdir()] == ["some-a\x1b-overlay.jpg"]
