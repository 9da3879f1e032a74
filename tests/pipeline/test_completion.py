"""`prompt-iml completion`: what a real shell completes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from itertools import pairwise

import pytest
from pydantic_settings import CLI_SUPPRESS

from prompt_iml.pipeline.cli import commands, main

# Asks as bash does on a key, for words that it has split at = as COMP_WORDBREAKS says.
ASK = """
complete -p prompt-iml
while IFS= read -r line; do
    eval "COMP_WORDS=($line)"
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    _prompt_iml
    echo "${COMPREPLY[*]}"
done
"""
ASKED = {
    "prompt-iml sc": "scan",
    "prompt-iml comp": "compact completion",
    "prompt-iml --v": "--version",
    "prompt-iml scan --max-a": "--max-actors",
    "prompt-iml scan --js": "--json-lines --json",
    "prompt-iml submit s3://b/p --js": "",
    "prompt-iml scan --engine o": "onnxruntime openvino",
    "prompt-iml scan photo.jpg --engine = o": "onnxruntime openvino",
    "prompt-iml scan --s3-access =": "signed anonymous requester-pays",
    "prompt-iml export demo --to ''": "coco masks overlays csv jsonl",
    "prompt-iml export demo --label m": "manipulated",
    "prompt-iml models ''": "list promote rollback",
    "prompt-iml completion z": "zsh",
    "prompt-iml train --tr": "--train",
    "prompt-iml scan ph": "",
    "prompt-iml nothing --o": "",
}


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def ran(shell: str, text: str, lines: str = "") -> str:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-c", text], input=lines, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash_completes_commands_flags_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    answers = ran("bash", script("bash", capsys) + ASK, "\n".join(ASKED) + "\n").splitlines()
    assert answers[0] == "complete -o default -F _prompt_iml prompt-iml"
    assert dict(zip(ASKED, answers[1:], strict=True)) == ASKED


def test_zsh_reads_the_same_script(capsys: pytest.CaptureFixture[str]) -> None:
    shown = script("zsh", capsys)
    assert shown.endswith(script("bash", capsys))
    assert shown.index("bashcompinit") < shown.index("_prompt_iml()")
    ran("zsh", shown + "[[ -n $_comps[prompt-iml] ]]")


def test_fish_has_a_line_for_every_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    shown = script("fish", capsys)
    lines = [shlex.split(line.replace("\\'", "")) for line in shown.splitlines()]
    assert all(line[:3] == ["complete", "-c", "prompt-iml"] for line in lines)
    for name, entry in commands().items():
        assert ["-n", "__fish_use_subcommand", "-f", "-a", name] in [line[3:8] for line in lines]
        of_command = [line for line in lines if line[4].endswith(f"_from {name}")]
        flags = {word for line in of_command for before, word in pairwise(line)
                 if before == "-l"}  # fmt: skip
        positional = {"inputs", "output", "truths", "manifests", "action", "prompt_set", "shell"}
        fields = entry.settings.model_fields.items()
        shown_fields = {field for field, info in fields if CLI_SUPPRESS not in info.metadata}
        assert {field.replace("_", "-") for field in shown_fields - positional} <= flags
    assert re.search(r"from scan' -l engine -x -a 'auto onnxruntime", shown)
    assert "-f -a 'list promote rollback'" in shown


def test_fish_completes(capsys: pytest.CaptureFixture[str]) -> None:
    ask = "complete -C 'prompt-iml scan --engine o'"
    answers = ran("fish", script("fish", capsys) + ask).splitlines()
    assert [line.partition("\t")[0] for line in answers] == ["onnxruntime", "openvino"]
