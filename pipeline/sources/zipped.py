"""Reading of zip shards, with one member in memory at a time."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

from prompt_iml.engine.errors import DamagedShard, FetchError, ImageError, Unsupported
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, sniff
from prompt_iml.pipeline.sources.names import (
    PACKED_MEMBER,
    claims_to_be_image,
    is_apple_double,
    is_packed,
    may_be_image,
)
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample, too_large

MAX_DIRECTORY = 32 << 20  # bytes of the list of members, some 300,000; it takes ten times as many
_MAGIC = (b"PK\3\4", b"PK\5\6")
_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError,
    ValueError,
)  # fmt: skip


def is_zip(stream: BinaryIO) -> bool:
    """Return whether a stream begins as a zip file does."""
    stream.seek(0)
    return stream.read(4) in _MAGIC


def read_zip(uri: str, stream: BinaryIO, *, max_object_bytes: int) -> Iterator[Sample]:
    """Yield the images of a zip shard, in the order of its directory.

    Members are chosen as in `read_tar`. A member that cannot be unpacked is a failed sample, and
    so is the shard, without a member, if its directory cannot be read.

    Raises:
        FetchError: the stream cannot be read.
    """
    name = storage.display_name(uri)
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], _Bounded(stream)))
    except _DAMAGED as error:
        raise DamagedShard(f"{name}: {error}") from error
    members = archive.infolist()
    if sum(member.compress_size for member in members) > stream.seek(0, io.SEEK_END):
        raise DamagedShard(f"{name}: its members overlap or lie behind its end")
    for member in members:
        if not member.is_dir() and (sample := _image(uri, archive, member, max_object_bytes)):
            yield sample


class _Bounded:
    """Stream that refuses to read much at once: the directory of a zip is read whole.

    A place before its begin, which a damaged directory may name, is no error of the store.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._end = stream.seek(0, io.SEEK_END)
        self.tell, self.seekable = stream.tell, stream.seekable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._end}[whence]
        if base + offset < 0:
            raise OSError(f"byte {base + offset}")
        return self._stream.seek(base + offset)

    def read(self, count: int = -1) -> bytes:
        if count > MAX_DIRECTORY:
            raise DamagedShard(f"a zip directory of {count} bytes: split it, or write a tar")
        return self._stream.read(count)


def _image(
    uri: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_object_bytes: int
) -> Sample | None:
    """Read a member; None if it is no image."""
    name = member.filename
    claims_image = claims_to_be_image(name) and not is_apple_double(name)
    is_image = claims_image if _is_link(member) else may_be_image(name)  # until its head is read
    error: ImageError | None = _refusal(member)
    try:
        if error is None:
            with archive.open(member) as body:
                head = body.read(HEAD_BYTES)
                is_image = claims_image or sniff(head) is not None
                return _read(uri, member, head, body, is_image, max_object_bytes)
    except FetchError:
        raise
    except _DAMAGED as damage:
        error = DamagedShard(f"{storage.display_name(uri)}: {damage}")
    return Sample(uri, name, error=error) if is_image else None


def _read(
    uri: str,
    member: zipfile.ZipInfo,
    head: bytes,
    body: IO[bytes],
    is_image: bool,
    max_object_bytes: int,
) -> Sample | None:
    """Read the rest of a member behind its head; None if it is no image."""
    if not is_image:
        packed = Unsupported(PACKED_MEMBER)
        return Sample(uri, member.filename, error=packed) if is_packed(member.filename) else None
    if error := too_large(member.file_size, max_object_bytes):
        return Sample(uri, member.filename, error=error)
    chunks = [head]
    while chunk := body.read(_CHUNK):
        chunks.append(chunk)
    return Sample(
        uri,
        member.filename,
        data=b"".join(chunks),
        claims_image=claims_to_be_image(member.filename),
        media_type=sniff(head),
    )


def _refusal(member: zipfile.ZipInfo) -> Unsupported | None:
    if member.flag_bits & 1:
        return Unsupported("an encrypted zip member: write the shard without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Unsupported("a zip member that is neither stored nor deflated: pack it again")
    if _is_link(member):
        return Unsupported("a symbolic link in a zip: write the shard with what it points to")
    return None


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(member.external_attr >> 16)
