"""Cache of compiled networks for later processes: a folder of blobs, each under its key.

    FOLDER/<key>.blob     sha256 of the blob, then the blob
    FOLDER/<key>.plan     likewise, of what a command was asked to build

All blobs together take at most `PROMPT_IML_CACHE_GIB` (1 GiB): those that were not used for longest
are removed first. Plans do not count. What nobody uses for a month is removed, of either kind.

The key is a sha256 of everything the blob was made from. The folder is `PROMPT_IML_CACHE`, or else
`prompt-iml` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`). A blob becomes code in
this process, so it is read only from a folder that no other user can write to, and only when its
digest is right. Without such a folder nothing is cached.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prompt_iml.engine.errors import UsageError

VARIABLE = "PROMPT_IML_CACHE"
LIMIT, LIMIT_GIB = "PROMPT_IML_CACHE_GIB", 1.0
DAY = 24 * 3600.0
BLOB, PLAN, HALF_WRITTEN = ".blob", ".plan", ".blob-part"
KEPT_SECONDS = {  # since the last use, or the last write
    BLOB: 30 * DAY, PLAN: 30 * DAY, HALF_WRITTEN: DAY / 24
}  # fmt: skip


class BlobCache:
    """Blobs by key, a sha256 in hexadecimal. Any number of processes may use one folder.

    Args:
        folder: None: `default_folder`.
        kind: `BLOB`, or `PLAN` for what is not removed to make room.

    Raises:
        UsageError: `PROMPT_IML_CACHE_GIB` is no size.

    Attributes:
        folder: where the blobs are, whether it exists or not.
    """

    def __init__(self, folder: Path | None = None, kind: str = BLOB) -> None:
        self.folder, self._kind = folder or default_folder(), kind
        self._most_bytes = most_bytes()

    def read(self, key: str) -> bytes | None:
        """Return the blob, or None when it is missing or damaged."""
        path = self._path(key)
        try:
            if not _is_ours_alone(self.folder):
                return None
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, blob = content[:32], content[32:]
        return blob if hashlib.sha256(blob).digest() == digest else None

    def write(self, key: str, blob: bytes | memoryview) -> None:
        """Store the blob; does nothing where the folder cannot be written.

        A process that looks for a blob while another removes it finds none, and compiles again.
        """
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_unused()
            with tempfile.NamedTemporaryFile(
                dir=self.folder, suffix=HALF_WRITTEN, delete=False
            ) as file:
                try:
                    file.write(hashlib.sha256(blob).digest())
                    file.write(blob)
                    file.flush()
                except OSError:  # a full disk must not also keep the half of it
                    Path(file.name).unlink()
                    raise
            Path(file.name).replace(self._path(key))  # atomic: no reader sees a part of it
            self._remove_beyond_limit()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{self._kind}"

    def _remove_unused(self) -> None:
        """Remove what is used no more, and files that a killed process left."""
        for kind, seconds in KEPT_SECONDS.items():
            for last_use, _, path in self._files(kind):
                if last_use < time.time() - seconds:
                    path.unlink(missing_ok=True)

    def _remove_beyond_limit(self) -> None:
        """Remove blobs, the least recently used first, until the others take no more than they
        may."""
        total = 0
        for _, size, path in sorted(self._files(BLOB), reverse=True):
            total += size
            if total > self._most_bytes:
                path.unlink(missing_ok=True)

    def _files(self, kind: str) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, size and path; the folder may hold files of other programs."""
        for path in list(self.folder.glob(f"*{kind}")):
            with suppress(FileNotFoundError):  # another process has removed it
                status = path.stat()
                yield status.st_mtime, status.st_size, path


def most_bytes() -> int:
    """Return the bytes that all blobs may take together.

    Raises:
        UsageError: the environment gives no size.
    """
    given = os.environ.get(LIMIT) or LIMIT_GIB
    try:
        gib = float(given)
        if not 0 <= gib < math.inf:
            raise ValueError
    except ValueError:
        raise UsageError(f"{LIMIT} is {given!r}: give a number of GiB, such as 0.5") from None
    return int(gib * (1 << 30))


def default_folder() -> Path:
    """Return the folder of the environment or in the user's home; /dev/null without a home."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(caches or Path.home() / ".cache") / "prompt-iml"
    except RuntimeError:
        return Path(os.devnull)


def _is_ours_alone(folder: Path) -> bool:
    """Return whether this user owns the folder and nobody else can write to it."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
