from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import CliApp

from prompt_iml.engine.errors import PromptImlError
from prompt_iml.pipeline.cli import commands, main
from prompt_iml.pipeline.settings import ScanSettings

FLAGS = Path(__file__).with_name("golden_flags.txt")


def test_flags_are_frozen() -> None:
    """The command line is a contract: a change here is a change for every user's script."""
    lines = [
        f"{name} {field.replace('_', '-')} = {spec.get_default()!r}"
        for name, entry in commands().items()
        for field, spec in sorted(entry.settings.model_fields.items())
    ]
    assert lines == FLAGS.read_text().splitlines()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", "in"], "--output"),
        (["scan", "--output", "out"], "INPUTS"),
        (["scan", "in", "--output", "out", "--limit", "many"], "--limit"),
        (["scan", "in", "--output", "out", "--bogus"], "--bogus"),
        (
            ["scan", "in", "--output", "out", "--decoder", "pillow"],
            "--decoder is gone: JPEG files are decoded by Pillow",
        ),
        (["scan", "in", "--output", "out", "--run-id", "../x"], "--run-id"),
        (["scan", "in", "--output", "out", "--engine", "abacus"], "--engine"),
        (["scan", "in", "--output", "out", "--model", "nobody"], "nobody"),
        (["report"], "OUTPUT"),
        (["scn"], "scan, demo, report"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in one_line(capsys)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in ("scan", "demo", "report"))


def test_flag_over_environment_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["in", "--output", "out"]
    assert CliApp.run(ScanSettings, settings).wave_units == 2000
    (tmp_path / "prompt-iml.toml").write_text("[scan]\nwave_units = 3\n[demo]\nseed = 9\n")
    assert CliApp.run(ScanSettings, settings).wave_units == 3
    monkeypatch.setenv("PROMPT_IML_WAVE_UNITS", "4")
    assert CliApp.run(ScanSettings, settings).wave_units == 4
    assert CliApp.run(ScanSettings, [*settings, "--wave-units", "5"]).wave_units == 5


@pytest.mark.parametrize(
    ("line", "said"), [("waveunits = 3", "waveunits"), ('decoder = "pillow"', "--decoder is gone")]
)
def test_a_setting_that_is_not_there_is_refused_in_the_file(
    line: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt-iml.toml").write_text(f"[scan]\n{line}\n")
    assert main(["scan", "in", "--output", "out"]) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize("text", [b"[scan\n", b"\xff", b"scan = 3\n"])
def test_a_damaged_file_is_refused(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt-iml.toml").write_bytes(text)
    assert main(["scan", "in", "--output", "out"]) == 2
    assert "prompt-iml.toml" in one_line(capsys)


def tree(root: type[PromptImlError]) -> list[type[PromptImlError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


def test_every_error_has_its_own_code() -> None:
    codes = [error.__dict__.get("code") for error in tree(PromptImlError)]
    named = [code for code in codes if code]
    assert len(named) == len(codes) - 2  # ImageError and Fatal are abstract
    named.remove("timeout")  # of the store, and of an image: the stage tells them apart
    assert len(named) == len(set(named))


def test_a_refused_scan_leaves_no_run(tmp_path: Path) -> None:
    """Which the corrected command would meet."""
    arguments = ["--output", str(tmp_path / "out"), "--run-id", "nightly"]
    assert main(["scan", str(tmp_path / "typo"), *arguments]) == 2
    assert main(["scan", str(tmp_path), *arguments, "--slice", "3/2"]) == 2
    assert not (tmp_path / "out/_runs/nightly").exists()
