"""Which JPEG files are plain: any decoder may give their pixels, and libjpeg would give some.

The second is told without decoding. What libjpeg refuses, it refuses in a segment; what is wrong
in the entropy-coded data between them it conceals, as long as the next marker comes. So it decodes
whatever runs in known segments to the end, if it decodes the segments alone, one pixel large.
"""

from __future__ import annotations

import io
import re

from PIL import JpegImagePlugin
from PIL.ImageFile import ImageFile

_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
_FRAMES = (b"\xff\xc0", b"\xff\xc2")  # baseline, progressive
_TABLES = (b"\xff\xc4", b"\xff\xdb", b"\xff\xdd")
_IGNORED = (*(bytes([0xFF, 0xE0 + n]) for n in range(16)), b"\xff\xfe")
_BEHIND_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffing nor a restart
_ONE_PIXEL = bytes([0, 1, 0, 1])
_LUMA_SAMPLING = ((1, 1), (2, 1), (1, 2), (2, 2))
_MAX_SIDE = 65500  # libjpeg's


def is_plain(payload: bytes, picture: ImageFile) -> bool:
    """Whether the file is a plain JPEG: grey or YCbCr of 8 bits, baseline or progressive, whole.

    Args:
        payload: the whole file.
        picture: as Pillow opened it.
    """
    if not isinstance(picture, JpegImagePlugin.JpegImageFile) or not _is_usual(picture):
        return False
    segments = _without_scans(payload)
    if segments is None:
        return False
    try:
        JpegImagePlugin.JpegImageFile(io.BytesIO(segments)).load()
    except (OSError, SyntaxError):
        return False
    return True


def _is_usual(picture: JpegImagePlugin.JpegImageFile) -> bool:
    """In colours, sampling and size: as cameras and editors write it."""
    if max(picture.size) > _MAX_SIDE:
        return False
    sampling = [(across, down) for _, across, down, _ in picture.layer]
    if sampling == [(1, 1)]:
        return True
    names = [name for name, *_ in picture.layer]
    is_ycbcr = names == [1, 2, 3] and picture.info.get("adobe_transform", 1) == 1
    return is_ycbcr and sampling[0] in _LUMA_SAMPLING and sampling[1:] == [(1, 1), (1, 1)]


def _without_scans(payload: bytes) -> bytes | None:
    """The file without scans' data and metadata, one pixel large; None: not all is known."""
    kept, at = [_SOI], len(_SOI)
    while (marker := payload[at : at + 2]) != _EOI:
        end = at + 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
        segment = payload[at:end]
        if marker in _FRAMES:
            kept.append(segment[:5] + _ONE_PIXEL + segment[9:])
        elif marker in (*_TABLES, _SOS):
            kept.append(segment)
        elif marker not in _IGNORED:
            return None
        if marker == _SOS:
            behind = _BEHIND_SCAN.search(payload, end)
            end = behind.start() if behind else len(payload)
        at = end
    return b"".join([*kept, _EOI])
