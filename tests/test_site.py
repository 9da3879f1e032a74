"""The site of docs/ builds offline, and asks nobody for anything."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
assert _spec
assert _spec.loader
site = sys.modules["docs_build"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)


def test_every_page_is_built_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    names = site.build(ROOT, tmp_path)
    assert {"index.html", "table.html", "promises.html", "model-card.html"} <= set(names)
    for name in names:
        text = (tmp_path / name).read_text()
        assert text.count("<h1") == 1
        assert not re.findall(r'(?:src|<link[^>]*href)="?https?:|<script|@import|url\(', text)
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            file, _, anchor = link.partition("#")
            if not link.startswith("https://"):
                target = (tmp_path / file).read_bytes()
                assert not anchor or f'id="{anchor}"'.encode() in target, (name, link)


@pytest.mark.parametrize("link", ["docs/gone.md", "#gone", "docs/a.md#gone", "gone.png"])
def test_a_link_that_leads_nowhere_ends_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n\n## There\n")
    (tmp_path / "README.md").write_text(f"# B\n\n[a](docs/a.md#there) [b]({link})\n")
    with pytest.raises(site.BrokenLinkError, match=re.escape(f"README.md: {link} leads nowhere")):
        site.build(tmp_path, tmp_path / "out")
