"""`from prompt_iml import Detector`: what it takes, gives and refuses."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from prompt_iml import Detector, Finding, ImageError, UsageError
from prompt_iml.pipeline.report.pictures import FOUND
from tests.helpers.forged import forged


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(threads=1)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    """A forged picture that is labelled manipulated, turned by its EXIF."""
    return forged("JPEG", orientation=6)


def facts(finding: Finding) -> tuple[object, ...]:
    return (finding.label, finding.score, finding.regions, finding.mask_confidence,
            finding.mask.tobytes(), finding.threshold)  # fmt: skip


def test_a_path_bytes_a_picture_and_an_array_agree(detector: Detector, tmp_path: Path) -> None:
    (path := tmp_path / "forged.png").write_bytes(data := forged("PNG"))
    picture = Image.open(path)
    given = [str(path), path, data, picture, np.asarray(picture)]
    found = [detector.detect(each) for each in given]
    assert len({facts(finding) for finding in found}) == 1
    assert found[0].mask.shape == (picture.height, picture.width)


def test_an_opened_jpeg_keeps_what_its_file_tells(detector: Detector, jpeg: bytes) -> None:
    opened = detector.detect(Image.open(io.BytesIO(jpeg)))
    assert facts(opened) == facts(detector.detect(jpeg))
    assert opened.row["jpeg_quality"] == 90
    assert opened.label == "manipulated"


def test_the_mask_is_in_the_stored_frame_and_the_overlay_upright(
    detector: Detector, jpeg: bytes
) -> None:
    finding = detector.detect(jpeg)
    height, width = finding.mask.shape
    shown = finding.overlay()
    assert shown.size == (height, width) != (width, height)
    marked = np.isclose(np.asarray(shown), FOUND, atol=1).all(axis=2)
    assert (marked <= np.rot90(finding.mask, -1)).all()
    assert marked.any()


def test_several_come_in_order_with_the_errors_of_those_that_cannot_be_read(
    detector: Detector, jpeg: bytes, tmp_path: Path
) -> None:
    (path := tmp_path / "a.jpg").write_bytes(jpeg)
    first, broken, gone, last = detector.detect_many([path, jpeg[:900], tmp_path / "gone", jpeg])
    assert isinstance(first, Finding)
    assert isinstance(last, Finding)
    assert facts(first) == facts(last)
    assert isinstance(broken, ImageError)
    assert isinstance(gone, ImageError)
    assert (broken.code, gone.code) == ("truncated", "not_found")
    with pytest.raises(ImageError, match="No such file"):
        detector.detect(tmp_path / "gone")


def test_pictures_are_taken_as_they_are_needed(detector: Detector, jpeg: bytes) -> None:
    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield jpeg

    next(iter(detector.detect_many(endless())))
    assert len(taken) <= 3


@pytest.mark.parametrize(
    ("given", "message"),
    [(7, "of type int is no picture"), ("http://example.org/a.jpg", "cannot read")],
)
def test_what_is_no_picture_is_refused(detector: Detector, given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detector.detect(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "kind"), [((4, 4, 3), "float32"), ((4, 4), "uint8"), ((0, 4, 3), "uint8")]
)
def test_other_arrays_are_refused(detector: Detector, shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{shape} {kind} is no picture")):
        detector.detect(np.zeros(shape, kind))


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        Detector(threads=0)
    with pytest.raises(UsageError, match="no precision bf16"):
        Detector(precision="bf16")


def test_one_picture_is_not_several(detector: Detector) -> None:
    with pytest.raises(UsageError, match="use detect"):
        detector.detect_many("photo.jpg")


def test_a_picture_beyond_the_limit_is_refused() -> None:
    small = Detector(max_pixels=100)
    for given in (forged("PNG"), Image.new("RGB", (20, 20))):
        with pytest.raises(ImageError, match="more than 100"):
            small.detect(given)


def test_a_finding_shows_itself_in_a_notebook(
    detector: Detector, jpeg: bytes, tmp_path: Path
) -> None:
    (path := tmp_path / "a.jpg").write_bytes(jpeg)
    finding = detector.detect(path)
    png = finding._repr_png_()
    assert png
    assert max(Image.open(io.BytesIO(png)).size) <= 640
    assert "manipulated" in repr(finding)
    assert "data:image/png;base64," in finding._repr_html_()
    path.write_bytes(jpeg + b"\0")
    with pytest.raises(UsageError, match=r"a\.jpg has changed"):
        finding.overlay()
    assert "<img" not in finding._repr_html_()
    assert "manipulated" in finding._repr_html_()


def test_threads_share_a_detector(detector: Detector, jpeg: bytes) -> None:
    found: list[Finding] = []
    run = [threading.Thread(target=lambda: found.append(detector.detect(jpeg))) for _ in range(4)]
    for each in run:
        each.start()
    for each in run:
        each.join()
    assert len({facts(finding) for finding in found}) == 1
    assert len(found) == 4


def test_the_package_is_imported_at_once() -> None:
    code = "import sys, prompt_iml; sys.exit(bool({'numpy', 'pydantic', 'ray'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_exif_of_a_turned_picture_is_in_its_row(detector: Detector, jpeg: bytes) -> None:
    assert Image.open(io.BytesIO(jpeg)).getexif()[ExifTags.Base.Orientation] == 6
    assert detector.detect(jpeg).row["exif_orientation"] == 6
