"""What the README shows is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import PRESETS
from engine.network.model import PromptIML
from pipeline.results import SCHEMA, encode_mask

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_decoder_shown_decodes() -> None:
    shown: dict[str, object] = {}
    (code,) = blocks("python")
    exec(code, shown)
    mask = np.random.default_rng(0).random((37, 51)) > 0.7
    decode_mask = shown["decode_mask"]
    assert callable(decode_mask)
    assert (decode_mask(encode_mask(mask), 37, 51) == mask).all()


def test_every_column_is_told() -> None:
    table = README.partition("## The table")[2].partition("\n## ")[0]
    told = [name for line in re.findall(r"^\| ([a-z0-9_, ]+) \|", table, re.M)
            for name in line.split(", ")]  # fmt: skip
    assert told[1:] == SCHEMA.names


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_are_counted(preset: str) -> None:
    with torch.device("meta"):
        network = PromptIML(PRESETS[preset])
    count = sum(parameter.numel() for parameter in network.parameters())
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{preset}`")]
    assert f"| {count:,} |" in row
