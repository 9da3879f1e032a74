"""Content, safety and memory of the report."""

from __future__ import annotations

import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml.engine.errors import MissingInput, UsageError
from prompt_iml.pipeline.report.originals import find
from prompt_iml.pipeline.report.page import text
from prompt_iml.pipeline.report.pictures import (
    FOUND,
    contact_sheet,
    mask_layer,
    outline,
    overlay,
    thumbnail,
)
from prompt_iml.pipeline.report.report import write_report
from prompt_iml.pipeline.run.schema import image_id
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample
from tests.helpers.outputs import POLICY, commit, failed, scored

HOSTILE = "<script>alert(1)</script>\u202egpj.exe"


class Page(HTMLParser):
    """Parser of a page's tags and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def images(self) -> list[str]:
        return [tag["src"] or "" for name, tag in self.tags if name == "img"]


def page_of(output: str, **options: Any) -> str:
    return storage.read_bytes(write_report(output, **options)).decode()


@pytest.fixture
def mixed(store: Any, photographs: Mapping[str, bytes], tar_of: Callable[..., bytes]) -> str:
    """Write an output of a plain object, a tar shard and a Parquet file with images."""
    jpeg, png = photographs["rocket.jpg"], photographs["chelsea.png"]
    plain = store.put("in/plain.jpg", jpeg)
    shard = store.put("in/shard.tar", tar_of({"a/1.jpg": jpeg, "a/2.png": png}))
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"no", png]}), sink)
    parquet = store.put("in/rows.parquet", sink.getvalue())
    rows = [
        scored(plain, jpeg, 0.3),
        scored(shard, png, 0.9, "a/2.png"),
        scored(parquet, png, 0.6, "1"),
        failed(f"{store.uri}/in/{HOSTILE}", message=HOSTILE),
    ]
    commit(f"{store.uri}/out", rows)
    return f"{store.uri}/out"


def test_every_kind_of_source_is_pictured_highest_score_first(mixed: str) -> None:
    page = page_of(mixed)
    names = re.findall(r"<h3><bdi>(.*?)</bdi>", page)
    assert names == ["a/2.png", "1", "plain.jpg"]
    assert len([uri for uri in Page(page).images() if uri.startswith("data:image/jpeg")]) == 3


@pytest.fixture
def output(tmp_path: Any) -> str:
    return f"file://{tmp_path}/out"


@pytest.fixture
def photograph(tmp_path: Any, photographs: Mapping[str, bytes]) -> tuple[str, bytes]:
    (tmp_path / "a.jpg").write_bytes(photographs["rocket.jpg"])
    return f"file://{tmp_path}/a.jpg", photographs["rocket.jpg"]


def test_the_report_lies_beside_the_results_or_at_the_path_given(output: str) -> None:
    commit(output, [failed("file:///x")])
    assert write_report(output) == f"{output}/report.html"
    assert write_report(output, path=f"{output}/else.html") == f"{output}/else.html"
    assert storage.read_bytes(f"{output}/else.html") == storage.read_bytes(f"{output}/report.html")


def test_the_page_loads_nothing_and_runs_its_own_script_alone(
    output: str, photograph: tuple[str, bytes]
) -> None:
    commit(output, [scored(*photograph, 0.9), failed(f"file:///{HOSTILE}", message=HOSTILE)])
    page = page_of(output)
    parsed = Page(page)
    names = [name for name, _ in parsed.tags]
    assert names.count("script") == 1
    assert not {"link", "iframe", "object", "a"} & set(names)
    assert all(uri.startswith("data:image/") for uri in parsed.images())
    attributes = {name for _, tag in parsed.tags for name in tag}
    assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert "url(" not in page
    assert "@import" not in page
    assert "<script>alert(1)</script>\\u202egpj.exe" in parsed.texts


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_names_the_digest_of_what_is_inline(output: str, kind: str) -> None:
    commit(output, [failed("file:///x")])
    page = page_of(output)
    (code,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(code.encode()).digest()).decode()
    (policy,) = [tag["content"] or "" for _, tag in Page(page).tags
                 if tag.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_a_name_cannot_leave_its_attribute(output: str, photograph: tuple[str, bytes]) -> None:
    commit(output, [scored(*photograph, 0.9, member='"><b onload="alert(1)" {{ 1 }}.jpg')])
    page = Page(page_of(output))
    assert not [tag for _, tag in page.tags if "onload" in tag]
    assert '"><b onload="alert(1)" {{ 1 }}.jpg' in page.texts


@pytest.mark.parametrize("name", ["\ud800", "\n", "\x00", "\u2066", "<b>", '"', "'", "&"])
def test_text_is_harmless_and_encodes(name: str) -> None:
    shown = text(name)
    assert not set(shown) & set("<>\"'\n\x00\u2066")
    shown.encode()


def test_an_image_that_changed_or_vanished_is_not_shown(
    output: str, photograph: tuple[str, bytes], tmp_path: Any
) -> None:
    uri, data = photograph
    gone = [scored(f"{uri}.gone", data, 0.8), scored(f"{uri}.tar", data, 0.7, "x.jpg")]
    commit(output, [scored(uri, data, 0.9), *gone])
    (tmp_path / "a.jpg").write_bytes(data + b"changed")
    page = Page(page_of(output))
    assert page.texts.count("the source is missing or has changed since the scan") == 3
    assert {uri[:15] for uri in page.images()} == {"data:image/png;"}


def test_no_more_pictures_than_the_limit(output: str, photograph: tuple[str, bytes]) -> None:
    rows = [scored(*photograph, score) for score in (0.1, 0.7, 0.9)]
    commit(output, [*rows, failed("file:///x"), failed("file:///y")])
    page = page_of(output, limit=1, sample=0)
    assert page.count('<li class="card') == 1
    assert "0.900" in page
    assert "2 are only in the table" in page
    assert "1 more are in the table" in page
    assert page_of(output, limit=0, sample=0).count('<li class="card') == 0


def test_masks_are_shown_where_they_are_believed(
    output: str, photograph: tuple[str, bytes]
) -> None:
    """Not on what is labelled authentic; on request where uncertain or of low confidence."""
    rows = [
        scored(*photograph, 0.9) | {"mask_confidence": 0.624},
        scored(*photograph, 0.8) | {"mask_confidence": 0.2},
        scored(*photograph, 0.7),
        scored(*photograph, 0.6, label="uncertain") | {"mask_confidence": 0.7},
        scored(*photograph, 0.2),
    ]
    commit(output, rows, policy=POLICY | {"least_confidence": 0.3})
    cards = page_of(output).split('<li class="card')[1:]
    assert [card.count('class="mask"') for card in cards] == [1, 1, 1, 1, 0]
    assert [card.count(" doubtful") for card in cards] == [0, 1, 0, 1, 0]
    assert [card.count("not believed") for card in cards] == [0, 1, 0, 1, 0]
    assert [card.count("mask confidence") for card in cards] == [1, 1, 0, 1, 0]
    assert "0.62" in cards[0]


def test_counts_by_status_label_and_code(output: str, photograph: tuple[str, bytes]) -> None:
    refused = [failed("file:///x"), failed("file:///y"), failed("file:///z", code="empty")]
    commit(output, [scored(*photograph, 0.9), scored(*photograph, 0.2), *refused])
    page = page_of(output)
    tiles = dict(re.findall(r'class="tile (\w+)"><dt>\w+</dt><dd>(\d+)', page))
    assert tiles == {
        "images": "5",
        "manipulated": "1",
        "uncertain": "0",
        "authentic": "1",
        "failed": "3",
        "skipped": "0",
    }
    assert '<th scope="row">corrupt</th><td>2</td>' in page
    assert "2026-01-02 03:04:05 to 03:04:09 UTC" in page


def test_an_untrained_model_is_noted(output: str) -> None:
    commit(output, [failed("file:///x")], model="prompt-iml-micro@untrained")
    assert "prompt-iml-micro@untrained is not trained" in page_of(output)


def test_the_rate_is_of_the_last_launch_that_scanned(output: str) -> None:
    run = commit(output, [failed("file:///x")])
    assert "images/s" not in page_of(output)
    run.write_summary({"scanned_now": 30, "seconds": 4.0})
    assert "7.5 images/s" in page_of(output)
    run.write_summary({"scanned_now": 0, "seconds": 4.0})
    assert "images/s" not in page_of(output)


def test_an_incomplete_scan_is_reported_as_such(output: str, tmp_path: Any) -> None:
    commit(output, [failed("file:///x")])
    assert "not complete" not in page_of(output)
    (tmp_path / "out/_runs/r1/manifest.json").unlink()
    (tmp_path / "out/results/.part-of-one-that-is-being-written").touch()
    assert "The scan is not complete" in page_of(output)


def test_several_runs_need_a_run_id(output: str) -> None:
    commit(output, [failed("file:///x")], run_id="r1")
    commit(output, [failed("file:///y"), failed("file:///z")], run_id="r2")
    with pytest.raises(UsageError, match=r"--run-id, one of r1, r2"):
        write_report(output)
    assert "file:///z" in page_of(output, run_id="r2")
    assert "file:///z" not in page_of(output, run_id="r1")


def test_nothing_to_report_is_one_line(output: str, tmp_path: Any) -> None:
    for fresh in (f"{tmp_path}", output, f"{tmp_path}/nowhere"):
        with pytest.raises(MissingInput, match=r"no run|no results"):
            write_report(fresh)
    commit(output, [failed("file:///x")])
    with pytest.raises(MissingInput, match="r9"):
        write_report(output, run_id="r9")


def test_a_shard_is_read_no_further_than_the_last_image_wanted() -> None:
    read: list[str] = []

    def samples() -> Iterator[Sample]:
        for member in "abcd":
            read.append(member)
            yield Sample("file:///s.tar", member, data=member.encode())

    keys = {(image_id("file:///s.tar", m), hashlib.sha256(m.encode()).hexdigest()) for m in "ac"}
    assert [data for _, data in find(samples(), keys)] == [b"a", b"c"]
    assert read == ["a", "b", "c"]


@pytest.fixture
def disc() -> np.ndarray:
    y, x = np.mgrid[:120, :160]
    inside: np.ndarray = np.hypot(x - 80, y - 60) < 30
    return inside


def test_an_overlay_tints_inside_and_leaves_the_rest(disc: np.ndarray) -> None:
    pixels = np.full((120, 160, 3), 100, np.uint8)
    marked = overlay(pixels, disc)
    assert tuple(marked[60, 109]) == FOUND
    assert tuple(marked[60, 110]) == (255, 255, 255)
    assert (marked[60, 80] == np.rint(100 + 0.42 * (np.array(FOUND) - 100))).all()
    assert (marked[:25] == 100).all()
    assert (pixels == 100).all()


def test_an_outline_ignores_the_frame() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:, :10] = True
    edge = np.zeros((20, 20), bool)
    edge[:, 8:10] = True
    assert np.array_equal(outline(mask, 2), edge)


def test_a_layer_covers_its_thumbnail(disc: np.ndarray) -> None:
    pixels = np.zeros((120, 160, 3), np.uint8)
    with Image.open(io.BytesIO(thumbnail(pixels, 80))) as jpeg:
        assert jpeg.size == (80, 60)
    with Image.open(io.BytesIO(mask_layer(disc, 80))) as png:
        alpha = np.asarray(png.convert("RGBA"))[..., 3]
    assert alpha.shape == (60, 80)
    assert alpha[30, 40] == 107
    assert alpha[30, 40 - 15] == 255
    assert alpha[0, 0] == 0


def test_a_contact_sheet_holds_three_pictures_an_example(disc: np.ndarray) -> None:
    pixels = np.full((120, 160, 3), 100, np.uint8)
    sheet = contact_sheet([("a", pixels, disc, disc), ("b", pixels, None, ~disc & disc)], 1, 100)
    assert sheet.shape == (2 * (75 + 15) + 2, 3 * 100 + 4 * 5 + 5, 3)
    assert (sheet == 100).all(axis=2).mean() > 0.3


def test_what_a_file_says_of_itself_is_shown(output: str, photographs: Mapping[str, bytes]) -> None:
    said = {"exif_make": HOSTILE, "exif_taken": "2024-05-06T07:08:09", "has_c2pa": True}
    row = scored(f"{output}/a.jpg", photographs["rocket.jpg"], 0.9)
    commit(output, [row | said | {"c2pa_signer": "Some Press"}, row | {"image_id": "0" * 32}])
    page = page_of(output)
    assert page.count("<dt>camera</dt>") == page.count("<dt>C2PA manifest</dt>") == 1
    assert "in the name of Some Press; not verified" in page
    assert "<script>alert" not in page
