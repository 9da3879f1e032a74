"""Shards that a random number determines: tar, zip and Parquet, odd, hostile, damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

JPEG = b"\xff\xd8\xff"
MIB = 1 << 20
MOST_STORED = 24 * MIB  # bytes of a tar, or of a column without its repetitions


def shard(seed: int) -> tuple[str, bytes]:
    """Return the name and the bytes of the shard of a seed."""
    rng = Random(seed)
    name, make = rng.choice(KINDS)
    data = make(rng)
    return name, damaged(rng, data) if rng.random() < 0.5 else data


def damaged(rng: Random, data: bytes) -> bytes:
    """Overwrite, insert, remove or repeat bytes in some places, or cut the end."""
    for _ in range(rng.randint(1, 4)):
        # Half of the places lie near the ends, where headers and footers are.
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            at = rng.choice([min(at, 600), max(0, len(data) - 600)])
        removed = rng.choice([0, 1, 4, rng.randint(0, 600), len(data)])
        data = data[:at] + rng.randbytes(rng.choice([0, 1, 4, 40])) + data[at + removed :]
    return data


def tar(rng: Random) -> bytes:
    """Return a tar of random pieces, most of them well-formed, plain or packed."""
    piece = rng.choice(PIECES)
    few = b"".join(rng.choice(PIECES)(rng) for _ in range(rng.randint(1, 20)))
    many = (one := piece(rng)) * min(rng.choice([0, 0, 30, 5000]), MOST_STORED // len(one))
    pack = rng.choice([bytes, gzip.compress, bz2.compress, lzma.compress])
    body = (few + many)[:MOST_STORED] + bytes(rng.choice([0, 512, 1024, 10240]))
    return pack(body)


def _entry(kind: bytes, body: bytes = b"", name: str = "a.jpg", **fields: Any) -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, len(body)
    for field, value in fields.items():
        setattr(header, field, value)
    return header.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)


def _member(rng: Random) -> bytes:
    body = rng.choice([b"", JPEG, b"text"]) + bytes(rng.choice([0, 1, 509, 5000, 2 * MIB]))
    name = rng.choice(["a.jpg", "b", "x/c.png", "\x1b[2J.jpg", "n" * 300 + ".jpg"])
    return _entry(tarfile.REGTYPE, body, name)


def _lie(rng: Random) -> bytes:
    return _entry(tarfile.REGTYPE, size=rng.choice([1, 1 << 20, 1 << 33, 1 << 62]))


def _link(rng: Random) -> bytes:
    kind = rng.choice([tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])
    return _entry(kind, name="l.jpg", linkname=rng.choice(["a.jpg", "l.jpg", "../x", ""]))


def _long_name(rng: Random) -> bytes:
    kind = rng.choice([tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE])
    return _entry(kind, b"n" * rng.choice([0, 10, 5000, 60_000, MIB, 2 * MIB]))


def _pax(rng: Random) -> bytes:
    value = b"v" * rng.choice([0, 0, 10, 50_000])
    keys = [b"path", b"linkpath", b"size", b"GNU.sparse.name", b"SCHILY.xattr.%d" % rng.random()]
    records = []
    for _ in range(rng.choice([0, 1, 3, 20])):
        record = b" " + rng.choice(keys) + b"=" + value + b"\n"
        length = len(record) + len(str(len(record) + 3))
        records.append(str(length + rng.choice([0, 0, 0, 0, 1])).encode() + record)
    return _entry(tarfile.XHDTYPE, (b"".join(records) * rng.choice([1, 1, 500]))[: 2 * MIB])


def _zeros(rng: Random) -> bytes:
    return bytes(512 * rng.choice([1, 2, 3, 1000]))


def _noise(rng: Random) -> bytes:
    return rng.randbytes(512)


PIECES: list[Callable[[Random], bytes]] = [
    _member, _member, _member, _link, _long_name, _pax, _zeros, _lie, _noise,
]  # fmt: skip


def packed(rng: Random) -> bytes:
    """Return a zip of members that shrink well."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        for number in range(rng.choice([0, 1, 20, 2000])):
            body = JPEG + bytes(rng.choice([0, 100, 5000, MIB if number < 20 else 0]))
            file.writestr(f"{number}{'n' * rng.choice([1, 1000])}.jpg", body)
    return sink.getvalue()


def parquet(rng: Random) -> bytes:
    """Return a Parquet file whose values vary much in size, and may be repeated many times."""
    rows = rng.choice([0, 1, 10, 300, 1500])
    large = rng.choice([0, 1000, MIB, 4 * MIB])
    nest = rng.choice([_plain, _struct, _list])
    # Arrow writes out what is repeated within a struct: gigabytes, in this process.
    is_encoded = rng.random() < 0.5 and (nest is _plain or rows * large <= MOST_STORED)
    values = _encoded(rng, rows, large) if is_encoded else _dense(rng, rows, large)
    names = pa.array(rng.choices(["n", "n" * 100, None], k=rows), pa.string())
    column = nest(values, names)
    encodings = [{"use_dictionary": True}, {"use_dictionary": False}]
    if column is values:  # the encoding is set by the path of a leaf
        kinds = ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
        encodings += [{"use_dictionary": ["id"], "column_encoding": {"image": k}} for k in kinds]
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"image": column, "id": names}),
        sink,
        compression=rng.choice(["none", "snappy", "zstd", "gzip"]),
        dictionary_pagesize_limit=64 * MIB if is_encoded else rng.choice([1000, MIB]),
        data_page_size=rng.choice([1000, MIB, 64 * MIB]),
        row_group_size=rng.choice([1, 7, 100_000]) if rows <= 10 else 100_000,
        store_schema=False,
        **encodings[0] if is_encoded else rng.choice(encodings),
    )
    return sink.getvalue()


def _encoded(rng: Random, rows: int, large: int) -> pa.Array:
    """Return one large value many times, and a small one: gigabytes, if they were written out."""
    dictionary = pa.array([JPEG + bytes(large), JPEG], pa.binary())
    indices = rng.choices([0, 1, None], [rng.choice([1, 100]), 1, 1], k=rows)
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), dictionary)


def _dense(rng: Random, rows: int, large: int) -> pa.Array:
    """Return values of which the first are large, as many as there is room for."""
    many = min(rows, MOST_STORED // (large or 1))
    zeros = bytes(large + rows)
    values = [JPEG + zeros[: large + row % 7 if row < many else row % 5] for row in range(rows)]
    return pa.array([None if rng.random() < 0.02 else value for value in values], pa.binary())


def _plain(values: pa.Array, names: pa.Array) -> pa.Array:
    return values


def _struct(values: pa.Array, names: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([values, names], ["bytes", "path"])


def _list(values: pa.Array, names: pa.Array) -> pa.Array:
    offsets = pa.array(range(len(values) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, _struct(values, names))


KINDS: list[tuple[str, Callable[[Random], bytes]]] = [
    ("a.tar", tar), ("a.tar", tar), ("a.zip", packed),
    ("a.parquet", parquet), ("b.parquet", parquet),
]  # fmt: skip
