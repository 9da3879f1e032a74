"""Chromium of this machine, without a window, through Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

Opened = Callable[..., Page]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium that is installed; skip the test where there is none."""
    found = [path for path in map(shutil.which, NAMES) if path]
    if not found:
        pytest.skip("needs Chromium, which is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0])
        yield browser
        browser.close()


@contextmanager
def pages(browser: Browser, link: str, *schemes: str) -> Iterator[Opened]:
    """Open pages of a link, as wide as asked, while the block runs.

    Errors of a page's script or policy fail the block, and so do requests of other schemes.
    """
    contexts, errors = [], list[str]()

    def open_page(width: int = 1280, **options: Any) -> Page:
        viewport = {"width": width, "height": 844}
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: errors.extend(_strange(request.url, schemes)))
        page.goto(link)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [error for error in errors if "Failed to load resource" not in error] == []


def _strange(url: str, schemes: Sequence[str]) -> list[str]:
    return [] if url.startswith(tuple(f"{scheme}:" for scheme in schemes)) else [url]
