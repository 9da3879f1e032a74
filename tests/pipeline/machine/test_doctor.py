"""Advice of doctor is commands that pip and prompt-iml take."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pip._internal.commands import create_command
from pydantic_settings import CliApp

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.operator import cuda
from prompt_iml.engine.runtimes.tensorrt import import_tensorrt
from prompt_iml.pipeline.cli import commands, main
from prompt_iml.pipeline.machine import doctor

MISSING = "prompt_iml.engine.runtimes.open.find_spec"


def check_command(command: str) -> None:
    """Parse a command as the program that it names does."""
    program, *arguments = shlex.split(command)
    if arguments[:2] == ["-m", "pip"]:
        assert Path(program).samefile(sys.executable)
        program, *arguments = arguments[1:]
    if program == "prompt-iml":
        name, *flags = arguments
        CliApp.run(commands()[name].settings, flags, cli_exit_on_error=False)
        return
    assert (program, arguments[0]) == ("pip", "install")
    options, named = create_command("install").parse_args(arguments[1:])
    assert named or options.editables
    for each in [name for name in named if not Path(name).is_dir()]:
        wanted = Requirement(each)
        if wanted.name == "prompt-iml":
            assert wanted.extras <= set(metadata("prompt-iml").get_all("Provides-Extra") or [])
    assert all((Path(each) / "pyproject.toml").is_file() for each in options.editables)


@pytest.mark.parametrize("in_path", [True, False])
def test_what_is_missing_everywhere_has_a_command(
    in_path: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = str(Path(sys.executable).with_name("pip"))
    monkeypatch.setattr(shutil, "which", lambda name: beside if in_path else None)
    monkeypatch.setattr(MISSING, lambda name: None)
    monkeypatch.setattr("prompt_iml.engine.operator.cpu.available", lambda: False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(cuda, "unavailable", cuda.unavailable.__wrapped__)  # not what is cached
    assert main(["doctor"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    unmet = [check["fix"] for check in checks if check["state"] != "ok"]
    assert len(unmet) == 5
    for command in unmet:
        check_command(command)
        assert command.startswith("pip ") == in_path


def test_tensorrt_missing_and_an_engine_not_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency) as missing:
        import_tensorrt()
    check_command(doctor.unmet("TensorRT", missing.value).fix)
    check_command(doctor.build_command(tmp_path / "a model"))


@pytest.mark.parametrize(
    ("message", "found", "fix"),
    [
        ("finds no GPU (E): see nvidia-smi", "finds no GPU (E)", "nvidia-smi"),
        ("no driver: install version 525 or later", "no driver: install version 525 or later", ""),
    ],
)
def test_advice_that_is_no_command_is_not_given_as_one(message: str, found: str, fix: str) -> None:
    check = doctor.unmet("GPU", MissingDependency(message))
    assert (check.found, check.fix) == (found, fix)
