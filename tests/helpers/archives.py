"""Tar archives made in memory."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

TarOf = Callable[..., bytes]


def pack_tar(members: Mapping[str, bytes], *, gzipped: bool = False, **options: Any) -> bytes:
    """Return the bytes of a tar with these members, data by name; `options` are tarfile's."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return gzip.compress(sink.getvalue()) if gzipped else sink.getvalue()
