"""Provenance that a file states, from real files and hostile ones; the perceptual hash."""

from __future__ import annotations

import io
import struct
import time
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from scipy.fft import dctn

from prompt_iml.pipeline.images.c2pa import find_manifest
from prompt_iml.pipeline.images.decode import ALLOWED, DecodeLimits, decode, decode_picture
from prompt_iml.pipeline.images.exif import MAKE, MODEL, SOFTWARE, TAKEN, exif_texts
from prompt_iml.pipeline.images.provenance import MOST_CHARACTERS, perceptual_hash
from prompt_iml.pipeline.run.schema import row_to_json
from tests.helpers.manifests import certificate, embedded, store

LIMITS = DecodeLimits()
ORIENTATION, EXIF_DIRECTORY, TAKEN_OFFSET = 0x0112, 0x8769, 0x9011
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
XMP = (
    f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{TERM}"/>',
    f"<Iptc4xmpExt:DigitalSourceType>{TERM}</Iptc4xmpExt:DigitalSourceType>",
    f"<Iptc4xmpExt:DigitalSourceType\n rdf:resource = '{TERM}' />",
)
BOMB = "<!DOCTYPE x [<!ENTITY a 'a'>" + "".join(
    f"<!ENTITY a{n} '{f'&a{n - 1 or str()};' * 10}'>" for n in range(1, 10)
)


@cache
def scene() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC)


def save(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image or scene()).save(file, **options)
    else:
        (image or scene()).save(file, kind, **options)
    return file.getvalue()


def exif(**texts: Any) -> Image.Exif:
    made = Image.Exif()
    made[MAKE], made[MODEL] = texts.get("make", "Canon"), "EOS R5"
    made[SOFTWARE] = "Editor 1.0"
    inner = {TAKEN: texts.get("taken", "2024:05:06 07:08:09")}
    made.get_ifd(EXIF_DIRECTORY).update(inner | {TAKEN_OFFSET: texts.get("offset", "+02:00")})
    return made


def facts(data: bytes) -> dict[str, Any]:
    return decode(data, LIMITS).facts


@pytest.mark.parametrize("kind", FORMATS)
def test_exif_of_every_format(kind: str) -> None:
    found = facts(save(kind, exif=exif().tobytes()))
    assert (found["exif_make"], found["exif_model"]) == ("Canon", "EOS R5")
    assert found["exif_software"] == "Editor 1.0"
    assert found["exif_taken"] == "2024-05-06T07:08:09+02:00"


@pytest.mark.parametrize("media_type", sorted(ALLOWED))
def test_a_file_without_any_says_nothing(media_type: str) -> None:
    kind = media_type.removeprefix("image/").upper()
    found = facts(save({"HEIC": "HEIF"}.get(kind, kind)))
    said = [name for name in found if name.startswith(("exif_", "digital", "c2pa"))]
    assert {name: found[name] for name in said} == dict.fromkeys(said)
    assert found["has_c2pa"] is False


def test_a_row_and_its_json_have_them() -> None:
    found = facts(save("JPEG", exif=exif().tobytes()))
    row = {
        "image_id": "0",
        "uri": "a",
        "status": "ok",
        "scanned_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    shown = row_to_json(row | found, ())
    assert shown == shown | found


def test_a_picture_of_pillow_has_them_too() -> None:
    data = save("JPEG", exif=exif().tobytes())
    found = decode_picture(Image.open(io.BytesIO(data)), LIMITS).facts
    assert found == {name: facts(data)[name] for name in found}
    assert found["exif_make"] == "Canon"


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        ("  Canon\n\tInc. \x1b[31m\x7f", "Canon Inc. [31m"),
        ("L\u00f6we\u202e\u2066", "L\u00f6we"),
        ("x" * 100_000, "x" * MOST_CHARACTERS),
        ("\x01\x02", None),
        ("", None),
    ],
)
def test_texts_are_cleaned(make: str, shown: str | None) -> None:
    found = facts(save("PNG", exif=exif(make=make.encode()).tobytes()))
    assert found["exif_make"] == shown


def test_a_text_that_is_not_utf_8_is_latin_1() -> None:
    made = exif(make="L\u00f6we".encode("latin-1"))
    assert facts(save("JPEG", exif=made.tobytes()))["exif_make"] == "L\u00f6we"


@pytest.mark.parametrize(
    ("taken", "offset", "shown"),
    [
        ("2024:05:06 07:08:09", "", "2024-05-06T07:08:09"),
        ("2024:05:06 07:08:09", "north", "2024-05-06T07:08:09"),
        ("0000:00:00 00:00:00", "+02:00", None),
        ("2024:02:30 07:08:09", "", None),
        ("yesterday", "", None),
    ],
)
def test_times(taken: Any, offset: str, shown: str | None) -> None:
    made = exif(taken=taken, offset=offset)
    assert facts(save("JPEG", exif=made.tobytes()))["exif_taken"] == shown


TEXTS = st.text(st.characters(codec="latin-1", exclude_characters="\0"), min_size=1, max_size=50)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(TEXTS, TEXTS, st.sampled_from("<>"))
def test_texts_are_those_of_pillow(make: str, model: str, order: str) -> None:
    made = Image.Exif()
    made.endian = order
    made[MAKE], made[MODEL] = make.encode("latin-1"), model.encode("latin-1")
    block, again = made.tobytes(), Image.Exif()
    again.load(block)
    found = {tag: text.decode("latin-1") for tag, text in exif_texts(block).items()}
    assert found == {MAKE: again[MAKE], MODEL: again[MODEL]}


def directory(*entries: tuple[int, int, int, int], order: str = ">", count: int = -1) -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    body = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return head + struct.pack(f"{order}H", len(entries) if count < 0 else count) + body


@pytest.mark.parametrize(
    "block",
    [
        directory((MAKE, 2, 0xFFFFFFFF, 0xFFFFFFFF)),
        directory((MAKE, 5, 0xFFFFFFFF, 8), (MODEL, 3, 1, 8)),
        directory((EXIF_DIRECTORY, 4, 1, 8), (EXIF_DIRECTORY, 13, 1, 8)),
        directory((EXIF_DIRECTORY, 4, 1, 0xFFFFFFFF)),
        directory(*((tag, 2, 1 << 24, 0) for tag in range(1024)), count=65535) + bytes(1 << 24),
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*",
        b"",
    ],
)  # fmt: skip
def test_hostile_exif_takes_no_time(block: bytes) -> None:
    started = time.process_time()
    texts = exif_texts(block)
    assert time.process_time() - started < 0.2
    assert sum(map(len, texts.values())) < 2 << 20


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.data())
def test_damaged_exif_raises_nothing(data: st.DataObject) -> None:
    block = bytearray(exif().tobytes())
    for _ in range(data.draw(st.integers(0, 8))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    exif_texts(bytes(block[: data.draw(st.integers(0, len(block)))]))
    assert facts(save("PNG", exif=bytes(block)))["perceptual_hash"]


@pytest.mark.parametrize("xmp", XMP)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "AVIF"])
def test_xmp_of_every_format(kind: str, xmp: str) -> None:
    options: dict[str, Any] = (
        {"xmp": xmp.encode()} if kind != "TIFF" else {"tiffinfo": {700: xmp.encode()}}
    )
    assert facts(save(kind, **options))["digital_source_type"] == "trainedAlgorithmicMedia"


@pytest.mark.parametrize("late", [False, True])
def test_xmp_of_a_png_also_behind_its_pixels(late: bool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP[0], zip=True)
    data = save("PNG", pnginfo=text)
    start = data.index(b"iTXt") - 4
    end = start + 12 + struct.unpack_from(">I", data, start)[0]
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    found = facts(moved if late else data)
    assert found["digital_source_type"] == "trainedAlgorithmicMedia"


@pytest.mark.parametrize(
    ("xmp", "shown"),
    [
        (BOMB + "]><x:DigitalSourceType>&a9;</x:DigitalSourceType>", "&a9;"),
        ("<DigitalSourceType" * 50_000, None),
        ("DigitalSourceType" + " \n" * 400_000, None),
        ("DigitalSourceType " + "a:" * 400_000, None),
        ("<a>" * 300_000 + XMP[1], "trainedAlgorithmicMedia"),
        ('DigitalSourceType="\x01\x1b[0m"', "[0m"),
        ("DigitalSourceType='&#xd800;&#x202e;made up'", "\ufffd made up"),
        ("DigitalSourceType=''", None),
    ],
)
def test_hostile_xmp(xmp: str, shown: str | None) -> None:
    data = save("WEBP", xmp=xmp.encode())
    started = time.process_time()
    assert facts(data)["digital_source_type"] == shown
    assert time.process_time() - started < 0.5


C2PA_FORMATS = [kind for kind in sorted(ALLOWED) if kind not in ("image/bmp", "image/heif")]


@pytest.mark.parametrize("media_type", C2PA_FORMATS)
def test_a_manifest_names_its_signer_in_every_format(media_type: str) -> None:
    kind = media_type.removeprefix("image/").upper()
    image = save({"HEIC": "HEIF"}.get(kind, kind))
    signed = certificate(COMMON_NAME="Signer \u00e9", ORGANIZATION_NAME="Some Press")
    data = embedded(image, media_type, store(signed, TERM.encode(), padding=3000))
    found = facts(data)
    assert found["media_type"] == media_type
    assert (found["has_c2pa"], found["c2pa_signer"]) == (True, "Some Press, Signer \u00e9")
    assert found["digital_source_type"] == "trainedAlgorithmicMedia"


def test_a_manifest_elsewhere_in_the_file_is_none() -> None:
    text = PngImagePlugin.PngInfo()
    text.add(b"teXt", store(b""))
    assert facts(save("PNG", pnginfo=text))["has_c2pa"] is False


def test_xmp_goes_before_the_manifest() -> None:
    content = store(b"", TERM.encode())
    xmp = XMP[0].replace("trainedAlgorithmicMedia", "digitalCapture").encode()
    found = facts(embedded(save("JPEG", xmp=xmp), "image/jpeg", content))
    assert found["digital_source_type"] == "digitalCapture"


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.sampled_from(C2PA_FORMATS), st.data())
def test_a_damaged_manifest_raises_nothing(media_type: str, data: st.DataObject) -> None:
    signed = certificate(ORGANIZATION_NAME="Some Press")
    content = bytearray(embedded(b"\xff\xd8", media_type, store(signed, TERM.encode(), 1500)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    find_manifest(bytes(content[: data.draw(st.integers(0, len(content)))]), media_type)


def test_a_manifest_of_any_claimed_size_takes_no_time() -> None:
    head = b"\xff\xff\xff\xff" + store(b"")[4:]
    segment = b"\xff\xeb\0\x0cJP\0\x01\0\0\0\x01"
    payloads = {
        "image/png": b"caBX" + head + b"\x18\x21\x59\xff\xff\x30" * 1_000_000,
        "image/jpeg": segment + store(b"") + segment * 1_000_000,
        "image/tiff": b"jumdc2pa" * 2_000_000,
    }
    started = time.process_time()
    for media_type, payload in payloads.items():
        find_manifest(payload, media_type)
    assert time.process_time() - started < 2


def distance(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_copies_share_a_hash_and_others_do_not(photographs: dict[str, bytes]) -> None:
    hashes = {name: facts(data)["perceptual_hash"] for name, data in photographs.items()}
    for name, data in photographs.items():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
        copy = facts(save("JPEG", small, quality=50))["perceptual_hash"]
        assert distance(copy, hashes[name]) <= 4
        assert all(distance(copy, hashes[other]) >= 20 for other in hashes if other != name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_hash_is_of_the_picture_upright(orientation: int) -> None:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    stored = facts(save("PNG", exif=made.tobytes()))
    turned = scene().copy()
    turned.getexif()[ORIENTATION] = orientation
    upright = facts(save("PNG", ImageOps.exif_transpose(turned)))
    assert stored["perceptual_hash"] == upright["perceptual_hash"]


def test_the_hash_of_a_flat_picture_is_that_of_none() -> None:
    grey = np.full((70, 50, 3), 77, np.uint8)
    assert perceptual_hash(grey, None) == perceptual_hash(grey + 1, 6) == "8000000000000000"


def test_the_hash_is_of_a_cosine_transform() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    low = dctn(pixels.astype(float))[:8, :8]
    expected = np.packbits(low > np.median(low)).tobytes().hex()
    assert perceptual_hash(np.repeat(pixels[..., None], 3, 2), None) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3000, 2), (257, 33)])
def test_any_shape_has_a_hash(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert len(bytes.fromhex(perceptual_hash(pixels, 8))) == 8
