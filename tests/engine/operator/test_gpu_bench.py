"""`make gpu`, rehearsed: its parts are processes that fail alone, and resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench.gpu.__main__ import main
from tests.bench.gpu.files import ROOT, listed
from tests.bench.gpu.parts import PARTS, run_part
from tests.helpers.emulator import COMPILER

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")
ABSENT = {"ray", "boto3", "openvino", "onnx", "onnxruntime", "pydantic", "pyarrow", "fsspec"}


@needs_compiler
def test_parts_are_measured_once_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearse = ["--rehearse", "--output", str(tmp_path)]
    for only in ("search", "operator", "search"):
        assert main([*rehearse, "--only", only]) == 0
    out, err = capsys.readouterr()
    assert "search: done before" in err
    assert "ours, float16" in out
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["gpu"] == "rehearsal on a CPU"
    assert [part["status"] for part in record["parts"].values()] == ["done", "done"]
    (table,) = tmp_path.glob("*.txt")
    assert table.read_text() in out
    assert main([*rehearse, "--only", "search", "--again"]) == 0
    assert "done before" not in capsys.readouterr().err


def test_a_part_that_fails_or_takes_too_long_is_a_result() -> None:
    without_driver = run_part("operator", 60, {"PROMPT_IML_REHEARSE": "1"})
    assert (without_driver.status, without_driver.found) == ("failed", None)
    assert "driver" in without_driver.error
    assert run_part("training", 0.2, {"PROMPT_IML_REHEARSE": "1"}).status == "timeout"


def test_all_parts_fit_into_eight_minutes() -> None:
    assert sum(limit for _, limit in PARTS.values()) <= 8 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "make gpu: RuntimeError: PyTorch finds no GPU\n"


def test_what_is_carried_is_all_that_is_imported() -> None:
    modules = [function.partition(":")[0] for function, _ in PARTS.values()]
    script = f"""
import json, sys
from importlib import import_module
for name in {modules}:
    import_module("tests.bench.gpu." + name)
print(json.dumps({{n: getattr(m, "__file__", None) for n, m in sys.modules.items()}}))
"""
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    loaded = json.loads(printed)
    assert not ABSENT & {name.partition(".")[0] for name in loaded}
    ours = {n: Path(f).resolve() for n, f in loaded.items() if n.startswith(("prompt_iml", "tests"))
            and f}  # fmt: skip
    assert set(ours.values()) <= {path.resolve() for path in listed()}
    assert sum(path.stat().st_size for path in listed() if path.is_file()) < 20e6
