"""The review's page in a browser: by keys alone, by drawing, on a phone, and for everybody."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from prompt_iml.pipeline.scan.rows import HEATMAP_LEVELS
from prompt_iml.pipeline.truth import read_labels
from prompt_iml.pipeline.truth.masks import load_mask
from prompt_iml.pipeline.truth.reviews import read_reviews, write_review
from tests.helpers.browser import Opened, chromium, pages
from tests.helpers.outputs import Row, commit, scored
from tests.helpers.reviewed import POLICY, label_of, review_of, running, session_on

SIZE = (160, 120)  # width and height
HOSTILE = '<img src=x onerror="document.title=1">\u202e.jpg'
NAMES = ("a.jpg", "b.jpg", HOSTILE)
SETTLED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def rows(tmp_path: Path, photographs: Mapping[str, bytes]) -> list[Row]:
    """A run of three small pictures, the first with a heat map."""
    sink = io.BytesIO()
    with Image.open(io.BytesIO(photographs["rocket.jpg"])) as image:
        image.resize(SIZE).save(sink, "JPEG")
    rows = []
    for number, name in enumerate(NAMES):
        path, score = tmp_path / name.replace("/", "_"), 0.89 - number / 10
        path.write_bytes(sink.getvalue())
        row = scored(f"file://{path}", sink.getvalue(), score, label=label_of(score))
        rows.append(row | {"threshold": POLICY["manipulated_at"], "mask_threshold": 0.5})
    rows[0]["heatmap_png"] = heat()
    commit(f"file://{tmp_path}/out", rows, policy=POLICY)
    return rows


def heat() -> bytes:
    """Return a heat map that is 1 in the left half and 0 elsewhere."""
    levels = np.zeros((SIZE[1] // 4, SIZE[0] // 4), np.uint8)
    levels[:, : SIZE[0] // 8] = 17 * (HEATMAP_LEVELS - 1)
    sink = io.BytesIO()
    Image.fromarray(levels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def opened(browser: Browser, rows: list[Row], tmp_path: Path) -> Iterator[Opened]:
    """Open the page of a running review, and wait for its first picture."""

    def open_page(width: int = 1280, **options: Any) -> Page:
        page = anew(width, **options)
        expect(page.locator("#view")).to_be_visible()
        return page

    with (
        running(session_on(f"file://{tmp_path}/out")) as link,
        pages(browser, link, "http", "data", "blob") as anew,
    ):
        yield open_page


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Return where a point of the sheet is in the window."""
    box = page.locator("#sheet").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"] / SIZE[0], box["y"] + y * box["height"] / SIZE[1]


def drag(page: Page, *points: tuple[float, float]) -> None:
    page.mouse.move(*at(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*at(page, *point), steps=4)
    page.mouse.up()


def truth(rows: list[Row], tmp_path: Path) -> NDArray[np.bool_]:
    """Return the mask of the first picture, as it was saved."""
    labels = {each.uri: each for each in read_labels(f"file://{tmp_path}/out")}
    mask = labels[rows[0]["uri"]].mask
    assert mask is not None
    return load_mask(mask)


def saved(page: Page, count: int = 1) -> None:
    expect(page.locator("#decided")).to_have_text(f"{count} of 3 decided")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(
    opened: Opened, rows: list[Row], tmp_path: Path, width: int, scheme: str
) -> None:
    for who, decision in (("ann", "authentic"), ("bob", "mask_wrong")):
        review = review_of(rows[0], decision, reviewer=who)
        write_review(f"file://{tmp_path}/out/reviews", review)
    page = opened(width, color_scheme=scheme)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#disagree")).to_contain_text("bob: manipulated, mask wrong")
    for key in ("", "b", "?"):  # the picture, a tool with its size, the help
        if key:
            page.keyboard.press(key)
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], key


def test_three_pictures_are_reviewed_by_keys_alone(
    opened: Opened, rows: list[Row], tmp_path: Path
) -> None:
    page = opened()
    assert page.url.endswith("/")  # without the token
    place = page.locator("#place")
    page.keyboard.press("n")
    page.keyboard.type("1 of the moon?")  # no decision
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    expect(place).to_have_text("Picture 2 of 3")
    expect(page.locator("#view")).to_be_visible()
    page.keyboard.press("3")
    expect(place).to_have_text("Picture 3 of 3")
    page.keyboard.press("u")
    expect(place).to_have_text("Picture 2 of 3")
    saved(page)
    expect(page.locator("#view")).to_be_visible()
    page.keyboard.press("2")
    expect(place).to_have_text("Picture 3 of 3")
    expect(page.locator("#view")).to_be_visible()
    page.keyboard.press("4")
    expect(page.locator("#status")).to_contain_text("That was the last picture")
    saved(page, 3)
    first, second = read_labels(f"file://{tmp_path}/out")
    assert [each.label for each in (first, second)] == ["manipulated"] * 2
    assert first.mask is not None
    assert second.mask is None
    decisions = [each for file in read_reviews(f"file://{tmp_path}/out/reviews").values()
                 for each in file]  # fmt: skip
    said = [each.decision for each in decisions]
    assert said == ["manipulated", "authentic", "withdrawn", "mask_wrong", "unsure"]
    assert [each.note for each in decisions if each.note] == ["1 of the moon?"]
    page.reload()
    expect(page.locator("#note")).to_have_value("1 of the moon?")
    assert page.locator("[aria-pressed=true][data-decision]").count() == 1


def test_a_region_is_dropped_and_a_polygon_added(
    opened: Opened, rows: list[Row], tmp_path: Path
) -> None:
    page = opened()
    page.mouse.click(*at(page, 50, 30))
    corners = [(100, 60), (150, 60), (150, 110), (100, 110)]
    for key in ("-", "-", "a"):  # zoomed and moved
        page.keyboard.press(key)
    page.keyboard.press("p")
    for corner in corners:
        page.mouse.click(*at(page, *corner))
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    saved(page)
    expected = np.zeros(SIZE[::-1], bool)
    expected[60:110, 100:150] = True
    assert (truth(rows, tmp_path) == expected).all()


def test_brush_and_eraser(opened: Opened, rows: list[Row], tmp_path: Path) -> None:
    page = opened()
    page.keyboard.press("x")
    page.keyboard.press("b")
    scale = page.locator("#sheet").evaluate("sheet => sheet.getBoundingClientRect().width / 160")
    radius = int(page.locator("#size").input_value()) / 2 / scale
    drag(page, (20, 60), (140, 60))
    page.keyboard.press("e")
    drag(page, (80, 20), (80, 100))
    page.keyboard.press("b")
    drag(page, (80, 100), (20, 100))
    page.keyboard.press("u")  # of the last stroke alone
    page.keyboard.press("1")
    saved(page)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    expected = np.hypot(x - x.clip(20, 140), y - 60) < radius
    expected &= np.hypot(x - 80, y - y.clip(20, 100)) >= radius
    drawn = truth(rows, tmp_path)
    assert (drawn & expected).sum() > 0.95 * (drawn | expected).sum()


def test_the_threshold_of_a_heat_map_makes_the_mask(
    opened: Opened, rows: list[Row], tmp_path: Path
) -> None:
    page = opened()
    page.keyboard.press("t")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#thresholds output")).to_have_text("0.51")
    page.keyboard.press("1")
    saved(page)
    expected = np.zeros(SIZE[::-1], bool)
    expected[:, : SIZE[0] // 2] = True
    assert (truth(rows, tmp_path) == expected).mean() > 0.98


def test_a_mask_that_was_erased_is_not_saved(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    page.keyboard.press("x")
    page.keyboard.press("1")
    expect(page.locator("#status")).to_have_text("Not saved: the mask is empty")
    saved(page, 0)
    assert read_reviews(f"file://{tmp_path}/out/reviews") == {}


def test_zoom_move_mask_and_opacity(opened: Opened) -> None:
    page = opened()
    sheet, zoom = page.locator("#sheet"), page.locator("#zoom")
    before = zoom.inner_text()
    x, y = at(page, 40, 30)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -500)
    expect(zoom).not_to_have_text(before)
    assert at(page, 40, 30) == pytest.approx((x, y), abs=1)  # it zooms around the pointer
    drag(page, (40, 30), (55, 40))
    assert at(page, 40, 30) != pytest.approx((x, y), abs=10)
    page.keyboard.press("0")
    expect(zoom).to_have_text(before)
    page.keyboard.press("m")
    expect(sheet).to_have_css("visibility", "hidden")
    page.keyboard.press("m")
    page.keyboard.press(".")
    expect(sheet).to_have_css("opacity", "0.6")
    assert sheet.evaluate("sheet => getComputedStyle(sheet).visibility") == "visible"


def test_a_picture_that_is_gone_says_so_and_is_passed_over(
    opened: Opened, rows: list[Row], tmp_path: Path
) -> None:
    Path(rows[1]["uri"].removeprefix("file://")).unlink()
    page = opened()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#problem")).to_contain_text("This picture cannot be shown: not_found: ")
    expect(page.locator("#name")).to_have_text("b.jpg")
    page.keyboard.press("1")
    expect(page.locator("#status")).to_contain_text("Nobody has seen this picture")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#name")).to_have_text(HOSTILE.replace("\u202e", "\\u202e"))
    expect(page.locator("#view")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0


def test_the_queue_is_filtered(opened: Opened) -> None:
    page = opened()
    page.keyboard.press("3")
    saved(page)
    page.select_option("#filter", "not decided")
    expect(page.locator("#place")).to_have_text("Picture 1 of 2")
    page.select_option("#filter", "authentic")
    expect(page.locator("#status")).to_have_text("No picture is like that.")
    expect(page.locator("#place")).to_have_text("Picture 1 of 3")


def test_on_a_phone_everything_is_reached_by_touch(
    opened: Opened, rows: list[Row], tmp_path: Path
) -> None:
    page = opened(390, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#stage").bounding_box()
    assert box is not None
    assert box["height"] > 300
    for button in page.locator("[data-decision]").all():
        place = button.bounding_box()
        assert place is not None
        assert place["y"] + place["height"] < 844
        assert place["height"] >= 44
    before = page.locator("#zoom").inner_text()
    session = page.context.new_cdp_session(page)
    for kind, apart in (("Start", 20), ("Move", 60), ("Move", 90)):
        points = [{"x": 195 + side * apart, "y": 150, "id": side} for side in (0, 1)]
        event = {"type": f"touch{kind}", "touchPoints": points}
        session.send("Input.dispatchTouchEvent", event)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#zoom")).not_to_have_text(before)
    page.locator("#fit").tap()
    page.locator("[data-tool=eraser]").tap()
    expect(page.locator("#size")).to_be_visible()
    page.evaluate(SETTLED)  # the sizes took room from the picture
    page.touchscreen.tap(*at(page, 55, 35))
    page.locator("[data-decision=manipulated]").tap()
    saved(page)
    mask = truth(rows, tmp_path)
    assert not mask[35, 55]
    assert mask[12, 22]
