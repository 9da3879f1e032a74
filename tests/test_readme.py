"""The README and the pages show commands, code and paths that work."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic_settings import CliApp

from prompt_iml.engine.network.config import PRESETS
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.pipeline.cli import commands
from prompt_iml.pipeline.run.masks import encode_mask
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.truth import read_labels
from tests.helpers.pages import PAGES, ROOT, blocks, page


def lines_of_ours() -> list[str]:
    """Return every `prompt-iml COMMAND ...` in the blocks, those over several lines as one."""
    shown = "".join(block for page in PAGES for block in blocks("", page.read_text()))
    ours = re.compile(r"^(?:\S+/|.* -- +)?(prompt-iml [a-z].*)", re.MULTILINE)
    return ours.findall(shown.replace("\\\n", " "))


@pytest.mark.parametrize("line", lines_of_ours())
def test_the_commands_shown_are_taken(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    CliApp.run(commands()[name].settings, arguments, cli_exit_on_error=False)


def test_the_modules_shown_are_there() -> None:
    shown = {name for page in PAGES for name in re.findall(r"python -m ([\w.]+)", page.read_text())}
    assert "prompt_iml.cluster.training.ablation" in shown
    assert [name for name in shown if importlib.util.find_spec(name) is None] == []


def test_the_decoder_shown_decodes() -> None:
    shown: dict[str, object] = {}
    (code,) = [block for block in blocks("python", page("table")) if "def decode_mask" in block]
    exec(code, shown)
    mask = np.random.default_rng(0).random((37, 51)) > 0.7
    decode_mask = shown["decode_mask"]
    assert callable(decode_mask)
    assert (decode_mask(encode_mask(mask), 37, 51) == mask).all()


def test_the_labels_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("3-mask.png").write_bytes(b"a PNG")
    (code,) = [block for block in blocks("python", page("training")) if "reviewed" in block]
    exec(code, {})
    first, second = read_labels("reviewed.parquet")
    assert (first.member, first.label, first.mask) == (None, "authentic", None)
    assert (second.member, second.label, second.mask) == ("3.jpg", "manipulated", b"a PNG")


def test_every_column_is_explained() -> None:
    table = page("table").partition("\n## ")[0]
    named = [name for line in re.findall(r"^\| ([a-z0-9_, ]+) \|", table, re.M)
            for name in line.split(", ")]  # fmt: skip
    assert named[1:] == SCHEMA.names


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_are_counted(preset: str) -> None:
    with torch.device("meta"):
        network = PromptIML(PRESETS[preset])
    count = sum(parameter.numel() for parameter in network.parameters())
    (row,) = [line for line in page("training").splitlines() if line.startswith(f"| `{preset}`")]
    assert f"| {count:,} |" in row


def test_the_readme_is_short_and_its_first_page_leads_to_a_verdict() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 180
    assert "prompt-iml report" in "".join(lines[:40])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for name in re.findall(
        r"`((?:engine|pipeline|cluster|tests|docs)/[\w./-]*\w)`", path.read_text()
    ):
        assert (ROOT / name).exists(), name
