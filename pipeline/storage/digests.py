"""Sets of 16-byte digests on local disk, partitioned by their first byte.

A digest takes 20 bytes of temporary disk (TMPDIR). Memory holds at most 2^20 digests that wait to
be written, and one of 256 partitions while it is sorted: 80 MB for a set of 10^9 digests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PARTITIONS = 256
WAITING = 1 << 20

_RECORD = np.dtype([("digest", "S16"), ("number", "<u4")])


def digests_of_hex(text: str) -> NDArray[np.bytes_]:
    """Parse digests of 32 hexadecimal digits each, without separators; raises ValueError."""
    return np.frombuffer(bytes.fromhex(text), "S16")


class Digests:
    """Multiset of digests, each with a number that the caller chooses; a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="prompt-iml-")
        self._waiting: list[NDArray[np.void]] = []
        self._count = 0
        self._sorted: dict[int, NDArray[np.void]] = {}

    def __enter__(self) -> Digests:
        return self

    def __exit__(self, *_: object) -> None:
        self._sorted.clear()
        self._folder.cleanup()

    def add(self, digests: NDArray[np.bytes_], number: int = 0) -> None:
        """Add an array of `S16`, all with the same number (below 2^32)."""
        records = np.empty(len(digests), _RECORD)
        records["digest"], records["number"] = digests, number
        self._waiting.append(records)
        self._count += len(records)
        if self._count >= WAITING:
            self._write()

    def repeated(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each digest that was added more than once, in hexadecimal, with its numbers."""
        self._write()
        for partition in range(PARTITIONS):
            records = self._read(partition)
            known = records["digest"]
            starts = np.flatnonzero(np.r_[True, known[1:] != known[:-1], True][: len(known) + 1])
            for at in np.flatnonzero(np.diff(starts) > 1):
                twins = records[starts[at] : starts[at + 1]]
                yield _hex(twins["digest"][:1]), twins["number"].tolist()

    def contains(self, digests: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Return (n,) bool: which of (n,) `S16` digests were added; nothing may be added later."""
        self._write()
        found = np.zeros(len(digests), bool)
        first = _first_bytes(digests)
        for partition in np.unique(first):
            mine = np.flatnonzero(first == partition)
            known = self._mapped(int(partition))["digest"]
            at = np.minimum(np.searchsorted(known, digests[mine]), max(len(known) - 1, 0))
            found[mine] = known[at] == digests[mine] if len(known) else False
        return found

    def _write(self) -> None:
        if not self._waiting:
            return
        records = np.concatenate(self._waiting)
        self._waiting, self._count = [], 0
        first = _first_bytes(records["digest"])
        records = records[np.argsort(first, kind="stable")]
        ends = np.cumsum(np.bincount(first, minlength=PARTITIONS))
        for partition, chunk in enumerate(np.split(records, ends[:-1])):
            if len(chunk):
                with self._path(partition).open("ab") as file:
                    file.write(chunk.tobytes())

    def _read(self, partition: int) -> NDArray[np.void]:
        """Read a partition into memory, sorted."""
        path = self._path(partition)
        records = np.fromfile(path, _RECORD) if path.exists() else np.empty(0, _RECORD)
        return records[np.argsort(records["digest"], kind="stable")]

    def _mapped(self, partition: int) -> NDArray[np.void]:
        """Return a partition, sorted and memory-mapped."""
        if partition not in self._sorted:
            records = self._read(partition)
            if len(records):
                self._path(partition).write_bytes(records.tobytes())
                records = np.memmap(self._path(partition), _RECORD, "r")
            self._sorted[partition] = records
        return self._sorted[partition]

    def _path(self, partition: int) -> Path:
        return Path(self._folder.name) / f"{partition:02x}"


def _first_bytes(digests: NDArray[np.bytes_]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(digests).view(np.uint8).reshape(-1, 16)[:, 0]


def _hex(digest: NDArray[np.bytes_]) -> str:
    return digest.tobytes().hex()
