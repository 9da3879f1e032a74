"""C2PA manifests, as far as they are read, with a certificate, in the files of every format."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from zlib import crc32

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

_UUID = b"\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71"
_DAYS = datetime(2025, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)


def certificate(**names: str) -> bytes:
    """Return a certificate in DER whose subject has these names of X.520."""
    subject = x509.Name([x509.NameAttribute(getattr(NameOID, k), v) for k, v in names.items()])
    issuer = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Issuer")])
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    builder = x509.CertificateBuilder(issuer, subject, private.public_key(), 1, *_DAYS)
    return builder.sign(private, None).public_bytes(serialization.Encoding.DER)


def store(signed: bytes, source_type: bytes = b"", padding: int = 0) -> bytes:
    """Return a manifest store with a source type and a signature by a certificate."""
    text = struct.pack(">BB", 0x78, len(source_type)) + source_type
    action = b"\x71digitalSourceType" + text if source_type else b""
    chain = b"\x18\x21\x81\x59" + struct.pack(">H", len(signed)) + signed
    inner = _described(b"c2ma", b"urn:uuid:1", action + bytes(padding) + chain)
    return _described(b"c2pa", b"c2pa", inner)


def _described(kind: bytes, label: bytes, content: bytes) -> bytes:
    description = _box(b"jumd", kind + _UUID + b"\x03" + label + b"\0")
    return _box(b"jumb", description + content)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def embedded(image: bytes, media_type: str, content: bytes) -> bytes:
    """Return the file of an image with a manifest store in it, as C2PA has it for the format."""
    match media_type:
        case "image/jpeg":
            return image[:2] + b"".join(_segments(content)) + image[2:]
        case "image/png":
            chunk = _box(b"caBX", content)[4:]
            checked = struct.pack(">I", len(content)) + chunk + struct.pack(">I", crc32(chunk))
            return image[:33] + checked + image[33:]
        case "image/webp":
            return image + b"C2PA" + struct.pack("<I", len(content)) + content
        case "image/gif":
            blocks = [content[at : at + 255] for at in range(0, len(content), 255)]
            sized = b"".join(bytes([len(block)]) + block for block in blocks)
            return image[:-1] + b"!\xff\x0bC2PA_GIF\x01\0\0" + sized + b"\0" + image[-1:]
        case "image/tiff":
            return image + content
    kind = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    return image + _box(b"uuid", kind + bytes(4) + b"manifest\0" + bytes(8) + content)


def _segments(content: bytes, most: int = 1000) -> list[bytes]:
    header, pieces = content[:8], range(8, len(content), most)
    return [
        b"\xff\xeb" + struct.pack(">H2sHI", 18 + len(piece), b"JP", 1, number) + header + piece
        for number, piece in enumerate((content[at : at + most] for at in pieces), 1)
    ]
