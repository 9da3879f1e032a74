"""C2PA manifests in the bytes of an image: whether one is there, and what it names.

A manifest store is found by the bytes with which its container and its first boxes begin (C2PA
specification 2.1, appendix A; JUMBF is ISO/IEC 19566-5). What it names is searched for in it: the
certificate of the last signature, which is that of the active manifest, and the last digital source
type of its actions. No signature, certificate or hash is checked.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

MOST_BYTES = 16 << 20  # of a manifest store; of a longer one nothing is read

# Bytes before a manifest store, by media type.
_BOX = rb"uuid\xd8\xfe\xc3\xd6\x1b\x0e\x48\x3c\x92\x97\x58\x28\x87\x7e\xc4\x81.{4}manifest\0.{8}"
_CARRIERS = {
    "image/jpeg": rb"\xff\xeb..JP.{6}",  # APP11
    "image/png": rb"caBX",
    "image/webp": rb"C2PA.{4}",
    "image/gif": rb"!\xff\x0bC2PA_GIF\x01\0\0.",
    "image/tiff": rb"",
    "image/heic": _BOX,
    "image/heif": _BOX,
    "image/avif": _BOX,
}
_STORE = rb"(.{4}jumb.{4}jumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71.c2pa\0)"
_MARK = b"jumdc2pa"  # found fast, and in few files
_FOUND = {kind: re.compile(before + _STORE, re.S) for kind, before in _CARRIERS.items()}

# Header of the certificates in a COSE signature: the label 33 or its name, an array of byte strings
# or one of them, and the first of these, of more than 255 bytes.
_CERTIFICATE = re.compile(rb"(?:\x18\x21|\x67x5chain)[\x80-\x97]?\x59..(?=\x30)", re.S)
# A text of CBOR: up to 23 bytes long, or up to 255.
_SOURCE_TYPE = re.compile(rb"\x71digitalSourceType(?:([\x60-\x77])|\x78(.))", re.S)

_SEQUENCE, _VERSION = 0x30, 0xA0
_NAMES = (b"\x55\x04\x0a", b"\x55\x04\x03")  # organisation and common name, of X.520
_SUBJECT = 5  # fields of a certificate before it, with the version


class Manifest(NamedTuple):
    """Names that a manifest store gives; None where it is not found.

    Attributes:
        signer: organisation and common name in the certificate of the last signature, UTF-8.
        source_type: URI of the last digital source type in it.
    """

    signer: bytes | None = None
    source_type: bytes | None = None


def find_manifest(payload: bytes, media_type: str) -> Manifest | None:
    """Return what the manifest store of an image names; None if the file holds none.

    Args:
        payload: the whole file.
        media_type: type of the file, as `pipeline.images.sniff` names it.
    """
    pattern = _FOUND.get(media_type)
    found = pattern.search(payload) if pattern and _MARK in payload else None
    if found is None:
        return None
    store = _store(payload, found, media_type)
    return Manifest(_signer(store), _source_type(store))


def _store(payload: bytes, found: re.Match[bytes], media_type: str) -> bytes:
    """Return the bytes of a manifest store; none of one above the limit."""
    start = found.start(1)
    size = int.from_bytes(found[1][:4], "big")
    if size > MOST_BYTES:
        return b""
    if media_type == "image/jpeg":
        return b"".join(_segments(payload, found.start()))[:size]
    if media_type == "image/gif":
        return b"".join(_blocks(payload, start - 1))[:size]
    return payload[start : start + size]


def _segments(payload: bytes, at: int) -> Iterator[bytes]:
    """Yield what the JPEG segments from `at` on hold of one box.

    A segment is a marker, its length, `JP`, the number of the box and that of the segment. Each
    later one repeats the eight bytes of the box's header.
    """
    box, repeated, total = payload[at + 6 : at + 8], 0, 0
    while payload[at : at + 2] == b"\xff\xeb" and payload[at + 4 : at + 8] == b"JP" + box:
        end = at + 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
        yield payload[at + 12 + repeated : end]
        total += end - at
        if end <= at + 12 or total > 2 * MOST_BYTES:
            return
        at, repeated = end, 8


def _blocks(payload: bytes, at: int) -> Iterator[bytes]:
    """Yield the sub-blocks of a GIF from `at` on, each of which begins with its length."""
    for _ in range(MOST_BYTES // 128):
        length = payload[at] if at < len(payload) else 0
        if not length:
            return
        yield payload[at + 1 : at + 1 + length]
        at += 1 + length


def _last(pattern: re.Pattern[bytes], store: bytes) -> re.Match[bytes] | None:
    found = deque(pattern.finditer(store), maxlen=1)
    return found[0] if found else None


def _source_type(store: bytes) -> bytes | None:
    """Return the text of the last digital source type; None without one."""
    last = _last(_SOURCE_TYPE, store)
    if last is None:
        return None
    length = last[1][0] - 0x60 if last[1] else last[2][0]
    return store[last.end() : last.end() + length]


def _signer(store: bytes) -> bytes | None:
    """Return the names of the subject of the last signature's first certificate."""
    last = _last(_CERTIFICATE, store)
    if last is None:
        return None
    try:
        subject = _subject(store, last.end())
    except ValueError:
        return None
    names = (_name(subject, kind) for kind in _NAMES)
    return b", ".join(dict.fromkeys(name for name in names if name)) or None


def _subject(data: bytes, at: int) -> bytes:
    """Return the subject of the certificate (RFC 5280) at a position; raise `ValueError`."""
    _, at, _ = _element(data, at)  # the certificate
    _, at, _ = _element(data, at)  # what is signed of it
    kind, _, end = _element(data, at)
    for _ in range(_SUBJECT if kind == _VERSION else _SUBJECT - 1):
        at = end
        kind, start, end = _element(data, at)
    return data[start:end]


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the type, start and end of the DER element at a position; raise `ValueError`."""
    header = data[at : at + 6]
    if len(header) < 2:
        raise ValueError("truncated")
    length, size = header[1], 2
    if length >= 0x80:
        size += length - 0x80
        length = int.from_bytes(header[2:size], "big")
    if size > 6 or at + size + length > len(data):
        raise ValueError("truncated")
    return header[0], at + size, at + size + length


def _name(subject: bytes, kind: bytes) -> bytes | None:
    """Return the first name of a kind in a subject; None without one."""
    at = subject.find(b"\x06\x03" + kind)
    try:
        _, start, end = _element(subject, at + 5) if at >= 0 else (0, 0, 0)
    except ValueError:
        return None
    return subject[start:end] or None
