"""420 truncated, corrupt, hostile and odd files: each becomes one image or one error."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from prompt_iml.engine.errors import ImageError, NotAnImage
from prompt_iml.pipeline.images.decode import ALLOWED, Decoded, DecodeLimits, decode
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, sniff

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "data" / "bad_images"
CODES = {"corrupt", "empty", "truncated", "unsupported", "too_large"}

# Exceptions, by the start of the file's digest.
SIGNED_16_BIT = {"134d1e30"}  # opens in Pillow; refused here, having no range to scale
SEPARATE_16_BIT = {"07bd74b6", "0a143fb6"}  # Pillow opens them and mixes up bytes and planes
OS2_BITMAPS = {  # 16-bit sizes, which the manifest reads as 32-bit ones
    *("2bfe7393", "7c792354", "9ca7ea19", "a2efaed4", "b389b1c6"),
    *("bbfc2a43", "c2f54069", "e58eb53d", "e60b5f35", "ec42a213"),
}

Row = dict[str, str]
Outcome = Decoded | ImageError

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/bad_images")


def payload(row: Row) -> bytes:
    return (FOLDER / row["path"]).read_bytes()


def outcome(row: Row) -> Outcome:
    try:
        return decode(payload(row), DecodeLimits())
    except ImageError as error:
        return error


@pytest.fixture(scope="module")
def outcomes() -> list[tuple[Row, Outcome]]:
    """Decode all files of the manifest in threads, as a scan does."""
    with (FOLDER / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with ThreadPoolExecutor(4) as pool:
        return list(zip(rows, pool.map(outcome, rows), strict=True))


def test_every_file_has_one_outcome(outcomes: list[tuple[Row, Outcome]]) -> None:
    assert len(outcomes) == 420
    codes = {found.code for _, found in outcomes if isinstance(found, ImageError)}
    assert codes == CODES


def test_errors_have_a_message_and_facts_of_the_schema(outcomes: list[tuple[Row, Outcome]]) -> None:
    for row, found in outcomes:
        if isinstance(found, ImageError):
            assert str(found), row["path"]
            assert " at 0x" not in str(found), row["path"]
            sizes = found.facts.get("width"), found.facts.get("height")
            assert all(size is None or 0 < size < 2**31 for size in sizes), row["path"]


def test_what_opens_elsewhere_opens_here(outcomes: list[tuple[Row, Outcome]]) -> None:
    refused = {
        row["sha256"][:8]
        for row, found in outcomes
        if row["pillow_status"] == "ok"
        and sniff(payload(row)[:HEAD_BYTES]) in ALLOWED
        and not isinstance(found, Decoded)
    }
    assert refused == SIGNED_16_BIT | SEPARATE_16_BIT


def test_images_have_their_declared_size(outcomes: list[tuple[Row, Outcome]]) -> None:
    for row, found in outcomes:
        if not isinstance(found, Decoded):
            continue
        size = (found.facts["height"], found.facts["width"])
        assert found.image.pixels.shape == (*size, 3), row["path"]
        assert found.image.pixels.dtype == np.uint8, row["path"]
        if row["declared_dims"] and row["sha256"][:8] not in OS2_BITMAPS:
            width, height = (abs(int(side)) for side in row["declared_dims"].split("x"))
            assert size == (height, width), row["path"]


def test_declared_bombs_are_too_large(outcomes: list[tuple[Row, Outcome]]) -> None:
    for row, found in outcomes:
        allowed = sniff(payload(row)[:HEAD_BYTES]) in ALLOWED
        if allowed and row["pillow_status"] == "open:DecompressionBombError":
            assert isinstance(found, ImageError), row["path"]
            assert found.code == "too_large", row["path"]


def test_unknown_bytes_without_a_claim_are_no_images(outcomes: list[tuple[Row, Outcome]]) -> None:
    for row, _ in outcomes:
        data = payload(row)
        if sniff(data[:HEAD_BYTES]) is None:
            with pytest.raises(NotAnImage):
                decode(data, DecodeLimits(), claims_image=False)
