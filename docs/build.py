"""Build a site of the README, the pages in docs/ and those beside them, to be read offline.

    python docs/build.py FOLDER

Links between pages, their anchors and pictures are checked: one that leads nowhere ends the build.
Links to folders and sources of the repository become plain text.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("page.html")
BESIDE = ("engine/models/*/MODEL_CARD.md", "CONTRIBUTING.md", "CHANGELOG.md")
COPIED = {".png", ".ipynb"}


class BrokenLinkError(Exception):
    """A link leads nowhere."""


@dataclass(frozen=True)
class Page:
    """A page of the site.

    Attributes:
        path: its file below the root.
        name: its file name in the site.
        tokens: its Markdown.
        anchors: ids of its headings.
    """

    path: Path
    name: str
    tokens: list[Token]
    anchors: set[str]

    @property
    def title(self) -> str:
        """Text of its first heading, up to a colon."""
        return next(text for _, text in headings(self.tokens)).partition(":")[0]


def headings(tokens: list[Token]) -> Iterator[tuple[Token, str]]:
    """Yield each heading and its text."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            yield opening, "".join(child.content for child in inline.children or [])


def read(root: Path, path: Path) -> Page:
    """Parse a page, and give its headings the ids that GitHub gives them."""
    tokens = MARKDOWN.parse(path.read_text(encoding="utf-8"))
    for heading, text in headings(tokens):
        heading.attrSet("id", re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    anchors = {str(heading.attrGet("id")) for heading, _ in headings(tokens)}
    below = path.relative_to(root)
    name = "index" if below == Path("README.md") else path.stem.lower().replace("_", "-")
    return Page(below, f"{name}.html", tokens, anchors)


def resolve(link: str, page: Page, pages: dict[Path, Page], root: Path, folder: Path) -> str | None:
    """Return a link as the site has it, None where it leads to a source; copy what it shows.

    Raises:
        BrokenLinkError: nothing is there.
    """
    if link.startswith("https://"):
        return link
    path, _, anchor = link.partition("#")
    target = (root / page.path.parent / path).resolve() if path else root / page.path
    other = pages.get(target)
    if not target.exists() or (anchor and not (other and anchor in other.anchors)):
        raise BrokenLinkError(f"{page.path}: {link} leads nowhere")
    if other:
        return other.name + (f"#{anchor}" if anchor else "")
    if target.suffix in COPIED:
        shutil.copy(target, folder)
        return target.name
    return None


def relink(page: Page, pages: dict[Path, Page], root: Path, folder: Path) -> None:
    """Change the links and pictures of a page to those of the site."""
    for token in (child for each in page.tokens for child in each.children or []):
        for name in ("href", "src"):
            if link := token.attrGet(name):
                found = resolve(str(link), page, pages, root, folder)
                if found is None:
                    token.attrs.pop(name)
                else:
                    token.attrSet(name, found)


def build(root: Path, folder: Path) -> list[str]:
    """Build the site of a repository; return the names of its pages. Raises `BrokenLinkError`."""
    paths = [root / "README.md", *sorted(root.glob("docs/*.md"))]
    paths += [path for pattern in BESIDE for path in sorted(root.glob(pattern))]
    pages = {path.resolve(): read(root, path) for path in paths}
    folder.mkdir(parents=True, exist_ok=True)
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    for page in pages.values():
        relink(page, pages, root, folder)
        content = MARKDOWN.renderer.render(page.tokens, MARKDOWN.options, {})
        text = template.render(page=page, pages=pages.values(), content=content)
        (folder / page.name).write_text(text, encoding="utf-8")
    return [page.name for page in pages.values()]


MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")

if __name__ == "__main__":
    try:
        built = build(ROOT, Path(sys.argv[1]))
    except BrokenLinkError as broken:
        sys.exit(str(broken))
    print(f"{len(built)} pages: {sys.argv[1]}/index.html")
