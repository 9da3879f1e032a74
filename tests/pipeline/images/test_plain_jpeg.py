"""Another decoder of plain JPEGs changes pixels at most: no status, no code, no fact."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from prompt_iml.engine.errors import ImageError, Truncated
from prompt_iml.pipeline.images.decode import DecodeLimits, JpegDecoder, decode

LIMITS = DecodeLimits(max_pixels=1_000_000)
FACTS = ("media_type", "width", "height", "exif_orientation", "frame_count", "jpeg_quality")
SCAN = b"\xff\xda"


def photograph(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()[:208, 60:340]).resize((70, 52)).convert(mode)


def save(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def plain() -> dict[str, bytes]:
    image, turned = photograph(), Image.Exif()
    turned[0x0112] = 6
    return {
        "4:2:0": save(image, quality=80),
        "4:2:2": save(image, subsampling=1),
        "4:4:4": save(image, subsampling=0, optimize=True),
        "grey": save(photograph("L")),
        "progressive": save(image, progressive=True),
        "progressive grey": save(photograph("L"), progressive=True),
        "restarts": save(image, restart_marker_blocks=2),
        "turned": save(image, exif=turned),
        "two pictures": save(image, "MPO", save_all=True, append_images=[image]),
        "trailer": save(image) + b"\0\0trailer",
    }


def replaced(payload: bytes, values: dict[int, int]) -> bytes:
    changed = bytearray(payload)
    for at, value in values.items():
        changed[at] = value
    return bytes(changed)


@cache
def strange() -> dict[str, bytes]:
    usual = plain()["4:2:0"]
    frame, scan = usual.index(b"\xff\xc0"), usual.index(SCAN)
    return {
        "CMYK": save(photograph("CMYK")),
        "RGB": save(photograph(), keep_rgb=True),
        "another name": replaced(usual, {frame + 10: 7, scan + 5: 7}),
        "another marker": usual[:-2] + b"\xff\x01\xff\xd9",
        "PNG": save(photograph(), "PNG"),
        "TIFF": save(photograph(), "TIFF", compression="jpeg"),
    }


def black(payload: bytes) -> NDArray[np.uint8]:
    """A decoder that swallows whatever Pillow opens."""
    picture = JpegImagePlugin.JpegImageFile(io.BytesIO(payload))
    return np.zeros((picture.height, picture.width, 3), np.uint8)


def outcome(payload: bytes, jpeg: JpegDecoder | None = None) -> Any:
    """All of a row that is not the picture."""
    try:
        found = decode(payload, LIMITS, jpeg=jpeg)
    except ImageError as error:
        return error.code, error.facts, str(error)
    assert found.image.pixels.shape == (found.height, found.width, 3)
    return [getattr(found, name) for name in FACTS], found.image.luma_table is None


def pixels(payload: bytes, jpeg: JpegDecoder | None = None) -> NDArray[np.uint8]:
    return decode(payload, LIMITS, jpeg=jpeg).image.pixels


@pytest.mark.parametrize("name", plain())
def test_a_plain_jpeg_goes_to_the_decoder(name: str) -> None:
    assert not pixels(plain()[name], black).any()
    assert outcome(plain()[name], black) == outcome(plain()[name])


@pytest.mark.parametrize("name", strange())
def test_anything_else_stays_with_pillow(name: str) -> None:
    assert np.array_equal(pixels(strange()[name], black), pixels(strange()[name]))


@pytest.mark.parametrize("answer", [None, np.zeros((52, 70), np.uint8), np.zeros((70, 52, 3))])
def test_pillow_takes_what_the_decoder_refuses_or_turns(answer: Any) -> None:
    payload = plain()["turned"]
    assert np.array_equal(pixels(payload, lambda _: answer), pixels(payload))


@pytest.mark.parametrize("name", plain())
def test_what_breaks_off_is_truncated_whatever_the_decoder_makes_of_it(name: str) -> None:
    payload = plain()[name]
    with pytest.raises(Truncated):
        pixels(payload[: payload.index(SCAN) + 60], black)


def test_limits_come_first() -> None:
    small = DecodeLimits(max_pixels=70 * 52 - 1)
    with pytest.raises(ImageError, match="70x52"):
        decode(plain()["4:2:0"], small, jpeg=lambda _: pytest.fail("asked"))


Change = Callable[[bytearray], None]


def changes() -> st.SearchStrategy[Change]:
    """One byte, one marker, a piece lost or a piece twice: in the head half of the time."""
    place = st.one_of(st.floats(0, 1, exclude_max=True), st.integers(0, 650))
    what = st.one_of(
        st.binary(min_size=1, max_size=1),
        st.sampled_from([0xD8, 0xD9, 0xDA, 0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xDC, 0x01, 0xD3]).map(
            lambda marker: bytes([0xFF, marker])
        ),
        st.integers(-30, 200),
    )
    return st.builds(_change, place, what)


def _change(place: float, what: bytes | int) -> Change:
    def change(payload: bytearray) -> None:
        at = int(place * len(payload)) if place < 1 else min(int(place), len(payload) - 1)
        if isinstance(what, bytes):
            payload[at : at + len(what)] = what
        elif what < 0:
            del payload[at : at - what]
        else:
            payload[at:at] = payload[at : at + what]

    return change


@settings(derandomize=True, max_examples=600, deadline=None)
@given(st.sampled_from(sorted(plain())), st.lists(changes(), min_size=1, max_size=4))
def test_no_damage_is_told_otherwise(name: str, damage: list[Change]) -> None:
    payload = bytearray(plain()[name])
    for change in damage:
        change(payload)
        payload = payload or bytearray(b"\xff\xd8\xff")
    assert outcome(bytes(payload), black) == outcome(bytes(payload))
