"""Unpacking of compressed streams, with a bounded amount of memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

GZIP_MAGIC = b"\x1f\x8b"
BZIP2_MAGIC = b"BZh"
XZ_MAGIC = b"\xfd7zXZ\0"
XZ_MEMORY = 128 << 20  # `xz -9` needs 65 MiB to unpack; a header may ask for 4 GiB
_CHUNK = 1 << 16

DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what reading an unpacked stream raises


def unpacked(stream: BinaryIO) -> tuple[BinaryIO, str]:
    """Return the unpacked stream, from its start, and the name of its compression.

    The name is empty for a stream that is not compressed with gzip, bzip2 or xz.
    """
    stream.seek(0)
    head = stream.read(len(XZ_MAGIC))
    stream.seek(0)
    if head.startswith(GZIP_MAGIC):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream)), "gzip"
    if head.startswith(BZIP2_MAGIC):
        return cast(BinaryIO, bz2.BZ2File(stream)), "bzip2"
    if head == XZ_MAGIC:
        return io.BufferedReader(_Xz(stream)), "xz"
    return stream, ""


class _Xz(io.RawIOBase):
    """Stream of the streams in an xz file; `lzma.LZMAFile` does not limit its memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decompressor = _decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = b""
        while not data:
            more = b""
            if self._decompressor.eof:  # another stream may follow, after zeros
                more = self._decompressor.unused_data.lstrip(b"\0")
                more = more or self._stream.read(_CHUNK).lstrip(b"\0")
                if not more:
                    return 0
                self._decompressor = _decompressor()
            elif self._decompressor.needs_input:
                more = self._stream.read(_CHUNK)
                if not more:
                    raise EOFError("truncated")
            data = self._decompressor.decompress(more, len(view))
        view[: len(data)] = data
        return len(data)


def _decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
