"""The README, the pages in docs/, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("docs", "engine", "pipeline", "cluster")
PAGES = sorted({*ROOT.glob("*.md"), *(p for part in PARTS for p in (ROOT / part).rglob("*.md"))})


def page(name: str) -> str:
    """Return the text of a page in docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(language: str, text: str) -> list[str]:
    """Return the fenced blocks of one language; that of blocks without one is empty."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]
