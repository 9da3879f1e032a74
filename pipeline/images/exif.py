"""Texts of EXIF, read within bounds: Pillow would convert a value of any type and size."""

from __future__ import annotations

import struct
from contextlib import suppress

MAKE, MODEL, SOFTWARE, TAKEN, TAKEN_OFFSET = 0x010F, 0x0110, 0x0131, 0x9003, 0x9011

MOST_ENTRIES = 1024  # of a directory: cameras write some 60
MOST_BYTES = 1024  # of a text

_EXIF_DIRECTORY = 0x8769
_TEXTS = (2, 129)  # ASCII, and UTF-8 since EXIF 3.0
_PREFIX = b"Exif\0\0"


def exif_texts(block: bytes) -> dict[int, bytes]:
    """Return the texts of the first directory and of the EXIF directory below it, by tag.

    What is damaged, or no text, is left out.

    Args:
        block: the EXIF of a file, or a whole TIFF file.
    """
    block = block.removeprefix(_PREFIX).removeprefix(_PREFIX)  # some writers repeat it
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    texts: dict[int, bytes] = {}
    if order:
        with suppress(struct.error):  # a position outside of the block
            below = _add_texts(texts, block, order, 4)
            if below:
                _add_texts(texts, block, order, below)
    return texts


def _add_texts(texts: dict[int, bytes], block: bytes, order: str, pointer: int) -> int:
    """Add the texts of a directory; return the pointer to the EXIF directory in it, or 0.

    Args:
        texts: gets the texts.
        block: the TIFF structure.
        order: byte order, as `struct` has it.
        pointer: position of the position of the directory.
    """
    below = 0
    (start,) = struct.unpack_from(f"{order}I", block, pointer)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for at in range(start + 2, start + 2 + 12 * min(count, MOST_ENTRIES), 12):
        tag, kind, size, value = struct.unpack_from(f"{order}HHII", block, at)
        if kind in _TEXTS:
            value = at + 8 if size <= 4 else value
            texts.setdefault(tag, block[value : value + min(size, MOST_BYTES)].split(b"\0")[0])
        elif tag == _EXIF_DIRECTORY:
            below = at + 8
    return below
