"""Reading of tar shards as a stream, with one member in memory at a time.

`tarfile` parses the headers, but not the archive: it takes a damaged header, or a missing end, for
the end of the archive, where this module reports the damage.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from prompt_iml.engine.errors import DamagedShard, FetchError, ImageError, Unsupported
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, sniff
from prompt_iml.pipeline.sources.names import claims_to_be_image, in_hidden
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample, too_large

GZIP_MAGIC = b"\x1f\x8b"
MAX_EXTENSION = 1 << 20  # bytes of a long name or a pax header; real ones have hundreds
SIZE_DIGITS = 18  # maximum for a member's size, which the table must hold; more is damage
_BLOCK = tarfile.BLOCKSIZE
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_WITHOUT_BODY = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


def read_tar(uri: str, *, max_object_bytes: int) -> Iterator[Sample]:
    """Yield the images of a tar shard, plain or gzip, in order.

    A regular file is an image by its content or by its extension; hidden names, sidecars, links
    and folders are skipped. Where the shard is damaged, one failed sample without a member
    names the byte (of the unpacked stream) and is the last.
    """
    try:
        with storage.open_stream(uri) as stream:
            yield from _read(uri, _unpacked(stream), max_object_bytes)
    except FetchError as error:
        yield Sample(uri, error=error)


def is_tar(head: bytes) -> bool:
    """Return whether a file with this head (512 bytes or more) is a tar, plain or gzip."""
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, _BLOCK)
        except zlib.error:
            return False
    return head[257:262] == b"ustar"


def _unpacked(stream: BinaryIO) -> BinaryIO:
    packed = stream.read(2) == GZIP_MAGIC
    stream.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream


@dataclass(frozen=True, slots=True)
class _Member:
    """Regular file in the archive; its body comes next in the stream."""

    name: str
    size_bytes: int
    is_sparse: bool


class _Archive:
    """Forward reader of a shard, whose errors name the position."""

    def __init__(self, uri: str, stream: BinaryIO) -> None:
        self._uri = uri
        self._stream = stream
        self.position = 0

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes; raises `DamagedShard`."""
        data = self.read_up_to(count)
        if len(data) < count:
            raise self.damaged("truncated")
        return data

    def read_up_to(self, count: int) -> bytes:
        """Read `count` bytes, or fewer at the end of the file."""
        try:
            data = self._stream.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.damaged(f"gzip: {error}") from error
        self.position += len(data)
        return data

    def skip(self, count: int) -> None:
        """Read `count` bytes and drop them."""
        while count > 0:
            count -= len(self.read(min(count, 1 << 20)))

    def damaged(self, what: str) -> DamagedShard:
        """Return the error for damage at this position."""
        return DamagedShard(f"{storage.display_name(self._uri)} at byte {self.position}: {what}")


def _read(uri: str, stream: BinaryIO, max_object_bytes: int) -> Iterator[Sample]:
    archive = _Archive(uri, stream)
    for member in _members(archive):
        head = archive.read(min(member.size_bytes, HEAD_BYTES))
        rest = member.size_bytes - len(head)
        claims_image, media_type = claims_to_be_image(member.name), sniff(head)
        if not (claims_image or media_type) or in_hidden(member.name):
            archive.skip(rest)
        elif error := _refusal(member, max_object_bytes):
            yield Sample(uri, member.name, error=error)
            archive.skip(rest)
        else:
            data = head + archive.read(rest)
            yield Sample(
                uri, member.name, data=data, claims_image=claims_image, media_type=media_type
            )
        archive.skip(-member.size_bytes % _BLOCK)


def _refusal(member: _Member, max_object_bytes: int) -> ImageError | None:
    if member.is_sparse:
        return Unsupported("a sparse tar member: write the shard without --sparse")
    return too_large(member.size_bytes, max_object_bytes)


def _members(archive: _Archive) -> Iterator[_Member]:
    """Yield the regular files; a body and its padding must be read before the next is taken.

    Blocks of zeros mark an end. Reading continues after them, as in `tar --ignore-zeros`, so that a
    part that was overwritten with zeros does not hide the rest.
    """
    ended = False
    extended: dict[str, str] = {}
    while block := archive.read_up_to(_BLOCK):
        ended = not block.strip(b"\0")
        if ended:
            continue
        header = _header(archive, block)
        if header.type in _EXTENSIONS:
            extended |= _extension(archive, header)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(archive, block)
        if header.type not in _WITHOUT_BODY:
            yield _member(archive, header, extended)
        extended = {}
    if not ended:
        raise archive.damaged("truncated: no end-of-archive mark")


def _header(archive: _Archive, block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        archive.position -= len(block)
        raise archive.damaged(f"no tar header ({error})") from error


def _member(archive: _Archive, header: tarfile.TarInfo, extended: dict[str, str]) -> _Member:
    size = extended.get("size", str(header.size))
    if not size.isdecimal() or len(size) > SIZE_DIGITS:
        raise archive.damaged(f"a member of size {size!r}")
    is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(
        key.startswith("GNU.sparse.") for key in extended
    )
    name = extended.get("GNU.sparse.name") or extended.get("path") or header.name
    return _Member(name, int(size), is_sparse)


def _extension(archive: _Archive, header: tarfile.TarInfo) -> dict[str, str]:
    """Read a long name or pax header, and return the properties of the next member."""
    if not 0 <= header.size <= MAX_EXTENSION:
        raise archive.damaged(f"an extended header of {header.size} bytes")
    body = archive.read(header.size)
    archive.skip(-header.size % _BLOCK)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": body.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return _pax_records(archive, body)
    return {}


def _pax_records(archive: _Archive, body: bytes) -> dict[str, str]:
    """Parse records of the form `<length> <keyword>=<value>\\n`, the length counting all of it."""
    records = {}
    while body:
        digits, _, rest = body.partition(b" ")
        end = int(digits) - len(digits) - 1 if digits.isdigit() and len(digits) < 9 else 0
        keyword, equals, value = rest[:end].partition(b"=")
        if not 0 < end <= len(rest) or not equals or not value.endswith(b"\n"):
            raise archive.damaged("a corrupt pax header")
        records[keyword.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        body = rest[end:]
    return records


def _skip_sparse_map(archive: _Archive, block: bytes) -> None:
    more = block[482]
    while more:
        more = archive.read(_BLOCK)[504]
