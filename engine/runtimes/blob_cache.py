"""Cache of compiled networks for later processes: a folder of blobs, each under its key.

    FOLDER/<key>.blob     sha256 of the blob, then the blob

The key is a sha256 of everything the blob was made from. The folder is `PROMPT_IML_CACHE`, or else
`prompt-iml` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`). A blob becomes code in
this process, so it is read only from a folder that no other user can write to, and only when its
digest is right. Without such a folder nothing is cached.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "PROMPT_IML_CACHE"
DAY = 24 * 3600.0
BLOB, HALF_WRITTEN = ".blob", ".blob-part"
KEPT_SECONDS = {BLOB: 30 * DAY, HALF_WRITTEN: DAY / 24}  # since the last use, or the last write


class BlobCache:
    """Blobs by key, a sha256 in hexadecimal. Any number of processes may use one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    def read(self, key: str) -> bytes | None:
        """Return the blob, or None when it is missing or damaged."""
        path = self._path(key)
        try:
            if not _is_ours_alone(self._folder):
                return None
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, blob = content[:32], content[32:]
        return blob if hashlib.sha256(blob).digest() == digest else None

    def write(self, key: str, blob: bytes | memoryview) -> None:
        """Store the blob; does nothing where the folder cannot be written."""
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._prune()
            with tempfile.NamedTemporaryFile(
                dir=self._folder, suffix=HALF_WRITTEN, delete=False
            ) as file:
                try:
                    file.write(hashlib.sha256(blob).digest())
                    file.write(blob)
                    file.flush()
                except OSError:  # a full disk must not also keep the half of it
                    Path(file.name).unlink()
                    raise
            Path(file.name).replace(self._path(key))  # atomic: no reader sees a part of it

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{BLOB}"

    def _prune(self) -> None:
        """Remove blobs that are used no more, and files that a killed process left."""
        for kind, seconds in KEPT_SECONDS.items():  # the folder may hold files of other programs
            for path in self._folder.glob(f"*{kind}"):
                if path.stat().st_mtime < time.time() - seconds:
                    path.unlink(missing_ok=True)


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
