"""Reading of tar shards as a stream, with one member in memory at a time.

`tarfile` parses the headers, but not the archive: it takes a damaged header, or a missing end, for
the end of the archive, where this module reports the damage.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from prompt_iml.engine.errors import DamagedShard, FetchError, ImageError, Unsupported
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, describe_stand_in, sniff
from prompt_iml.pipeline.sources.names import (
    PACKED_MEMBER,
    claims_to_be_image,
    is_apple_double,
    is_packed,
)
from prompt_iml.pipeline.sources.packed import DAMAGED, unpacked
from prompt_iml.pipeline.sources.zipped import is_zip, read_zip
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample, too_large

MAX_EXTENSION = 1 << 20  # bytes of the long names and pax headers of a member; real: hundreds
MAX_NAME = 1 << 16  # bytes of a member's name; systems allow 4096, and many are held at once
LENGTH_DIGITS = 9  # of a pax record, with the space after them
SIZE_DIGITS = 18  # maximum for a member's size, which the table must hold; more is damage
LINKED_BYTES = 64 << 20  # of earlier members that links may point to, with their names
ZEROS = 1 << 20  # bytes of zeros that are looked at together, at most
_BLOCK = tarfile.BLOCKSIZE
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_SPARSE = "GNU.sparse."
_KEYWORDS = ("path", "linkpath", "size", f"{_SPARSE}name")
_WITHOUT_BODY = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def read_tar(uri: str, *, max_object_bytes: int) -> Iterator[Sample]:
    """Yield the images of a tar shard, plain or compressed, or of a zip, in order.

    A regular file is an image by its content or by its extension; sidecars, folders and the
    AppleDouble files of macOS are skipped. An archive in the shard is a failed sample. A link gives
    the bytes of the earlier member that it points to, or is a failed sample. Where the shard is
    damaged, one failed sample without a member names the byte (of the unpacked stream) and is the
    last.
    """
    try:
        with storage.open_stream(uri) as stream:
            if stand_in := describe_stand_in(stream.read(HEAD_BYTES)):
                raise DamagedShard(f"{storage.display_name(uri)} is {stand_in}")
            if is_zip(stream):
                yield from read_zip(uri, stream, max_object_bytes=max_object_bytes)
            else:
                yield from _read(uri, *unpacked(stream), max_object_bytes)
    except FetchError as error:
        yield Sample(uri, error=error)


def is_archive(stream: BinaryIO) -> bool:
    """Return whether a stream is a tar, plain or compressed, or a zip."""
    if is_zip(stream):
        return True
    try:
        return unpacked(stream)[0].read(_BLOCK)[257:262] == b"ustar"
    except DAMAGED:
        return False


@dataclass(frozen=True, slots=True)
class _Member:
    """Regular file in the archive, whose body comes next in the stream, or a link.

    Attributes:
        target: name of the member that a link points to; empty for a regular file.
        is_symbolic: whether the link is a symbolic one.
    """

    name: str
    size_bytes: int
    is_sparse: bool
    target: str = ""
    is_symbolic: bool = False


class _Archive:
    """Forward reader of a shard, whose errors name the position."""

    def __init__(self, uri: str, stream: BinaryIO, compression: str) -> None:
        self._uri = uri
        self._stream = stream
        self._ahead = io.BytesIO()  # bytes that were read and belong to what is read next
        self.position = 0
        self.compression = compression

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes; raises `DamagedShard`."""
        data = self.read_up_to(count)
        if len(data) < count:
            raise self.damaged("truncated")
        return data

    def read_up_to(self, count: int) -> bytes:
        """Read `count` bytes, or fewer at the end of the file."""
        data = self._ahead.read(count)
        try:
            if len(data) < count:
                self._ahead = io.BytesIO()
                data += self._stream.read(count - len(data))
        except DAMAGED as error:
            raise self.damaged(f"{self.compression}: {error}") from error
        self.position += len(data)
        return data

    def skip_zeros(self) -> None:
        """Read blocks of zeros and drop them, ever more at a time; what follows is read next."""
        count = _BLOCK
        while data := self.read_up_to(count):
            blocks = data.lstrip(b"\0")
            if blocks:
                self._put_back(data[(len(data) - len(blocks)) // _BLOCK * _BLOCK :])
                return
            count = min(2 * count, ZEROS)

    def _put_back(self, data: bytes) -> None:
        """Let the last bytes that were read be read again."""
        self.position -= len(data)
        if self._ahead.tell():  # they came from there
            self._ahead.seek(-len(data), io.SEEK_CUR)
        else:
            self._ahead = io.BytesIO(data)

    def skip(self, count: int) -> None:
        """Read `count` bytes and drop them."""
        while count > 0:
            count -= len(self.read(min(count, 1 << 20)))

    def read_again(self, position: int, count: int) -> bytes:
        """Read bytes before this position of an archive that is not packed."""
        self._stream.seek(position)
        data = self._stream.read(count)
        self._stream.seek(self.position + len(self._ahead.getbuffer()) - self._ahead.tell())
        return data

    def damaged(self, what: str) -> DamagedShard:
        """Return the error for damage at this position."""
        return DamagedShard(f"{storage.display_name(self._uri)} at byte {self.position}: {what}")


class _Images:
    """Images of an archive that links may point to; the oldest are forgotten.

    Bytes are kept for a packed archive, whose stream cannot go back, and positions for others.
    """

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self._kept: dict[str, tuple[Sample, int, int]] = {}
        self._bytes = 0

    def add(self, name: str, sample: Sample, position: int, size_bytes: int) -> None:
        """Keep the image of a member whose body lies at a position."""
        if not self._archive.compression:
            sample = replace(sample, data=None)
        self._drop(posixpath.normpath(name))
        self._kept[posixpath.normpath(name)] = sample, position, size_bytes
        self._bytes += _kept_bytes(name, sample)
        while self._bytes > LINKED_BYTES:
            self._drop(next(iter(self._kept)))

    def linked(self, link: _Member) -> Sample | None:
        """Return the image that a link shows; None if it is not kept."""
        folder = posixpath.dirname(link.name) if link.is_symbolic else ""
        found = self._kept.get(posixpath.normpath(posixpath.join(folder, link.target)))
        if found is None:
            return None
        sample, position, size_bytes = found
        claims_image = claims_to_be_image(link.name)
        shown = replace(sample, member=link.name, claims_image=claims_image)
        if shown.error is None and shown.data is None:
            shown = replace(shown, data=self._archive.read_again(position, size_bytes))
        self.add(link.name, shown, position, size_bytes)
        return shown

    def _drop(self, key: str) -> None:
        if key in self._kept:
            self._bytes -= _kept_bytes(key, self._kept.pop(key)[0])


def _kept_bytes(name: str, sample: Sample) -> int:
    return 4 * len(posixpath.normpath(name)) + 500 + len(sample.data or b"")


def _read(uri: str, stream: BinaryIO, compression: str, max_object_bytes: int) -> Iterator[Sample]:
    archive = _Archive(uri, stream, compression)
    images = _Images(archive)
    for member in _members(archive):
        if member.target:
            sample = images.linked(member) or _broken_link(uri, member)
        else:
            position = archive.position
            sample = _image(uri, archive, member, max_object_bytes)
            if sample:
                images.add(member.name, sample, position, member.size_bytes)
        if sample:
            yield sample
        archive.skip(-member.size_bytes % _BLOCK)


def _image(uri: str, archive: _Archive, member: _Member, max_object_bytes: int) -> Sample | None:
    """Read the body of a member; None if it is no image."""
    head = archive.read(min(member.size_bytes, HEAD_BYTES))
    rest = member.size_bytes - len(head)
    claims_image, media_type = claims_to_be_image(member.name), sniff(head)
    claims = claims_image and not is_apple_double(member.name)
    error = _refusal(member, max_object_bytes)
    is_image = claims or media_type is not None
    if is_packed(member.name) and not is_image:
        error, is_image = Unsupported(PACKED_MEMBER), True
    if error or not is_image:
        archive.skip(rest)
        return Sample(uri, member.name, error=error) if is_image else None
    return Sample(
        uri,
        member.name,
        data=head + archive.read(rest),
        claims_image=claims_image,
        media_type=media_type,
    )


def _broken_link(uri: str, link: _Member) -> Sample | None:
    """Return the failed sample of a link with the name of an image; None for other links."""
    if not claims_to_be_image(link.name) or is_apple_double(link.name):
        return None
    kind, option = ("symbolic", "") if link.is_symbolic else ("hard", "hard-")
    target = storage.display_name(link.target)[:100]
    why = "which is no image of this shard before the link, or lies too far before it"
    fix = f"write the shard with tar --{option}dereference"
    return Sample(uri, link.name, error=Unsupported(f"a {kind} link to {target}, {why}: {fix}"))


def _refusal(member: _Member, max_object_bytes: int) -> ImageError | None:
    if member.is_sparse:
        return Unsupported("a sparse tar member: write the shard without --sparse")
    return too_large(member.size_bytes, max_object_bytes)


def _members(archive: _Archive) -> Iterator[_Member]:
    """Yield the regular files and the links.

    A body and its padding must be read before the next member is taken.

    Blocks of zeros mark an end. Reading continues after them, as in `tar --ignore-zeros`, so that a
    part that was overwritten with zeros does not hide the rest.
    """
    ended = False
    extended: dict[str, str] = {}
    extension_bytes = 0
    while block := archive.read_up_to(_BLOCK):
        ended = not block.strip(b"\0")
        if ended:
            archive.skip_zeros()
            continue
        header = _header(archive, block)
        if header.type in _EXTENSIONS:
            extension_bytes += header.size
            if not 0 <= header.size <= extension_bytes <= MAX_EXTENSION:
                raise archive.damaged(f"an extended header of {extension_bytes} bytes")
            extended |= _extension(archive, header)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(archive, block)
        if header.type in _LINKS:
            yield _link(header, extended)
        elif header.type not in _WITHOUT_BODY:
            yield _member(archive, header, extended)
        extended, extension_bytes = {}, 0
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
        key.startswith(_SPARSE) for key in extended
    )
    name = extended.get(f"{_SPARSE}name") or extended.get("path") or header.name
    return _Member(name, int(size), is_sparse)


def _link(header: tarfile.TarInfo, extended: dict[str, str]) -> _Member:
    name = extended.get("path") or header.name
    target = extended.get("linkpath") or header.linkname or "."
    return _Member(name, 0, False, target, header.type == tarfile.SYMTYPE)


def _extension(archive: _Archive, header: tarfile.TarInfo) -> dict[str, str]:
    """Read a long name or pax header, and return the properties of the next member."""
    body = archive.read(header.size)
    archive.skip(-header.size % _BLOCK)
    if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
        return {key: _text(archive, body.rstrip(b"\0"))}
    if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return _pax_records(archive, body)
    return {}


def _pax_records(archive: _Archive, body: bytes) -> dict[str, str]:
    """Parse records of the form `<length> <keyword>=<value>\\n`, the length counting all of it.

    A record is not copied with those after it, as a header may have many thousands. Only those that
    say how to read the member are returned.
    """
    records = {}
    start = 0
    while start < len(body):
        space = body.find(b" ", start, start + LENGTH_DIGITS)
        digits = body[start : max(space, start)]
        end = start + int(digits) if digits.isdigit() else start
        equals = body.find(b"=", space, end)
        if not start < space < equals < end <= len(body) or body[end - 1 : end] != b"\n":
            raise archive.damaged("a corrupt pax header")
        keyword = body[space + 1 : equals].decode("utf-8", "replace")
        if keyword in _KEYWORDS:
            records[keyword] = _text(archive, body[equals + 1 : end - 1])
        elif keyword.startswith(_SPARSE):
            records[_SPARSE] = ""
        start = end
    return records


def _text(archive: _Archive, value: bytes) -> str:
    if len(value) > MAX_NAME:
        raise archive.damaged(f"a name of {len(value)} bytes")
    return value.decode("utf-8", "surrogateescape")


def _skip_sparse_map(archive: _Archive, block: bytes) -> None:
    more = block[482]
    while more:
        more = archive.read(_BLOCK)[504]
