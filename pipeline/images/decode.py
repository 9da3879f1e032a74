"""Decoding of the bytes of one image into pixels and facts about its file.

The format is detected from the bytes and must be on the allow-list; only the decoder of that format
is used. The result for any bytes is one `Decoded` or one `ImageError`.

The pixels are RGB as a plain viewer shows them, in the stored frame. EXIF orientation is reported,
not applied; colour profiles are not applied; CMYK, YCbCr, Lab and palettes are converted; 16-bit
grey is scaled; transparent pixels are composited over white; of several pictures the first (in HEIF
the primary) is decoded. HEIF's own rotation is part of its coding and is applied. Float and 32-bit
samples have no agreed range and are refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)
from PIL import Image as PilImage
from PIL.ImageFile import ImageFile

from prompt_iml.engine.detection.image import Image, estimate_quality
from prompt_iml.engine.errors import (
    DecodeError,
    Empty,
    NotAnImage,
    TooLarge,
    Truncated,
    Unsupported,
)
from prompt_iml.pipeline.images.provenance import metadata, perceptual_hash, provenance
from prompt_iml.pipeline.images.sniff import (
    HEAD_BYTES,
    RAW_FORMATS,
    describe_raw,
    describe_stand_in,
    sniff,
)

# Decoders are set for the whole process. The pixel limit bounds what a decoder allocates before the
# check of `DecodeLimits`. Each image uses one thread. Rows carry the errors, so Python's warnings,
# Pillow's log and libtiff, which writes to stderr itself, are silenced (permanently, because
# `catch_warnings` is not thread-safe).
PilImage.MAX_IMAGE_PIXELS = 2**29
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.options.DECODE_THREADS = 1
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/png": PngImagePlugin.PngImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/gif": GifImagePlugin.GifImageFile,
    "image/bmp": BmpImagePlugin.BmpImageFile,
    "image/tiff": TiffImagePlugin.TiffImageFile,
    "image/heic": pillow_heif.HeifImageFile,
    "image/heif": pillow_heif.HeifImageFile,
    "image/avif": AvifImagePlugin.AvifImageFile,
}

ALLOWED = frozenset(_DECODERS)
"""Media types that can be scanned."""

# Exceptions that decoders raise on hostile bytes, including undocumented ones.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError,
    MemoryError, NameError, OSError, RuntimeError, SyntaxError, SystemError, TypeError, ValueError,
    ImageCms.PyCMSError, PilImage.DecompressionBombError, struct.error, zlib.error,
)  # fmt: skip

# Decoders distinguish their errors only by the message.
_TOO_LARGE = re.compile(r"too large|limit", re.I)
_PNG_TEXT_LIMIT = re.compile("MAX_TEXT_(CHUNK|MEMORY)")
_TRUNCATED = re.compile(r"truncated|end of file|insufficient|incomplete", re.I)
_UNSUPPORTED = re.compile(r"unsupported|not (yet )?supported|cannot handle|(pixel|raw) mode", re.I)

# A TIFF of these colour spaces, CFA and LinearRaw, is a raw file.
_RAW_PHOTOMETRIC = (32803, 34892)
_RAW_MAKERS = {"CANON": "CR2", "NIKON": "NEF", "PENTAX": "PEF", "SONY": "ARW"}
_DNG_VERSION = 50706
_SUBIFDS = 330
_BAND = 256  # rows that are converted at once
MAX_FRAMES = 5000  # that are counted one by one
_MAX_SUBIFDS = 8  # each may be as large as the file

# Any marker but a restart; what else follows 0xff within a scan is data or padding.
_JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")

_EXTENT_BOX = re.compile(rb"\0\0\0\x14ispe\0{4}(.{4})(.{4})", re.S)

_UNDO_ORIENTATION = {
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_90,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits of the memory and time to decode one image.

    Attributes:
        max_pixels: width times height, checked before any pixel is decoded; at most 2**30. The
            default lets the pictures of 200-megapixel phones through. A scan takes about 12
            bytes a pixel.
        max_passes: limit of a JPEG's scans times pixels, as a multiple of `max_pixels`. A
            progressive JPEG has about 10 scans; a hostile one thousands, of a few bytes each.
    """

    max_pixels: int = 210_000_000
    max_passes: int = 20


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded image, with the columns of its row that decoding finds.

    Attributes:
        image: pixels in the stored frame, the JPEG luma table and quality.
        facts: `media_type`, one of `ALLOWED`; `width` and `height` of the pixels;
            `exif_orientation`, 1..8, not applied, None when there is none; `frame_count`, None
            when the pictures in the file cannot be counted, or are more than `MAX_FRAMES` in a
            format without their number; `jpeg_quality`, None if not JPEG; what the file says of
            itself, and its hash (`pipeline.images.provenance`).
    """

    image: Image
    facts: dict[str, Any]


def decode(
    payload: bytes,
    limits: DecodeLimits,
    *,
    media_type: str | None = None,
    claims_image: bool = True,
) -> Decoded:
    """Decode the bytes of one image. Thread-safe.

    Args:
        payload: the whole file.
        limits: limits of memory and time.
        media_type: type of the payload; None: detected here.
        claims_image: whether the name has an image's extension; bytes of no known format are then
            `Unsupported`, otherwise `NotAnImage`, whose row is skipped.

    Raises:
        DecodeError: the image cannot be decoded; `facts` are the columns known so far. No other
            exception is raised.
    """
    media_type = media_type or sniff(payload[:HEAD_BYTES])
    facts: dict[str, Any] = {"media_type": _allowed(media_type, payload, claims_image)}
    _check_boxes(payload, facts, limits)
    _check_directories(payload, facts)
    try:
        return _decode_whole(payload, facts, limits)
    except _BROKEN as error:
        raise _as_decode_error(error, payload, facts) from error


def decode_picture(picture: PilImage.Image, limits: DecodeLimits) -> Decoded:
    """Convert a picture of Pillow; one that was opened from a file has the pixels of `decode`.

    A JPEG that was opened and not changed keeps its quantisation table; what `convert`, `resize`
    and the like return has none. A TIFF is in the frame that Pillow has rotated it to.

    Returns:
        The picture, with `width`, `height`, `exif_orientation`, `jpeg_quality`, the hash and
        what its EXIF and XMP say as facts.

    Raises:
        DecodeError: the picture cannot be decoded.
    """
    try:
        _check_size(*picture.size, {}, limits)
        _check_samples(picture, {})
        picture.load()
        image = Image(_to_rgb(picture, {"exif_orientation": None}), _luma_table(picture))
        is_tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
        orientation = None if is_tiff else _orientation(picture, b"")
        said = metadata(picture)
    except _BROKEN as error:
        raise DecodeError(str(error) or type(error).__name__) from error
    height, width = image.pixels.shape[:2]
    facts = {"width": width, "height": height, "exif_orientation": orientation}
    facts |= {"perceptual_hash": perceptual_hash(image.pixels, orientation)} | said
    return Decoded(image, facts | {"jpeg_quality": image.jpeg_quality})


def _decode_whole(payload: bytes, facts: dict[str, Any], limits: DecodeLimits) -> Decoded:
    """Decode and fill `facts`; text and profiles that Pillow finds too large are passed over."""
    try:
        return _decode_once(payload, facts, limits)
    except ValueError as error:
        if not _PNG_TEXT_LIMIT.search(str(error)):
            raise
    return _decode_once(_without_text(payload), facts, limits)


def _decode_once(payload: bytes, facts: dict[str, Any], limits: DecodeLimits) -> Decoded:
    picture = _DECODERS[facts["media_type"]](io.BytesIO(payload))
    width, height = _stored_size(picture)
    facts |= {"width": _int32(width), "height": _int32(height)}
    facts["exif_orientation"] = _orientation(picture, payload)
    luma_table = _luma_table(picture)
    quality = None if luma_table is None else estimate_quality(luma_table)
    facts["jpeg_quality"] = quality
    _check_size(width, height, facts, limits, _count_scans(payload, picture))
    _check_samples(picture, facts)
    pixels = _to_rgb(_load(picture, payload), facts)
    facts["height"], facts["width"] = pixels.shape[:2]
    facts |= provenance(picture, payload, facts["media_type"])
    facts["perceptual_hash"] = perceptual_hash(pixels, facts["exif_orientation"])
    facts["frame_count"] = _count_frames(payload, picture)
    return Decoded(Image(pixels, luma_table, quality), facts)


def _png_chunks(payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk of a PNG, with its length and checksum."""
    start = 8
    while start + 8 <= len(payload):
        length, kind = struct.unpack_from(">I4s", payload, start)
        yield kind, start, start + length + 12
        start += length + 12


def _riff_chunks(payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk of a WebP, with its length, without its padding."""
    start = 12
    while start + 8 <= len(payload):
        kind, length = struct.unpack_from("<4sI", payload, start)
        yield kind, start, start + 8 + length
        start += 8 + length + length % 2


def _without_text(payload: bytes) -> bytes:
    """Return a PNG without its text and colour profile, which the pixels do not depend on."""
    kept = (
        payload[start:end]
        for kind, start, end in _png_chunks(payload)
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
    )
    return payload[:8] + b"".join(kept)


def _allowed(media_type: str | None, payload: bytes, claims_image: bool) -> str:
    if media_type in ALLOWED:
        return media_type
    if media_type in RAW_FORMATS:
        raise Unsupported(describe_raw(RAW_FORMATS[media_type]), {"media_type": media_type})
    if media_type is not None:
        raise Unsupported(f"{media_type} is not scanned", {"media_type": media_type})
    stand_in = describe_stand_in(payload[:HEAD_BYTES])
    if stand_in is not None:
        raise (Unsupported if claims_image else NotAnImage)(stand_in)
    if not claims_image:
        raise NotAnImage("neither the name nor the bytes are those of an image")
    if not payload:
        raise Empty("0 bytes")
    raise Unsupported(f"the first bytes, {payload[:8].hex(' ')}, are of no known image format")


def _stored_size(picture: ImageFile) -> tuple[int, int]:
    if isinstance(picture, TiffImagePlugin.TiffImageFile):  # its `size` is after rotation
        return picture.tag_v2[256], picture.tag_v2[257]
    return picture.size


def _int32(value: int) -> int | None:
    """Return a size if it fits the column, else None; such an image is refused later."""
    return value if 0 <= value < 2**31 else None


def _orientation(picture: PilImage.Image, payload: bytes) -> int | None:
    is_tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
    if not is_tiff and "exif" not in picture.info:
        exif = _late_exif(picture, payload)
        if exif is None:
            return None
        picture.info["exif"] = exif
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN:
        return None  # an image with damaged EXIF is scanned
    return value if value in range(1, 9) else None


def _late_exif(picture: PilImage.Image, payload: bytes) -> bytes | None:
    """Return the EXIF that Pillow does not see: behind a PNG's pixels, undeclared in a WebP."""
    if isinstance(picture, PngImagePlugin.PngImageFile) and b"eXIf" in payload:
        for kind, start, end in _png_chunks(payload):
            if kind == b"eXIf":
                return payload[start + 8 : end - 4]
    if isinstance(picture, WebPImagePlugin.WebPImageFile) and b"EXIF" in payload:
        for kind, start, end in _riff_chunks(payload):
            if kind == b"EXIF":
                return payload[start + 8 : end]
    return None


def _luma_table(picture: PilImage.Image) -> NDArray[np.float32] | None:
    """Return the table of the first component, (64,) float32 in natural order."""
    if not isinstance(picture, JpegImagePlugin.JpegImageFile) or not picture.layer:
        return None
    table = picture.quantization.get(picture.layer[0][3])
    return None if table is None else np.maximum(np.array(table, np.float32), 1)


def _check_boxes(payload: bytes, facts: dict[str, Any], limits: DecodeLimits) -> None:
    """Check the size of HEIF and AVIF, whose decoders report large images as corrupt."""
    if facts["media_type"] in ("image/avif", "image/heic", "image/heif"):
        for width, height in _EXTENT_BOX.findall(payload[:65536]):
            _check_size(int.from_bytes(width, "big"), int.from_bytes(height, "big"), facts, limits)


def _check_directories(payload: bytes, facts: dict[str, Any]) -> None:
    """Refuse a TIFF whose first picture is only a preview: a raw file or a reduced copy."""
    if facts["media_type"] != "image/tiff":
        return
    first = _read_directory(payload)
    offsets = _values(first, _SUBIFDS)[:_MAX_SUBIFDS]
    others = [_read_directory(payload, at) for at in offsets if isinstance(at, int)]
    is_reduced = _number(first, 254) & 1 or _number(first, 255) == 2
    maker = str((*_values(first, ExifTags.Base.Make), "")[0]).split(" ")[0].rstrip("\0").upper()
    if _DNG_VERSION in first:
        raise Unsupported(describe_raw("DNG"), facts)
    if any(_number(each, 262) in _RAW_PHOTOMETRIC for each in (first, *others)):
        raise Unsupported(describe_raw(_RAW_MAKERS.get(maker)), facts)
    if is_reduced and maker in _RAW_MAKERS:
        raise Unsupported(describe_raw(_RAW_MAKERS[maker]), facts)
    if is_reduced or any(_area(each) > _area(first) for each in others):
        raise Unsupported("the first page is a reduced copy: save the picture by itself", facts)


def _read_directory(
    payload: bytes, offset: int | None = None
) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the tags at an offset of a TIFF, None: of its first page; none if damaged."""
    try:
        header = payload[: 16 if payload[2] == 43 else 8]  # 43: BigTIFF
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file = io.BytesIO(payload)
        file.seek(directory.next if offset is None else offset)
        directory.load(file)
    except _BROKEN:
        return TiffImagePlugin.ImageFileDirectory_v2()
    return directory


def _values(directory: TiffImagePlugin.ImageFileDirectory_v2, tag: int) -> tuple[Any, ...]:
    """Return the values of a tag; none if it is missing or damaged."""
    try:
        value = directory.get(tag, ())
    except _BROKEN:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _number(directory: TiffImagePlugin.ImageFileDirectory_v2, tag: int) -> int:
    """Return the first value of a tag; 0 if it is no whole number."""
    value = (*_values(directory, tag), 0)[0]
    return value if isinstance(value, int) else 0


def _area(directory: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    return _number(directory, 256) * _number(directory, 257)


def _check_size(
    width: int, height: int, facts: dict[str, Any], limits: DecodeLimits, scans: int = 1
) -> None:
    """Raise `TooLarge`, from the header alone, for an image above the limits."""
    size = f"{width}x{height} pixels"
    facts = facts | {"width": _int32(width), "height": _int32(height)}
    if width * height > limits.max_pixels:
        raise TooLarge(f"{size}, more than {limits.max_pixels} in all", facts)
    if scans * width * height > limits.max_passes * limits.max_pixels:
        raise TooLarge(f"{scans} scans over {size}", facts)


def _count_scans(payload: bytes, picture: ImageFile) -> int:
    """Return a lower bound of a JPEG's scans; 1, uncounted, for an interleaved baseline."""
    if not isinstance(picture, JpegImagePlugin.JpegImageFile) or picture.fp is None:
        return 1
    header_bytes = 2 * picture.layers + 6
    start = picture.fp.tell() - header_bytes  # Pillow stops after the first scan's header
    interleaved = payload[start : start + 3] == bytes([0, header_bytes, picture.layers])
    if interleaved and "progressive" not in picture.info:
        return 1
    return payload.count(b"\xff\xda")


def _check_samples(picture: PilImage.Image, facts: dict[str, Any]) -> None:
    """Refuse samples without an agreed range, and layouts of TIFF that Pillow decodes wrongly."""
    tags = getattr(picture, "tag_v2", {})
    if picture.mode in ("I", "F") or tags.get(339, (1,))[0] == 2:
        raise Unsupported("samples are float, signed or 32-bit", facts)
    is_compressed = tags.get(259, 1) != 1
    is_wide = not is_compressed and max(tags.get(258, (1,))) > 8
    is_separate = tags.get(284) == 2 and tags.get(277, 1) > 1
    if is_separate and (is_wide or picture.mode in ("LA", "La", "PA", "LAB")):
        raise Unsupported("TIFF: this kind of separate colour planes is not read", facts)
    if tags.get(262) == 6 and not is_compressed and tags.get(530, (1, 1)) != (1, 1):
        raise Unsupported("TIFF: subsampled YCbCr without compression is not read", facts)


def _load(picture: ImageFile, payload: bytes) -> ImageFile:
    """Decode the pixels; return the picture, reopened if it is a JPEG that lacks only its end."""
    start = 0 if picture.fp is None else picture.fp.tell()
    try:
        picture.load()
    except OSError:
        if not isinstance(picture, JpegImagePlugin.JpegImageFile):
            raise
        if not _has_all_scans(payload, start, picture) or not _has_all_pixels(payload):
            raise
        picture = _open_endless(payload)
        picture.load()
    return picture


def _has_all_scans(payload: bytes, start: int, jpeg: JpegImagePlugin.JpegImageFile) -> bool:
    """Return whether a JPEG without an end has scans of each coefficient of each component.

    Args:
        start: where the first scan's header ends.
    """
    missing = {(component[0], at) for component in jpeg.layer for at in range(64)}
    at = max(0, payload.rfind(b"\xff\xda", 0, start))
    while found := _JPEG_SEGMENT.search(payload, at):
        at = found.start()
        kind, length = payload[at + 1], int.from_bytes(payload[at + 2 : at + 4], "big")
        if kind == 0xD9 or at + 2 + length > len(payload):
            return False  # it has an end, and another fault; or it breaks off in a header
        if kind == 0xDA:
            if length != 2 * payload[at + 4] + 6:
                return False
            missing -= _covered(payload[at + 4 : at + 2 + length], "progressive" in jpeg.info)
        at += 2 + length
    return not missing


def _covered(header: bytes, is_progressive: bool) -> set[tuple[int, int]]:
    """Return component and index of the coefficients that a scan brings to full precision."""
    after = 1 + 2 * header[0]
    first, last, precision = header[after : after + 3] if is_progressive else (0, 63, 0)
    indices = range(0) if precision & 15 else range(first, last + 1)
    return {(component, at) for component in header[1:after:2] for at in indices}


def _next_restart(payload: bytes) -> bytes:
    """Return the restart marker that would follow at the end of a JPEG's last scan."""
    scan = payload.rfind(b"\xff\xda")
    last, marker = max((payload.rfind(bytes([0xFF, m]), scan), m) for m in range(0xD0, 0xD8))
    return bytes([0xFF, 0xD0 if last < 0 else 0xD0 + (marker + 1) % 8])


def _open_endless(payload: bytes, following: bytes = b"") -> JpegImagePlugin.JpegImageFile:
    """Open a JPEG without an end, as if some bytes and an end came after it."""
    file = io.BytesIO(payload.rstrip(b"\xff") + following + b"\xff\xd9")
    return JpegImagePlugin.JpegImageFile(file)


def _has_all_pixels(payload: bytes) -> bool:
    """Return whether the pixels of a JPEG without an end are independent of what follows."""
    restart = _next_restart(payload)
    pictures = (
        _open_endless(payload, following)
        for following in (b"", *(bits * 64 + restart + bits * 64 for bits in (b"\x55", b"\xfe")))
    )
    with contextlib.suppress(*_BROKEN):
        return len({hashlib.sha256(picture.tobytes()).digest() for picture in pictures}) == 1
    return False


def _to_rgb(picture: PilImage.Image, facts: dict[str, Any]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8, read-only."""
    image = picture
    if isinstance(picture, TiffImagePlugin.TiffImageFile):  # `load` has rotated it
        turn = _UNDO_ORIENTATION.get(facts["exif_orientation"])
        image = picture if turn is None else picture.transpose(turn)
    if image.mode.startswith("I;16"):
        return _scale_to_8_bits(picture, np.asarray(image))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    if image.has_transparency_data:
        image = _over_white(image)
    return _in_bands(image)


def _in_bands(image: PilImage.Image) -> NDArray[np.uint8]:
    """Convert a picture band by band: Pillow makes two copies of what it gives to NumPy."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        rgb = band if band.mode == "RGB" else band.convert("RGB")
        pixels[top : top + _BAND] = np.asarray(rgb)
    pixels.flags.writeable = False
    return pixels


def _over_white(image: PilImage.Image) -> PilImage.Image:
    if image.mode == "La":
        image = image.convert("LA")
    layer = image.convert("RGBA")
    white = PilImage.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white


def _scale_to_8_bits(picture: PilImage.Image, grey: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Scale (H, W) of 12 or 16 bits to (H, W, 3) of 8, over the whole range of the samples."""
    tags = getattr(picture, "tag_v2", {})
    top = 4095 if tags.get(258) == (12,) else 65535
    levels = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    if tags.get(262) == 0:  # WhiteIsZero
        levels = levels[::-1]
    return np.repeat(levels.take(grey, mode="clip")[:, :, None], 3, axis=2)


def _count_frames(payload: bytes, picture: ImageFile) -> int | None:
    """Count the pictures in the file; called last, because counting moves to another frame."""
    try:
        if "mp" in picture.info:
            picture = JpegImagePlugin.jpeg_factory(io.BytesIO(payload))
        if isinstance(picture, GifImagePlugin.GifImageFile | TiffImagePlugin.TiffImageFile):
            return _count_by_seeking(picture)
        count = getattr(picture, "n_frames", 1)
        return count if 0 < count < 2**31 else None
    except _BROKEN:
        return None  # a later frame is damaged; the first was decoded


def _count_by_seeking(
    picture: GifImagePlugin.GifImageFile | TiffImagePlugin.TiffImageFile,
) -> int | None:
    """Count pictures by going to each, without decoding it; None beyond `MAX_FRAMES`."""
    for count in range(1, MAX_FRAMES + 1):
        try:
            if isinstance(picture, GifImagePlugin.GifImageFile):
                picture._seek(count, update_image=False)
            else:
                picture._seek(count)
        except EOFError:
            return count
    return None


def _as_decode_error(error: Exception, payload: bytes, facts: dict[str, Any]) -> DecodeError:
    reason = str(error) or type(error).__name__
    message = f"{facts['media_type']}: {reason}"
    if isinstance(error, PilImage.DecompressionBombError | MemoryError):
        return TooLarge(message, facts)
    if _TOO_LARGE.search(reason):
        return TooLarge(message, facts)
    if _UNSUPPORTED.search(reason):
        return Unsupported(message, facts)
    if _TRUNCATED.search(reason) or _is_truncated(payload, facts["media_type"]):
        return Truncated(message, facts)
    return DecodeError(message, facts)


def _is_truncated(payload: bytes, media_type: str) -> bool:
    """Return whether the payload is shorter than its container declares."""
    if media_type == "image/jpeg":
        return b"\xff\xd9" not in payload
    if media_type == "image/png":
        return b"IEND" not in payload
    if media_type == "image/gif":
        return not payload.rstrip(b"\0").endswith(b";")
    if media_type == "image/bmp":
        return int.from_bytes(payload[2:6], "little") > len(payload)
    if media_type == "image/webp":
        return int.from_bytes(payload[4:8], "little") + 8 > len(payload)
    if media_type == "image/tiff":
        offset = payload[8:16] if b"+" in payload[2:4] else payload[4:8]
        return int.from_bytes(offset, "little" if payload[:1] == b"I" else "big") >= len(payload)
    return _boxes_end(payload) > len(payload)


def _boxes_end(payload: bytes) -> int:
    """Return the declared end of the last top-level box of an ISO base media file."""
    end = 0
    while end + 8 <= len(payload):
        size = int.from_bytes(payload[end : end + 4], "big")
        if size == 1:
            size = int.from_bytes(payload[end + 8 : end + 16], "big")
        if size < 8:
            break
        end += size
    return end
