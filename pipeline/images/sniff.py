"""Detection of an image's media type from its first bytes, not from names or HTTP headers."""

from __future__ import annotations

import re

HEAD_BYTES = 512

# Longer prefixes come before the shorter ones that they begin with.
_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0\x10\0\0\0CR", "image/x-canon-cr2"),
    (b"II\x1a\0\0\0HEAPCCDR", "image/x-canon-crw"),
    (b"\0MRM", "image/x-minolta-mrw"),
    (b"IIRO", "image/x-olympus-orf"),
    (b"IIRS", "image/x-olympus-orf"),
    (b"MMOR", "image/x-olympus-orf"),
    (b"IIU\0", "image/x-panasonic-rw2"),
    (b"FUJIFILMCCD-RAW", "image/x-fuji-raf"),
    (b"FOVb", "image/x-sigma-x3f"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
    (b"\xff\x4f\xff\x51", "image/j2c"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"II\xbc", "image/jxr"),
    (b"8BPS\0", "image/vnd.adobe.photoshop"),
    (b"gimp xcf ", "image/x-xcf"),
    (b"v/1\x01", "image/x-exr"),
    (b"#?RADIANCE", "image/vnd.radiance"),
    (b"DDS ", "image/vnd-ms.dds"),
    (b"SIMPLE  =", "image/fits"),
    (b"icns", "image/x-icns"),
    (b"qoif", "image/qoi"),
    (b"farbfeld", "image/x-farbfeld"),
    (b"BPG\xfb", "image/bpg"),
    (b"FLIF", "image/flif"),
    (b"\x8aMNG\r\n\x1a\n", "image/x-mng"),
    (b"\x8bJNG\r\n\x1a\n", "image/x-jng"),
    (b"AT&TFORM", "image/vnd.djvu"),
    (b"\xd7\xcd\xc6\x9a", "image/wmf"),
    (b"\x59\xa6\x6a\x95", "image/x-sun-raster"),
    (b"\x01\xda\x00\x01", "image/x-sgi"),
    (b"\x01\xda\x01\x01", "image/x-sgi"),
    (b"/* XPM */", "image/x-xpixmap"),
    (b"%!PS-Adobe", "application/postscript"),
)

_GIT_LFS = re.compile(
    rb"version https?://(git-lfs\.github\.com|hawser\.github\.com|git-media\.io)/"
)
# Byte order mark, XML declaration and comments may come before the page.
_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*<(!doctype\s+html|html|head)[\s>]",
    re.I | re.S,
)

RAW_FORMATS = {
    "image/x-canon-cr2": "CR2",
    "image/x-canon-cr3": "CR3",
    "image/x-canon-crw": "CRW",
    "image/x-fuji-raf": "RAF",
    "image/x-minolta-mrw": "MRW",
    "image/x-olympus-orf": "ORF",
    "image/x-panasonic-rw2": "RW2",
    "image/x-sigma-x3f": "X3F",
}
"""Names of the camera raw formats that the first bytes tell; others look like a TIFF."""

_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"heim": "image/heic",
    b"heis": "image/heic",
    b"hevc": "image/heic",
    b"hevx": "image/heic",
    b"hevm": "image/heic",
    b"hevs": "image/heic",
    b"mif1": "image/heif",
    b"mif2": "image/heif",
    b"msf1": "image/heif",
    b"crx ": "image/x-canon-cr3",
}


def sniff(head: bytes) -> str | None:
    """Return the media type of the image that starts with `head`, or None if it is unknown.

    Formats outside the allow-list of `pipeline.images.decode` are detected too, so that an error
    can name them.

    Args:
        head: the first `HEAD_BYTES` bytes, or all of them; fewer may leave a type undetected.
    """
    for prefix, media_type in _PREFIXES:
        if head.startswith(prefix):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        return _sniff_brand(head)
    return _sniff_weak(head)


def describe_stand_in(head: bytes) -> str | None:
    """Return what the bytes are if they stand in for a file that is elsewhere, else None.

    Args:
        head: the first `HEAD_BYTES` bytes, or all of them.
    """
    if _GIT_LFS.match(head):
        return "a Git LFS pointer, not the image: run git lfs pull"
    if _HTML.match(head):
        return "an HTML page, not an image"
    return None


def describe_raw(name: str | None) -> str:
    """Return the message for a camera raw file, of a named format if it is known."""
    return f"a camera raw file{f' ({name})' if name else ''}: convert it to JPEG or TIFF first"


def _sniff_brand(head: bytes) -> str | None:
    """Detect ISO base media by the major brand, except that `mif1` means only "some codec"."""
    media_type = _BRANDS.get(head[8:12])
    if media_type not in (None, "image/heif"):
        return media_type
    end = min(int.from_bytes(head[:4], "big"), len(head))
    compatible = {head[at : at + 4] for at in range(16, end - 3, 4)}
    if compatible & {b"avif", b"avis"}:
        return "image/avif"
    return media_type


def _sniff_weak(head: bytes) -> str | None:
    """Detect formats whose magic number alone is too short: a second field must agree."""
    if head[:2] == b"BM" and head[15:18] == b"\0\0\0":  # size of the second header, below 256
        return "image/bmp"
    if head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and head[5:6] == b"\0" and head[9:10] == b"\0":
        return "image/x-icon"
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3] in b"\n\r\t ":
        return "image/x-portable-anymap" if len(head) > 2 else None
    if head[:1] == b"\n" and head[1:2] in b"\0\2\3\4\5" and head[2:3] == b"\1" and len(head) > 2:
        return "image/x-pcx"
    if b"<svg" in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<svg", b"<?xml")):
        return "image/svg+xml"
    return None
