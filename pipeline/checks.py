"""Checks of names on this machine that take no time and import neither a model nor Ray.

Of a name in an object store only the store and its bucket are checked, by one request.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from prompt_iml.engine.errors import MissingInput, OutputNotWritable
from prompt_iml.pipeline.storage import storage


def find_inputs(names: Sequence[str]) -> None:
    """Raise `MissingInput` for a path that cannot be read; globs are not expanded."""
    for name in names:
        if not has_magic(name) or storage.is_s3(storage.canonical(name)):
            _status(name)


def find_folder(name: str) -> None:
    """Raise `MissingInput` for a path that is missing or a file."""
    status = _status(name)
    if status and not stat.S_ISDIR(status.st_mode):
        raise MissingInput(f"{storage.display_name(name)} is not a folder: give a folder")


def find_results(output: str) -> None:
    """Raise `MissingInput` for a local output without runs."""
    path = _local(output)
    if path and not (path / "_runs").is_dir():
        shown = storage.display_name(output)
        raise MissingInput(f"{shown} holds no run: give the --output of a scan")


def check_output(output: str, flag: str = "--output") -> None:
    """Raise `OutputNotWritable` for a local folder that cannot be created or written to."""
    path = _local(output)
    if path is None:
        return
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    shown = storage.display_name(str(there))
    if not there.is_dir():
        raise OutputNotWritable(f"{shown} is not a folder: choose another {flag}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputNotWritable(f"{shown} is not writable: choose another {flag}")


def _status(name: str) -> os.stat_result | None:
    """Return the status of a path; None for a name in an object store."""
    path = _local(name)
    try:
        return path.stat() if path else None
    except OSError as error:
        shown = storage.display_name(name)
        raise MissingInput(f"cannot read {shown}: {error.strerror}: check the path") from error


def _local(name: str) -> Path | None:
    """Return the path that a name means; None for a name in an object store that can be reached.

    Raises:
        UsageError: the store cannot be reached, or has no such bucket.
    """
    uri = storage.canonical(name)
    if not storage.is_s3(uri):
        return storage.local_path(uri)
    storage.check_reachable(uri)
    return None
