"""Sizes of the pages of a Parquet column, from the header before each.

pyarrow unpacks a page whole and does not say how large it will be. Headers are structs in Thrift's
compact protocol; their first three fields are the kind, and the sizes unpacked and packed.
Source: apache/parquet-format, parquet.thrift; Apache Thrift, Thrift compact protocol encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

UNPACKED_SIZE, PACKED_SIZE = 2, 3  # ids of fields
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12  # kinds of fields
_INTEGERS = 4, 5, 6
_DEPTH = 8  # of structs; a header has three


def unpacked_sizes(stream: IO[bytes], start: int, size_bytes: int) -> Iterator[int]:
    """Yield the number of bytes that each page of a column unpacks to.

    Args:
        stream: the file, of which only headers are read.
        start: place of the first page.
        size_bytes: of all pages, with their headers.

    Raises:
        ValueError: what is there is no header of a page.
    """
    end = start + size_bytes
    while start < end:
        stream.seek(start)
        fields = _Header(stream).integers()
        if fields.get(PACKED_SIZE, -1) < 0 or fields.get(UNPACKED_SIZE, -1) < 0:
            raise ValueError("a page has no size")
        yield fields[UNPACKED_SIZE]
        start = stream.tell() + fields[PACKED_SIZE]


class _Header:
    """A header that begins where a stream is."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def integers(self, depth: int = 0) -> dict[int, int]:
        """Read the struct to its end; return its integers by the ids of their fields."""
        if depth > _DEPTH:
            raise ValueError("a page's header is too deep")
        found, field = dict[int, int](), 0
        while byte := self._byte():
            step, kind = byte >> 4, byte & 15
            field = field + step if step else self._zigzag()
            if kind in _INTEGERS:
                found[field] = self._zigzag()
            elif kind not in (_TRUE, _FALSE):  # whose value is the kind
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _INTEGERS:
            self._varint()
        elif kind in (_TRUE, _FALSE, _BYTE):
            self._byte()
        elif kind == _STRUCT:
            self.integers(depth + 1)
        elif kind in (_DOUBLE, _BINARY):
            self._stream.seek(8 if kind == _DOUBLE else self._varint(), 1)
        else:  # lists, sets and maps, of which a header has none
            raise ValueError("a page's header has an unknown field")

    def _byte(self) -> int:
        byte = self._stream.read(1)
        if not byte:
            raise ValueError("the file ends in a page's header")
        return byte[0]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number in a page's header is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
