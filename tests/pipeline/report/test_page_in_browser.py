"""The report's page in a browser, opened from its file: what it shows, its keys, its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from prompt_iml.pipeline.report.page import PICTURES_A_PAGE
from prompt_iml.pipeline.report.report import write_report
from tests.helpers.browser import Opened, chromium, pages
from tests.helpers.outputs import commit, failed, scored

HOSTILE = '=<img src=x onerror="document.title=1">\u202e'
POLICY = {"authentic_below": 0.3, "manipulated_at": 0.8, "min_side": 128, "min_jpeg_quality": 50}
LABELLED = {"manipulated": 20, "uncertain": 25, "authentic": 15}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def small(photograph: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(photograph)) as image:
        image.resize((160, 128)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> str:
    """A page of 60 pictures in two folders, 3 of them the random sample of a label, 2 failures."""
    folder, data = tmp_path_factory.mktemp("report"), small(photographs["rocket.jpg"])
    rows = []
    labels = [label for label, count in LABELLED.items() for _ in range(count)]
    for number, label in enumerate(labels):
        path = folder / f"{'even' if number % 2 == 0 else 'odd'}/{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        rows.append(scored(f"file://{path}", data, (99 - number) / 100, label=label))
    rows[0] |= {"member": HOSTILE}
    refused = [failed("file:///a/1.jpg"), failed(f"file:///b/{HOSTILE}", "empty", HOSTILE)]
    commit(f"file://{folder}/out", [*rows, *refused], policy=POLICY)
    return write_report(f"file://{folder}/out", limit=60, sample=3)


@pytest.fixture
def opened(browser: Browser, report: str) -> Iterator[Opened]:
    """Open the page, which asks nobody for anything."""
    with pages(browser, report, "file", "data", "blob") as open_page:
        yield open_page


def names(page: Page) -> list[str]:
    return page.locator("#pictures h3").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(opened: Opened, width: int, scheme: str) -> None:
    page = opened(width, color_scheme=scheme)
    for key in ("", "Enter", "?"):  # the gallery, a picture, the help over it
        if key:
            page.keyboard.press(key)
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], key


def test_names_stay_text(opened: Opened) -> None:
    page = opened()
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert names(page)[0] == shown
    page.keyboard.press("Enter")
    expect(page.locator("#viewer h2")).to_have_text(shown)
    assert page.locator("img[src=x]").count() == 0


def test_without_a_script_the_first_page_is_shown(opened: Opened) -> None:
    page = opened(java_script_enabled=False)
    assert len(names(page)) == PICTURES_A_PAGE
    assert page.get_by_text("Without its script").is_visible()
    assert not page.locator("form").first.is_visible()
    page.locator("summary").first.click()
    assert page.locator("details dl").first.is_visible()


def test_pictures_are_searched_filtered_and_sorted(opened: Opened) -> None:
    page = opened()
    output = page.locator("#pictures output")
    expect(output).to_have_text("60 shown")
    assert not page.get_by_text("Without its script").is_visible()
    for key, count in zip("234", LABELLED.values(), strict=True):
        page.keyboard.press(key)
        expect(output).to_have_text(f"{count} shown")
    page.select_option("#pictures [name=folder]", index=1)
    expect(output).to_have_text("7 shown")
    page.keyboard.press("1")
    expect(output).to_have_text("29 shown")
    page.fill("#pictures [name=query]", "58.JPG")
    assert names(page) == ["58.jpg"]
    page.fill("#pictures [name=query]", "")
    page.select_option("[name=folder]", "")
    page.select_option("[name=sort]", "score")
    assert names(page)[:2] == ["59.jpg", "58.jpg"]
    page.select_option("[name=set]", "sample")
    expect(output).to_have_text("9 shown")
    page.fill("#pictures [name=query]", "nowhere")
    expect(output).to_have_text("nothing matches")


def test_a_picture_is_opened_and_left_by_keys(opened: Opened) -> None:
    page = opened()
    mask, viewer = page.locator("#viewer img.mask"), page.locator("#viewer")
    page.keyboard.press("Enter")
    box = page.locator("#viewer .layers").bounding_box()
    assert box is not None
    assert box["width"] > 800
    assert mask.is_visible()
    for key, visible in (("m", False), ("m", True)):
        page.keyboard.press(key)
        assert mask.is_visible() == visible
    page.keyboard.press("-")
    assert mask.evaluate("element => getComputedStyle(element).opacity") == "0.9"
    for _ in range(PICTURES_A_PAGE):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer .place")).to_have_text("25 of 60")
    assert not mask.is_visible()  # it is uncertain
    assert "Between the thresholds 0.300 and 0.500." in viewer.inner_text()
    page.keyboard.press("m")
    assert mask.is_visible()
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    expect(page.locator("#pictures .pager .place")).to_have_text("Page 2 of 3")
    assert page.evaluate("document.activeElement.ariaLabel") == "Open 24.jpg"
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#pictures .pager .place")).to_have_text("Page 1 of 3")


def test_masks_of_the_gallery_are_shown_where_they_are_believed(opened: Opened) -> None:
    page = opened()
    masks = page.locator(".gallery img.mask:visible")
    assert masks.count() == LABELLED["manipulated"]
    page.select_option("[name=masks]", "every")
    assert masks.count() == PICTURES_A_PAGE
    page.locator("#pictures .csv").focus()
    page.keyboard.press("m")
    assert masks.count() == 0


def test_what_is_shown_is_saved_as_csv(opened: Opened) -> None:
    page = opened()
    page.keyboard.press("2")
    with page.expect_download() as download:
        page.click("#pictures .csv")
    assert download.value.suggested_filename == "r1-pictures.csv"
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == LABELLED["manipulated"]
    assert rows[0]["member"] == "'" + HOSTILE.replace("\u202e", "\\u202e")
    assert (rows[1]["score"], rows[1]["label"], rows[1]["reasons"]) == ("0.98", "manipulated", "")


def test_failures_are_filtered_by_their_code(opened: Opened) -> None:
    page = opened()
    assert page.locator("#failures li").count() == 2
    page.select_option("[name=error_code]", "empty")
    assert page.locator("#failures li").count() == 1
    assert "empty" in page.locator("#failures li").inner_text()


def test_on_a_phone_the_pictures_come_in_pages(opened: Opened) -> None:
    page = opened(390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.documentElement.scrollHeight") < 8000
    assert page.locator(".card").count() == PICTURES_A_PAGE
