from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import CliApp

from prompt_iml.engine.errors import PromptImlError
from prompt_iml.pipeline.cli import COMMANDS, DONE, FAILURES, commands, main, parse
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.settings import DemoSettings, ScanSettings

FLAGS = Path(__file__).with_name("golden_flags.txt")


def test_flags_are_frozen() -> None:
    """Users' scripts rely on the flags, so a change must be deliberate."""
    lines = [
        f"{name} {field.replace('_', '-')} = {spec.get_default()!r}"
        for name, entry in commands().items()
        for field, spec in sorted(entry.settings.model_fields.items())
    ]
    assert lines == FLAGS.read_text().splitlines()


# Each runs in a folder with photo.jpg, README and an empty folder, in an install without torch; the
# second text is what the message must name.
WRONG = [
    ("scn", "'scn' (did you mean scan?): use one of scan, demo, report"),
    ("xyzzy", "'xyzzy': use one of scan, demo, report"),
    ("scan photo.jpg --outptu out", "--outptu out (did you mean --output?)"),
    ("scan photo.jpg --engine Openvin", "(did you mean openvino?)"),
    ("export empty --to coco --label manipulatd", "(did you mean manipulated?)"),
    (
        "models lst --registry r",
        " ACTION: input should be 'list', 'promote' or 'rollback' (did you mean list?)",
    ),
    ("runs empty", "holds no run"),
    ("top nothere", "holds no run"),
    ("completion tcsh", "'bash', 'zsh' or 'fish'"),
    ("scan nothere --output out", "nothere"),
    ("scan *.png --output out", "*.png"),
    ("scan empty --output out", "nothing to scan"),
    ("scan README --output out", "README is neither an image nor a shard"),
    ("scan photo.jpg --run-id r", "--run-id needs --output"),
    ("scan photo.jpg --output out --overlay seen", "--overlay is for scans without --output"),
    ("scan photo.jpg --overlay photo.jpg/seen", "choose another --overlay"),
    ("scan empty", "nothing to scan"),
    ("scan --output out", "INPUTS"),
    ("scan photo.jpg --output photo.jpg/out", "choose another --output"),
    ("scan photo.jpg --output ftp://out", "s3://bucket/key"),
    ("scan photo.jpg --output out --limit many", "--limit"),
    ("scan photo.jpg --output out --bogus", "--bogus"),
    ("scan photo.jpg --output out --run-id ../x", "--run-id"),
    ("scan photo.jpg --output out --engine abacus", "--engine"),
    ("scan photo.jpg --output out --engine torch", "pip install torch"),
    ("scan photo.jpg --output out --model nobody", "nobody"),
    ("scan photo.jpg --output out --slice half", "I/N"),
    ("scan photo.jpg --output out --address http://127.0.0.1:8265", "prompt-iml submit"),
    ("scan photo.jpg --output out --address head", "HOST:6379"),
    ("scan photo.jpg --output out --address 127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"),
    ("serve --address ray://127.0.0.1:1", "no Ray cluster at ray://127.0.0.1:1"),
    ("scan photo.jpg --output out --slice 3/2", "--slice 3/2"),
    ("scan photo.jpg --output out --min-actors 3 --max-actors 2", "--max-actors 2"),
    ("scan photo.jpg --output out --prompts 12345678", "--registry"),
    ("scan photo.jpg --output out --policy none.json", "none.json"),
    ("scan photo.jpg --output out --policy p --registry r", "a policy of its own"),
    ("scan photo.jpg --output out --retry-failed r", "leave out all others"),
    ("scan photo.jpg --output out --retry-codes timeout", "--retry-failed"),
    ("scan photo.jpg --output out --skip-scanned r --run-id r", "--run-id"),
    ("scan --output out --retry-failed r", "holds no run"),
    ("demo --model nobody", "nobody"),
    ("demo --output photo.jpg/out", "choose another --output"),
    ("plan", "INPUTS"),
    ("plan nothere", "nothere"),
    ("report", "OUTPUT"),
    ("report nothere", "holds no run"),
    ("compact empty", "holds no run"),
    ("verify photo.jpg", "holds no run"),
    ("evaluate none.csv", "none.csv"),
    ("calibrate none.csv", "none.csv"),
    ("doctor --model nobody", "nobody"),
    ("train --photos empty --output out", "pip install 'prompt-iml[train]'"),
    ("train --photos empty --output out --max-workers 0", "--max-workers"),
    ("train --photos empty --output out --samples 4", "--samples 4"),
    ("retrain --photos empty --output out", "--labels"),
    ("models list", "--registry"),
    ("serve --model nobody", "nobody"),
    ("serve --engine torch", "pip install torch"),
    ("submit photo.jpg --output out", "--address"),
    ("submit photo.jpg --output out --address http://127.0.0.1:1", "relative"),
]

HEAVY = {"numpy", "pyarrow", "ray", "PIL", "scipy", "pandas", "fsspec", "botocore", "torch"}


@pytest.mark.parametrize(
    "names",
    [
        ["Smith, John.jpg", "[1] a.jpg"], ["{a}.jpg"], ['q"x.jpg'], ["[a,b"], ["null"], ["7"],
        [" lead.jpg"], ["\udcff.jpg"], ["back\\slash.jpg"], ["https://e.org/w_300,h_200/a.jpg"],
    ],
)  # fmt: skip
def test_an_input_is_taken_as_it_is_written(names: list[str]) -> None:
    assert parse("scan", ScanSettings, names).inputs == names
    evaluated = parse("evaluate", COMMANDS["evaluate"].settings, names)
    assert evaluated.model_dump()["manifests"] == names


def test_a_flag_takes_a_list_in_one_word() -> None:
    arguments = ["out, b", "--label", "authentic,uncertain"]
    top = parse("top", COMMANDS["top"].settings, arguments).model_dump()
    assert (top["output"], top["label"]) == ("out, b", ["authentic", "uncertain"])


@pytest.mark.parametrize("arguments", ["--help", "--version", "scan --help", "train --help"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    program = f"""
import contextlib, sys
from prompt_iml.pipeline.cli import main
with contextlib.suppress(SystemExit):
    main({arguments.split()})
print(*sorted({HEAVY} & sys.modules.keys()))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert printed.stdout.splitlines()[-1] == b""


DRIVER = """
import contextlib, io, json, os, sys
from prompt_iml.pipeline.cli import main
light = not {"numpy", "pyarrow", "ray"} & sys.modules.keys()
sys.modules["torch"] = None  # as in a plain install
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    files = sorted(name for entry in os.walk(".") for name in entry[1] + entry[2])
    loaded = sorted({"ray", "openvino"} & sys.modules.keys())
    print(json.dumps([light, code, out.getvalue(), err.getvalue(), files, loaded]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Run all wrong commands in one process, because starting one takes half a second."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "photo.jpg").write_bytes(b"a photograph")
    (folder / "README").write_text("Some photographs.")
    commands = [command for command, _ in WRONG]
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([shlex.split(command) for command in commands]),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(zip(commands, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("command", "named"), WRONG)
def test_a_wrong_command_is_one_line_at_once_and_leaves_nothing(
    command: str, named: str, refusals: dict[str, list[Any]]
) -> None:
    light, code, out, err, files, loaded = refusals[command]
    assert (code, out, loaded, light) == (2, "", [], True)
    assert err.count("\n") == 1
    assert named in err
    assert files == ["README", "empty", "photo.jpg"]


RENAMED = [
    (name, old, new) for name in ("train", "retrain") for old, new in
    commands()[name].settings.renamed.items()
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), RENAMED)
def test_an_earlier_name_is_an_error_that_gives_today_s(
    name: str,
    old: str,
    new: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flag, now = (f"--{field.replace('_', '-')}" for field in (old, new))
    assert main([name, f"{flag}=1"]) == 2
    assert one_line(capsys) == f"prompt-iml {name}: {flag} is now {now}\n"
    (tmp_path / "prompt-iml.toml").write_text(f"[{name}]\n{old} = 1\n")
    assert main([name]) == 2
    assert f"prompt-iml.toml: {old} is now {new}\n" in one_line(capsys)
    monkeypatch.setenv(f"PROMPT_IML_{old.upper()}", "1")
    assert main([name]) == 2
    assert f"PROMPT_IML_{old.upper()} is now PROMPT_IML_{new.upper()}\n" in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


def test_a_page_of_help_begins_with_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["scan", "--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    titles = re.findall(r"^(\w.*):$", page, re.MULTILINE)
    assert titles == [
        "Required", "Selection", "Model", "Where it runs", "Resume and repair", "Limits", "Output",
        "Other",
    ]  # fmt: skip
    required = page.partition("Selection:")[0]
    assert page.startswith("usage: prompt-iml scan INPUTS... [options]\n")
    assert "INPUTS" in required
    assert page.partition("Other:")[2].split()[:2] == ["-h,", "--help"]


@pytest.mark.parametrize("command", ["export", "review"])
def test_help_shows_how_lists_are_written(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--label {authentic,uncertain,manipulated},...\n" in capsys.readouterr().out


def test_help_shows_flags_as_they_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    for command, shown in (("scan", "  --json-lines, --json  "), ("review", ", --no-browser")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        page = capsys.readouterr().out
        assert shown in page
        assert "--no-json" not in page


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_flag_has_a_group_and_no_default_is_a_python_list(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = capsys.readouterr().out
    assert re.fullmatch(r"  -h, --help +Show this page.\n", page.partition("Other:\n")[2])
    assert not re.search(r"\(default:\s+\[", page)


@pytest.mark.parametrize(
    ("command", "shown"),
    [("compact", "256MiB"), ("calibrate", "none,jpeg-90,jpeg-70,resize-0.5,resize-1.5")],
)
def test_help_shows_defaults_as_a_flag_takes_them(
    command: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert re.search(rf"\(default:\s+{re.escape(shown)}\)", capsys.readouterr().out)


def test_help_leaves_out_what_a_job_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["submit", "--help"])
    page = capsys.readouterr().out
    assert "--json" not in page
    assert "--overlay" not in page


def test_every_help_text_is_a_sentence() -> None:
    for name, entry in commands().items():
        for field, spec in entry.settings.model_fields.items():
            text = str(spec.description)
            assert re.fullmatch(r"[A-Z].* .* .*\.", text, re.DOTALL), (name, field, text)


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
    ("line", "message"),
    [
        (
            "waveunits = 3",
            "--waveunits is not a setting of this command (did you mean --wave-units?)",
        ),
        ('decoder = "pillow"', "decoder was removed"),
    ],
)
def test_a_setting_that_is_not_there_is_refused_in_the_file(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt-iml.toml").write_text(f"[scan]\n{line}\n")
    assert main(["scan", "in", "--output", "out"]) == 2
    assert message in one_line(capsys)


def test_a_command_without_a_table_in_the_file_takes_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt-iml.toml").write_text("[scan]\nlimit = 3\n")
    assert CliApp.run(DemoSettings, []).seed == 0


@pytest.mark.parametrize("name", [".", "..", "*.jpg"])
def test_a_file_among_the_pictures_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt-iml.toml").write_text('[scan]\npolicy = "theirs.json"\n')
    assert main(["scan", name, "--output", "s3://bucket/out"]) == 2
    note, refused = capsys.readouterr().err.splitlines()
    assert note == "note: prompt-iml.toml gives policy"
    assert f"prompt-iml.toml of this folder lies in {name}, " in refused


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
    named.remove("timeout")  # of the store, and of an image: the stage distinguishes them
    assert len(named) == len(set(named))


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, DONE),
        ({"failure_rate": 0.02}, FAILURES),
        ({"incomplete": 1}, FAILURES),  # one shard may hold any number of images
        ({"ok": 0}, FAILURES),  # nothing was an image
        ({"ok": 0, "codes": {"already_scanned": 9}}, DONE),
    ],
)
def test_a_scan_that_lost_images_or_saw_none_does_not_exit_0(
    changed: dict[str, Any], code: int
) -> None:
    summary = {"ok": 9, "failed": 0, "codes": {}, "failure_rate": 0.0, "incomplete": 0} | changed
    settings = ScanSettings(inputs=["in"], output="out")
    assert COMMANDS["scan"].outcome(summary, settings) == (summary, code)
    settings = ScanSettings(inputs=["in"])  # whose verdicts are its output
    assert COMMANDS["scan"].outcome(summary, settings) == (None, code)


def test_a_name_does_not_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b]0;owned\x07\u202egpj.exe"
    assert main(["scan", f"/nowhere/{name}", "--output", "out"]) == 2
    log(f"{name} is damaged")
    assert not {"\x1b", "\x07", "\u202e"} & set(capsys.readouterr().err)
