"""Provenance: what the file of an image says of itself, and a hash of how the image looks.

Nothing that a file says is verified: anybody can write it, and most services remove it. It is read
within bounds, and what is hostile or damaged is None.
"""

from __future__ import annotations

import html
import re
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps
from PIL import Image as PilImage

from prompt_iml.pipeline.images.c2pa import Manifest, find_manifest
from prompt_iml.pipeline.images.exif import (
    MAKE,
    MODEL,
    SOFTWARE,
    TAKEN,
    TAKEN_OFFSET,
    exif_texts,
)

MOST_CHARACTERS = 200  # of a text in a row

_XMP_BYTES = 1 << 20
_TIME = "%Y:%m:%d %H:%M:%S"
_OFFSET = re.compile(r"[+-]\d\d:\d\d", re.A)
# As an attribute, as a resource of an element, or as its text.
_SOURCE_TYPE = re.compile(
    rb"DigitalSourceType(?:\s+[\w:]+:resource)?\s*(?:=\s*[\"']|>\s*)([^\"'<>]{1,200})"
)
_VOCABULARY = "digitalsourcetype/"  # end of the URI of IPTC's terms, and of C2PA's own

_BAND = 256  # rows that are converted to grey at once
_HASH_SIDE, _HASH_LOW = 32, 8
# The lowest rows of a DCT-II. That of SciPy would take longer to import than a small image to scan.
_COSINES = 2 * np.cos(
    np.pi * np.arange(_HASH_LOW)[:, None] * (2 * np.arange(_HASH_SIDE) + 1) / (2 * _HASH_SIDE)
)


def provenance(picture: PilImage.Image, payload: bytes, media_type: str) -> dict[str, Any]:
    """Return all columns of what the bytes of a file say of themselves.

    Args:
        picture: the file, opened.
        payload: its bytes.
        media_type: its type.

    Returns:
        What `metadata` returns, with `has_c2pa` and `c2pa_signer`.
    """
    said = metadata(picture, payload if media_type == "image/tiff" else None)
    manifest = find_manifest(payload, media_type)
    named = manifest or Manifest()
    said["digital_source_type"] = said["digital_source_type"] or _term(named.source_type)
    return said | {"has_c2pa": manifest is not None, "c2pa_signer": _clean(named.signer)}


def metadata(picture: PilImage.Image, tiff: bytes | None = None) -> dict[str, Any]:
    """Return the columns of what the EXIF and the XMP of a picture of Pillow say.

    Args:
        picture: the picture.
        tiff: the bytes of a TIFF file, which are its EXIF.

    Returns:
        `exif_make`, `exif_model`, `exif_software`, `exif_taken` and `digital_source_type`.
    """
    exif = tiff or picture.info.get("exif")
    texts = exif_texts(exif) if isinstance(exif, bytes) else {}
    return {
        "exif_make": _clean(texts.get(MAKE)),
        "exif_model": _clean(texts.get(MODEL)),
        "exif_software": _clean(texts.get(SOFTWARE)),
        "exif_taken": _time(texts),
        "digital_source_type": _source_type(picture),
    }


def perceptual_hash(pixels: NDArray[np.uint8], orientation: int | None) -> str:
    """Return 64 bits, as 16 hexadecimal digits, that similar images share most of.

    The image is turned upright, made grey (ITU-R BT.601) and 32 x 32 pixels (Lanczos). Of its
    two-dimensional cosine transform (DCT-II) the lowest 8 x 8 coefficients are taken, row by row;
    a bit says whether one is above their median. (C. Zauner, "Implementation and benchmarking of
    perceptual image hash functions", 2010, section 3.2.1.)

    Args:
        pixels: (H, W, 3) uint8 RGB in the stored frame.
        orientation: EXIF orientation, 1 to 8; None: upright.
    """
    grey = _grey(pixels)
    if orientation not in (None, 1):
        grey.getexif()[ExifTags.Base.Orientation] = orientation
        grey = ImageOps.exif_transpose(grey)
    small = grey.resize((_HASH_SIDE, _HASH_SIDE), PilImage.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(small, np.float64) @ _COSINES.T
    low = low.round(6)  # those of a flat image are 0
    return np.packbits(low > np.median(low)).tobytes().hex()


def _grey(pixels: NDArray[np.uint8]) -> PilImage.Image:
    """Return the image in grey, made in bands, as Pillow takes 4 bytes for each pixel in colour."""
    height, width = pixels.shape[:2]
    grey = PilImage.new("L", (width, height))
    for top in range(0, height, _BAND):
        band = np.ascontiguousarray(pixels[top : top + _BAND])
        grey.paste(PilImage.fromarray(band).convert("L"), (0, top))
    return grey


def _clean(text: bytes | None) -> str | None:
    """Return a text of a file in one line, cut to `MOST_CHARACTERS`; None if nothing prints."""
    try:
        decoded = (text or b"").decode()
    except UnicodeDecodeError:
        decoded = (text or b"").decode("latin-1")
    line = "".join(c if c.isprintable() else " " for c in decoded)
    return " ".join(line.split())[:MOST_CHARACTERS].rstrip() or None


def _time(texts: dict[int, bytes]) -> str | None:
    """Return when the picture was taken, as ISO 8601, with the offset to UTC if the file has it."""
    offset = _OFFSET.fullmatch(_clean(texts.get(TAKEN_OFFSET)) or "")
    with suppress(ValueError):  # 0000:00:00 is what a camera without a clock writes
        taken = datetime.strptime(_clean(texts.get(TAKEN)) or "", _TIME)
        return taken.isoformat() + (offset[0] if offset else "")
    return None


def _source_type(picture: PilImage.Image) -> str | None:
    """Return the digital source type of the picture's XMP."""
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode(errors="replace")
    found = _SOURCE_TYPE.search(xmp[:_XMP_BYTES]) if isinstance(xmp, bytes) else None
    return _term(found[1]) if found else None


def _term(uri: bytes | None) -> str | None:
    """Return the term that a URI of IPTC's vocabulary names; another text as it is."""
    text = html.unescape(_clean(uri) or "")
    return _clean(text.rpartition(_VOCABULARY)[2].encode(errors="replace"))
