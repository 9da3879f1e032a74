"""Decoding of every format and mode: EXIF, limits, damage, and no undocumented exception."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from prompt_iml.engine.detection.image import estimate_quality
from prompt_iml.engine.errors import (
    DecodeError,
    Empty,
    ImageError,
    NotAnImage,
    TooLarge,
    Truncated,
    Unsupported,
)
from prompt_iml.pipeline.images.decode import (
    ALLOWED,
    MAX_FRAMES,
    Decoded,
    DecodeLimits,
    decode,
    decode_picture,
)
from prompt_iml.pipeline.images.sniff import sniff

LIMITS = DecodeLimits(max_pixels=1_000_000)
ORIENTATION = 0x0112
CLEAN: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """Return four quarters of different colour, whose rotations and mirrors all differ."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 200, 40, 40
    pixels[: height // 2, width // 2 :] = 40, 200, 40
    pixels[height // 2 :, : width // 2] = 40, 40, 200
    return Image.fromarray(pixels)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def samples() -> dict[str, bytes]:
    image = scene()
    heif = io.BytesIO()
    pillow_heif.from_pillow(image).save(heif, quality=-1)
    return {
        "image/jpeg": save(image, "JPEG", **CLEAN["JPEG"]),
        "image/png": save(image, "PNG"),
        "image/webp": save(image, "WEBP", **CLEAN["WEBP"]),
        "image/gif": save(image, "GIF"),
        "image/bmp": save(image, "BMP"),
        "image/tiff": save(image, "TIFF"),
        "image/heic": heif.getvalue(),
        "image/avif": save(image, "AVIF", **CLEAN["AVIF"]),
    }


def opened(image: Image.Image, kind: str, **options: Any) -> Decoded:
    return decode(save(image, kind, **options), LIMITS)


def pixels(image: Image.Image, kind: str, **options: Any) -> NDArray[np.int64]:
    return opened(image, kind, **options).image.pixels.astype(int)


def close(found: NDArray[Any], expected: Any, tolerance: int = 0) -> bool:
    difference = np.abs(found.astype(int) - np.asarray(expected, int))
    return bool(difference.max() <= tolerance)


@pytest.mark.parametrize("media_type", samples())
def test_every_format_decodes(media_type: str) -> None:
    found = decode(samples()[media_type], LIMITS)
    known = {"media_type": media_type, "width": 48, "height": 32, "frame_count": 1}
    assert found.facts == found.facts | known
    assert found.image.pixels.dtype == np.uint8
    assert close(found.image.pixels, scene(), tolerance=8)


def test_every_allowed_format_has_a_sample() -> None:
    assert set(samples()) == ALLOWED - {"image/heif"}


MODES = [(mode, "PNG") for mode in ("1", "L", "P", "RGBA")]
MODES += [(mode, "TIFF") for mode in ("1", "L", "P", "RGBA", "CMYK")]


@pytest.mark.parametrize(("mode", "kind"), MODES)
def test_modes_become_rgb(mode: str, kind: str) -> None:
    image = scene().convert(mode)
    assert close(pixels(image, kind), image.convert("RGB"))


def test_ycck_jpeg_is_not_inverted() -> None:
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert pixels(white, "JPEG").min() > 250


def test_ycbcr_tiff_becomes_rgb() -> None:
    image = scene().convert("YCbCr")
    assert close(pixels(image, "TIFF", compression="jpeg", quality=100), scene(), 12)


def test_lab_tiff_becomes_srgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.buildTransform(srgb, lab, "RGB", "LAB").apply(scene())
    assert close(pixels(image, "TIFF"), scene(), tolerance=8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparent_pixels_lie_over_white(kind: str) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    found = pixels(image, kind, **CLEAN.get(kind, {}))
    assert found[0, :3].tolist() == [[10, 20, 30], [127, 127, 127], [255, 255, 255]]


def test_a_transparent_palette_entry_lies_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert pixels(image, kind, transparency=0).tolist() == [[[255] * 3, [50, 60, 70]]]


def test_a_transparent_grey_lies_over_white() -> None:
    image = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert pixels(image, "PNG", transparency=7)[0, :, 0].tolist() == [255, 8]


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.new("LA", (1, 1), (0, 128))
    assert pixels(image, "PNG").tolist() == [[[127] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    grey = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    found = pixels(Image.fromarray(grey), kind)
    assert found[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_16_bit_white_is_zero() -> None:
    image = Image.fromarray(np.array([[0, 65535]], np.uint16))
    assert pixels(image, "TIFF", tiffinfo={262: 0})[0, :, 0].tolist() == [255, 0]


def test_12_bit_grey_fills_the_range() -> None:
    strip = bytes([0xFF, 0xF0, 0x00])  # two samples of 12 bits: 4095 and 0
    assert decode(tiff(strip, width=2, bits=12), LIMITS).image.pixels[0, :, 0].tolist() == [255, 0]


def tiff(strip: bytes, width: int, bits: int) -> bytes:
    """Return a little-endian TIFF of one row of grey."""
    tags = {256: width, 257: 1, 258: bits, 262: 1, 273: 86, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + strip


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(Unsupported) as caught:
        opened(Image.new(mode, (3, 2)), "TIFF")
    assert caught.value.facts["width"] == 3


def tiff_pages(*pages: dict[int, int | bytes]) -> bytes:
    """Return a little-endian TIFF of chained pages; tag 330 is the number of a page, unchained."""
    subs = {page[330] for page in pages if 330 in page}
    offsets = [8 + sum(6 + 12 * len(page) for page in pages[:i]) for i in range(len(pages) + 1)]
    strips, body = b"", b""
    for number, page in enumerate(pages):
        entries = b""
        for tag, value in sorted(page.items()):
            if isinstance(value, bytes):  # a strip of pixels, or text
                value, strips = offsets[-1] + len(strips), strips + value
            entries += struct.pack("<HHII", tag, 4, 1, offsets[value] if tag == 330 else value)
        following = number + 1 < len(pages) and number + 1 not in subs
        end = offsets[number + 1] if following else 0
        body += struct.pack("<H", len(page)) + entries + struct.pack("<I", end)
    return struct.pack("<2sHI", b"II", 42, 8) + body + strips


def grey_page(width: int, height: int, **more: Any) -> dict[int, int | bytes]:
    """Return the tags of a grey page, with `t254=1` for tag 254."""
    strip = bytes(width * height)
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: strip, 279: len(strip)}
    return tags | {int(name[1:]): value for name, value in more.items()}


RAW_FILES = {
    "DNG": tiff_pages(grey_page(4, 3, t50706=0x401)),
    "of a CFA": tiff_pages(grey_page(4, 3, t262=32803)),
    "linear": tiff_pages(grey_page(4, 3, t262=34892)),
    "with a preview first": tiff_pages(grey_page(4, 3, t330=1), grey_page(8, 6, t262=32803)),
}


@pytest.mark.parametrize("payload", RAW_FILES.values(), ids=RAW_FILES)
def test_a_camera_raw_file_is_refused_by_name(payload: bytes) -> None:
    with pytest.raises(Unsupported, match="a camera raw file"):
        decode(payload, LIMITS)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"IIU\0\x18\0\0\0", "RW2"),
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"II\x1a\0\0\0HEAPCCDR", "CRW"),
        (b"\0MRM", "MRW"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "CR3"),
    ],
)
def test_camera_raw_formats_are_named(head: bytes, name: str) -> None:
    with pytest.raises(Unsupported, match=rf"a camera raw file \({name}\)"):
        decode(head + bytes(64), LIMITS)


@pytest.mark.parametrize(("make", "name"), [(b"NIKON CORPORATION", "NEF"), (b"SONY", "ARW")])
def test_a_raw_file_is_named_by_its_camera(make: bytes, name: str) -> None:
    preview = save(scene(), "TIFF", tiffinfo={254: 1, 271: make.decode()})
    with pytest.raises(Unsupported, match=rf"\({name}\)"):
        decode(preview, LIMITS)


REDUCED_COPIES = {
    "NewSubfileType": tiff_pages(grey_page(4, 3, t254=1), grey_page(8, 6)),
    "SubfileType": tiff_pages(grey_page(4, 3, t255=2), grey_page(8, 6)),
    "larger SubIFD": tiff_pages(grey_page(4, 3, t330=1), grey_page(8, 6)),
}


@pytest.mark.parametrize("payload", REDUCED_COPIES.values(), ids=REDUCED_COPIES)
def test_a_reduced_copy_is_not_taken_for_the_picture(payload: bytes) -> None:
    with pytest.raises(Unsupported, match="reduced copy"):
        decode(payload, LIMITS)


def test_reduced_copies_behind_the_picture_are_passed_over() -> None:
    for later in (
        (grey_page(4, 3, t330=1), grey_page(4, 3)),
        (grey_page(4, 3), grey_page(2, 1, t254=1)),
    ):
        assert decode(tiff_pages(*later), LIMITS).facts["width"] == 4


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


TIFF_SAMPLES = ["?", "u1", "u2", "u4", "i1", "i2", "f2", "f4"]
TIFF_COLOURS = {
    "minisblack": 1, "miniswhite": 1, "grey and alpha": 2, "rgb": 3, "rgba": 4, "separated": 4,
    "cielab": 3,
}  # fmt: skip
TIFF_LAYOUTS = list(
    product(
        TIFF_COLOURS,
        ("contig", "separate"),
        ("<", ">"),
        ({}, {"tile": (16, 16)}),
        (None, "deflate"),
    )
)


def ramps(dtype: str, bands: int) -> NDArray[Any]:
    """Return (32, 48, bands) over the whole range of the samples, in another direction each."""
    x = np.linspace(0, 1, 48)[None, :].repeat(32, 0)
    bands_of_unit = np.stack([x, 1 - x, x * x, 0.2 + 0.8 * x][:bands], -1)
    if dtype == "?":
        return bands_of_unit > 0.5
    if dtype.startswith("f"):
        return bands_of_unit.astype(dtype)
    info = np.iinfo(dtype)
    return (info.min + bands_of_unit * (float(info.max) - info.min)).astype(dtype)


def shown(samples: NDArray[Any], colour: str) -> NDArray[Any]:
    """Return what a viewer shows of (H, W, bands) of unsigned samples, 0..255."""
    unit = samples / (1 if samples.dtype == bool else np.iinfo(samples.dtype).max)
    if colour == "miniswhite":
        unit = 1 - unit
    if colour == "separated":
        unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
    if colour in ("grey and alpha", "rgba"):
        unit = unit[..., :-1] * unit[..., -1:] + 1 - unit[..., -1:]
    return np.broadcast_to(unit * 255, (32, 48, 3))


def tiff_of(samples: NDArray[Any], colour: str, planar: str, order: str, **options: Any) -> bytes:
    if "alpha" in colour or colour == "rgba":
        options["extrasamples"] = ["unassalpha"]
    if samples.shape[-1] == 1:
        samples = samples[..., 0]
    else:
        options["planarconfig"] = planar
        samples = samples if planar == "contig" else np.moveaxis(samples, -1, 0)
    photometric = {"grey and alpha": "minisblack", "rgba": "rgb"}.get(colour, colour)
    file = io.BytesIO()
    tifffile.imwrite(file, samples, byteorder=order, photometric=photometric, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", TIFF_SAMPLES)
def test_every_layout_of_tiff_is_decoded_right_or_refused(dtype: str) -> None:
    """Layouts that tifffile writes; what is known to be readable must be read."""
    for colour, planar, order, tile, compression in TIFF_LAYOUTS:
        samples = ramps(dtype, TIFF_COLOURS[colour])
        if dtype == "?" and samples.shape[-1] > 1:
            continue
        layout = (colour, planar, order, tile, compression)
        payload = tiff_of(samples, colour, planar, order, compression=compression, **tile)
        try:
            found = decode(payload, LIMITS).image.pixels
        except (Unsupported, DecodeError):
            is_common = planar == "contig" and colour in ("minisblack", "rgb", "rgba")
            assert not (is_common and dtype in ("?", "u1", "u2")), layout
            continue
        assert dtype in ("?", "u1", "u2"), layout
        if colour == "cielab":  # the stored numbers have another meaning; as interleaved
            assert close(
                found, decode(tiff_of(samples, colour, "contig", "<"), LIMITS).image.pixels
            )
        else:
            assert np.abs(found - shown(samples, colour)).max() <= 4, layout


def test_subsampled_ycbcr_without_compression_is_refused() -> None:
    tags = {530: (2, 2)}
    with pytest.raises(Unsupported, match="YCbCr"):
        opened(scene().convert("YCbCr"), "TIFF", tiffinfo=tags)


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_reported_and_not_applied(kind: str, orientation: int) -> None:
    found = opened(scene(), kind, exif=tagged(orientation), **CLEAN.get(kind, {}))
    known = {"exif_orientation": orientation, "width": 48, "height": 32}
    assert found.facts == found.facts | known
    assert close(found.image.pixels, scene(), 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_that_pillow_opened_is_decoded_as_its_file(kind: str) -> None:
    payload = save(scene(), kind, **({} if kind == "TIFF" else {"exif": tagged(6)}))
    ours, theirs = decode(payload, LIMITS), decode_picture(Image.open(io.BytesIO(payload)), LIMITS)
    assert theirs.facts.items() <= ours.facts.items()
    assert close(theirs.image.pixels, ours.image.pixels)
    np.testing.assert_array_equal(theirs.image.luma_table, ours.image.luma_table)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "CMYK", "I;16"])
def test_a_picture_that_pillow_made_becomes_rgb(kind: str) -> None:
    made = Image.new(kind, (4, 3))
    assert decode_picture(made, LIMITS).image.pixels.shape == (3, 4, 3)


def test_a_picture_that_pillow_cannot_load_is_an_error_of_decoding() -> None:
    payload = save(scene(), "PNG")
    with pytest.raises(DecodeError):
        decode_picture(Image.open(io.BytesIO(payload[:-60])), LIMITS)
    with pytest.raises(DecodeError, match="float"):
        decode_picture(Image.new("F", (4, 3)), LIMITS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compressed_tiff_keeps_its_stored_frame(orientation: int) -> None:
    found = opened(scene(), "TIFF", exif=tagged(orientation), compression="tiff_lzw")
    assert (found.facts["width"], found.facts["exif_orientation"]) == (48, orientation)
    assert close(found.image.pixels, scene())


def test_an_orientation_that_means_nothing_is_null() -> None:
    assert opened(scene(), "JPEG", exif=tagged(9)).facts["exif_orientation"] is None
    assert opened(scene(), "JPEG", exif=b"Exif\0\0garbage").facts["exif_orientation"] is None
    assert opened(scene(), "JPEG").facts["exif_orientation"] is None


@pytest.mark.parametrize("frames", [1, 3])
def test_exif_behind_the_pixels_of_a_png_is_read(frames: int) -> None:
    others = [scene().rotate(180 * number) for number in range(1, frames)]
    png = save(scene(), "PNG", save_all=frames > 1, append_images=others)
    late = png[:-12] + chunk(b"eXIf", tagged(6).tobytes()[6:]) + png[-12:]
    found = decode(late, LIMITS)
    assert (found.facts["exif_orientation"], found.facts["frame_count"]) == (6, frames)
    assert close(found.image.pixels, scene())


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b""}])
def test_exif_at_the_end_of_a_webp_is_read(options: dict[str, Any]) -> None:
    """The header may declare it or not."""
    webp, exif = save(scene(), "WEBP", **options), tagged(6).tobytes()
    body = webp[8:] + b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    late = decode(b"RIFF" + struct.pack("<I", len(body)) + body, LIMITS)
    assert late.facts["exif_orientation"] == 6
    assert close(late.image.pixels, decode(webp, LIMITS).image.pixels)


def test_exif_behind_other_segments_of_a_jpeg_is_read() -> None:
    jpeg = save(scene(), "JPEG", comment=bytes(60_000))
    exif = tagged(6).tobytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xda"):
        at = jpeg.index(marker)
        late = decode(jpeg[:at] + segment + jpeg[at:], LIMITS)
        assert late.facts["exif_orientation"] == 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames_is_decoded(kind: str) -> None:
    white = Image.new("RGB", (48, 32), "white")
    options = CLEAN.get(kind, {}) | {"save_all": True, "append_images": [white, scene()]}
    found = opened(scene(), kind, **options)
    assert found.facts["frame_count"] == 3
    assert close(found.image.pixels, scene(), 8)


def test_mpo_is_a_jpeg_with_several_frames() -> None:
    found = opened(scene(), "MPO", save_all=True, append_images=[scene()], quality=90)
    known = {"media_type": "image/jpeg", "frame_count": 2, "jpeg_quality": 90}
    assert found.facts == found.facts | known
    assert found.image.jpeg_quality == 90


@pytest.mark.parametrize("count", [3, 6000])
@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_frames_are_counted_up_to_a_limit(kind: str, count: int) -> None:
    found = decode(many_frames(kind, count), LIMITS)
    assert found.facts["frame_count"] == (count if count <= MAX_FRAMES else None)


def many_frames(kind: str, count: int) -> bytes:
    """Return an animation of one pixel, or a TIFF of pages that share their pixel."""
    if kind == "GIF":
        first = save(Image.new("L", (1, 1)), "GIF")
        at = first.index(b",\0\0\0\0")
        return first[:at] + first[at:-1] * count + b";"
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    page = struct.pack("<H", len(entries)) + b"".join(entries)
    ends = [12 + (len(page) + 4) * n for n in range(1, count)] + [0]
    pages = b"".join(page + struct.pack("<I", end) for end in ends)
    return b"II*\0" + struct.pack("<II", 12, 0) + pages


def test_a_damaged_later_frame_leaves_the_first() -> None:
    payload = save(scene(), "GIF", save_all=True, append_images=[scene().rotate(180)])
    second = payload.rindex(b"\x2c\0\0\0\0")
    assert decode(payload[: second + 5], LIMITS).facts["frame_count"] is None


def test_the_luma_table_is_in_natural_order() -> None:
    rising = list(range(1, 65))  # row-major: 1 2 3 ... along the first row
    payload = save(scene(), "JPEG", qtables=[rising, [9] * 64])
    stored = payload[payload.index(b"\xff\xdb") + 5 :][:64]
    assert list(stored[:4]) == [1, 2, 9, 17]  # the file itself goes in zigzag
    table = decode(payload, LIMITS).image.luma_table
    assert table is not None
    assert table.dtype == np.float32
    assert table.tolist() == rising


def test_only_jpeg_has_a_luma_table() -> None:
    found = opened(scene(), "TIFF", compression="jpeg")
    assert found.image.luma_table is None
    assert found.facts["jpeg_quality"] is None


def test_jpeg_quality_is_exact_for_standard_tables() -> None:
    found = [opened(scene(8, 8), "JPEG", quality=q).facts["jpeg_quality"] for q in range(1, 101)]
    assert found == list(range(1, 101))


def test_quality_of_another_table_is_the_nearest() -> None:
    assert estimate_quality(np.full(64, 1.05, np.float32)) == 100
    assert estimate_quality(np.full(64, 60000, np.float32)) == 1


def test_pixels_are_limited_from_the_header() -> None:
    with pytest.raises(TooLarge, match="48x32") as caught:
        decode(samples()["image/png"], DecodeLimits(max_pixels=48 * 32 - 1))
    assert caught.value.facts["height"] == 32
    assert decode(samples()["image/png"], DecodeLimits(max_pixels=48 * 32)).facts["width"] == 48


def test_a_size_beyond_the_schema_is_too_large() -> None:
    payload = bytearray(samples()["image/bmp"])
    payload[18:22] = b"\xff\xff\xff\xff"
    with pytest.raises(TooLarge) as caught:
        decode(bytes(payload), LIMITS)
    assert caught.value.facts["width"] is None


def test_avif_size_is_limited_before_its_decoder() -> None:
    payload = samples()["image/avif"].replace(
        struct.pack(">2I", 48, 32), struct.pack(">2I", 9999, 9999)
    )
    with pytest.raises(TooLarge, match="9999x9999"):
        decode(payload, LIMITS)


def test_scans_of_a_jpeg_are_limited() -> None:
    payload = save(scene(), "JPEG", progressive=True)
    assert decode(payload, DecodeLimits(max_pixels=48 * 32)).facts["width"] == 48
    last = payload.rindex(b"\xff\xda")
    bomb = payload[:-2] + payload[last:-2] * 20 + b"\xff\xd9"
    with pytest.raises(TooLarge, match="30 scans"):
        decode(bomb, DecodeLimits(max_pixels=48 * 32))


def test_large_text_and_profiles_of_a_png_are_passed_over() -> None:
    png = samples()["image/png"]
    zeros = zlib.compress(bytes(20_000_000))
    for large in (
        chunk(b"zTXt", b"a\0\0" + zeros),
        chunk(b"iCCP", b"a\0\0" + zeros),
        chunk(b"iTXt", b"a\0\1\0\0\0" + zeros),
        chunk(b"tEXt", b"a\0" + bytes(1_000_000)) * 65,
    ):
        for payload in (png[:33] + large + png[33:], png[:-12] + large + png[-12:]):
            assert close(decode(payload, LIMITS).image.pixels, scene())


def test_exif_beside_a_large_text_is_read() -> None:
    png = save(scene(), "PNG", exif=tagged(6))
    large = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))
    assert decode(png[:33] + large + png[33:], LIMITS).facts["exif_orientation"] == 6


def test_no_bytes_are_empty() -> None:
    with pytest.raises(Empty):
        decode(b"", LIMITS)


def test_unknown_bytes_are_unsupported_or_no_image() -> None:
    with pytest.raises(Unsupported, match="23 20 48 69"):
        decode(b"# Hi", LIMITS)
    for payload in (b"# Hi", b""):
        with pytest.raises(NotAnImage):
            decode(payload, LIMITS, claims_image=False)


POINTERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n": "a Git LFS pointer",
    b"<!DOCTYPE html><html><body>404</body></html>": "an HTML page",
    b"\xef\xbb\xbf\r\n <!-- a --> <!-- b --> <HTML lang='en'>": "an HTML page",
    b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0">': "an HTML page",
    b"<html><body><svg width='1'></svg>": "an HTML page",
}


@pytest.mark.parametrize(("payload", "name"), POINTERS.items(), ids=range(len(POINTERS)))
def test_pointers_and_pages_are_named(payload: bytes, name: str) -> None:
    with pytest.raises(Unsupported, match=f"^{name}, not "):
        decode(payload, LIMITS)
    with pytest.raises(NotAnImage, match=f"^{name}, not "):
        decode(payload, LIMITS, claims_image=False)


def test_a_format_off_the_list_is_named() -> None:
    with pytest.raises(Unsupported, match="image/jp2") as caught:
        opened(scene(), "JPEG2000")
    assert caught.value.facts == {"media_type": "image/jp2"}
    assert caught.value.stage == "decode"


def test_content_decides_whatever_the_name_claims() -> None:
    found = decode(samples()["image/png"], LIMITS, claims_image=False)
    assert found.facts["media_type"] == "image/png"


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fine": {"quality": 100, "subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
}


def photograph() -> Image.Image:
    noise = np.random.default_rng(0).normal(128, 40, (75, 101, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("media_type", samples())
def test_an_incomplete_image_is_truncated(media_type: str) -> None:
    payload = samples()[media_type]
    for part in (0.4, 0.7):
        with pytest.raises(Truncated) as caught:
            decode(payload[: int(part * len(payload))], LIMITS)
        assert caught.value.facts["media_type"] == media_type


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_that_lacks_only_its_end_is_decoded(options: dict[str, Any]) -> None:
    payload = save(photograph(), "JPEG", **options)
    whole = decode(payload, LIMITS)
    for cut in (1, 2):
        found = decode(payload[:-cut], LIMITS)
        assert found.facts == whole.facts
        assert close(found.image.pixels, whole.image.pixels)


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_that_lacks_pixels_is_truncated(options: dict[str, Any]) -> None:
    payload = save(photograph(), "JPEG", **options)
    for cut in (5, 9, 30, 200, len(payload) // 2):
        with pytest.raises(Truncated):
            decode(payload[:-cut], LIMITS)
    with pytest.raises(Truncated):
        decode(payload[:-200] + bytes(5), LIMITS)


def test_a_jpeg_that_ends_before_a_restart_is_truncated() -> None:
    payload = save(photograph(), "JPEG", restart_marker_blocks=3)
    for marker in range(0xD0, 0xD8):
        with pytest.raises(Truncated):
            decode(payload[: payload.rindex(bytes([0xFF, marker]))], LIMITS)


def test_a_progressive_jpeg_that_lacks_whole_scans_is_truncated() -> None:
    payload = save(photograph(), "JPEG", progressive=True)
    for _ in range(9):
        payload = payload[: payload.rindex(b"\xff\xda")]
        with pytest.raises(Truncated):
            decode(payload, LIMITS)


def test_facts_survive_a_failure() -> None:
    payload = save(scene(), "JPEG", quality=80, exif=tagged(3))
    with pytest.raises(Truncated) as caught:
        decode(payload[:-50], LIMITS)
    assert caught.value.facts == {
        "media_type": "image/jpeg",
        "width": 48,
        "height": 32,
        "exif_orientation": 3,
        "jpeg_quality": 80,
    }


def test_damage_within_is_corrupt() -> None:
    payload = samples()["image/png"]
    start = payload.index(b"IDAT") + 4
    with pytest.raises(DecodeError) as caught:
        decode(payload[:start] + b"\xff" * 8 + payload[start + 8 :], LIMITS)
    assert caught.value.code == "corrupt"


def test_nothing_is_written_to_stderr() -> None:
    """Pillow warns of an animation without frames; libtiff prints what it finds wrong."""
    png, tiff = samples()["image/png"], save(scene(), "TIFF", compression="tiff_lzw")
    script = "import sys; from prompt_iml.pipeline.images.decode import *\n"
    script += "from prompt_iml.engine.errors import ImageError\n"
    for payload in (
        png[:33] + chunk(b"acTL", bytes(8)) + png[33:],
        tiff[:8] + bytes(40) + tiff[48:],
    ):
        script += f"try: decode({payload!r}, DecodeLimits())\nexcept ImageError: pass\n"
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "image/avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heif"),
        (b"\xff\x0a", "image/jxl"),
        (b"8BPS\0\1", "image/vnd.adobe.photoshop"),
        (b'<?xml version="1.0"?><svg/>', "image/svg+xml"),
        (b"P6\n1 1\n", "image/x-portable-anymap"),
        (b"BM, a kind of car, is text", None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"P", None),
        (b"\n", None),
        (b"", None),
    ],
)
def test_sniff(head: bytes, media_type: str | None) -> None:
    assert sniff(head) == media_type


def mutations() -> st.SearchStrategy[bytes]:
    """Return a sample with some bytes changed and, at times, its end cut off."""
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))

    def mutate(payload: bytes, changes: list[tuple[float, int]], keep: float) -> bytes:
        damaged = bytearray(payload)
        for place, value in changes:
            damaged[int(place * len(damaged))] = value
        return bytes(damaged[: int(keep * len(damaged))])

    sample = st.sampled_from(sorted(samples().values()))
    keep = st.one_of(st.just(1.0), st.floats(0, 1))
    return st.builds(mutate, sample, st.lists(change, max_size=8), keep)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(mutations())
@example(b"\xff\xd8\xff\xda\0\x02\x01")
def test_no_bytes_raise_anything_but_image_errors(payload: bytes) -> None:
    try:
        found = decode(payload, LIMITS)
    except ImageError:
        return
    assert found.image.pixels.shape == (found.facts["height"], found.facts["width"], 3)
