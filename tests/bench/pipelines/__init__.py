"""A scan beside Daft and plain Ray Data: the same files, null network, decoder and cores.

A scan does more with each file: it computes a digest, cuts tiles, makes a mask, and commits units.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds

from prompt_iml.engine.model.folder import GRAPH
from tests.bench.null_model import write_null_model
from tests.bench.photographs import jpegs
from tests.bench.rates import PROCESSES, Rate, scan_rate

IMAGES, DISTINCT = 4_000, 60
DAFT = "daft==0.7.26"
SCRIPTS = Path(__file__).parent


def measure(folder: Path) -> dict[str, Rate | str]:
    """Return the rate of each pipeline, or why there is none."""
    files = _write_files(folder / "files")
    graph = write_null_model(folder / "model", context=False) / GRAPH
    python = _daft_environment(folder / "daft")
    return {
        "scan": scan_rate(files, folder / "scan", str(graph.parent), "onnxruntime"),
        "Ray Data": _job(sys.executable, "ray_data_job.py", files, graph, folder / "ray"),
        "Daft": python
        if isinstance(python, str)
        else _job(str(python), "daft_job.py", files, graph, folder / "scored"),
    }


def _write_files(folder: Path) -> Path:
    folder.mkdir()
    pictures = list(jpegs(DISTINCT))
    for number in range(IMAGES):
        (folder / f"{number:06d}.jpg").write_bytes(pictures[number % DISTINCT])
    return folder


def _daft_environment(folder: Path) -> Path | str:
    """Install Daft and what the job needs; return the Python, or why it cannot be had."""
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [[sys.executable, "-m", "venv", folder], [*pip, DAFT, "onnxruntime", "pillow"]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"skipped: {done.stderr.strip().splitlines()[-1]}"
    return python


def _job(python: str, script: str, files: Path, graph: Path, output: Path) -> Rate | str:
    """Run a job; its rate is that between its first and last row, as a scan's."""
    command = [python, str(SCRIPTS / script), str(files), str(graph), str(output), str(PROCESSES)]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(SCRIPTS)  # also for the processes that the job starts
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    table = ds.dataset(output, format="parquet").to_table(columns=["scanned_at"])
    assert table.num_rows == IMAGES
    span = pc.min_max(table["scanned_at"]).as_py()
    seconds = span["max"] - span["min"]
    return Rate(table.num_rows, table.num_rows / seconds, wall - seconds)
