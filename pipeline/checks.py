"""Checks of names on this machine that take no time and import neither a model nor Ray.

Of a name in an object store only the store and its bucket are checked, by one request.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from prompt_iml.engine.errors import MissingInput, OutputNotWritable, UsageError
from prompt_iml.pipeline.storage import storage

CONNECT_SECONDS = 10.0
HTTP2_SETTINGS = b"\x04"  # type of the frame with which a server of HTTP/2, as of gRPC, begins
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)


def find_inputs(names: Sequence[str], settings_file: str = "") -> None:
    """Find what is to be read; globs are not expanded.

    Args:
        names: paths and URIs.
        settings_file: a file of the working folder that must not lie among them: it may be of
            whoever gave the pictures, and would choose their labels.

    Raises:
        MissingInput: a path cannot be read.
        UsageError: the settings file lies in a folder that is to be read.
    """
    for name in names:
        uri = storage.canonical(name)
        if not has_magic(name) or not storage.is_local(uri):
            _status(name)
        if not (settings_file and Path(settings_file).exists() and storage.is_local(uri)):
            continue
        if _is_here(storage.local_path(uri)):
            raise UsageError(
                f"{settings_file} of this folder lies in {storage.display_name(name)}, whose files "
                "are only data: run the command in another folder"
            )


def _is_here(path: Path) -> bool:
    """Return whether the working folder is in a folder, or where a glob looks."""
    folder = next(p for p in (path, *path.parents) if p.is_dir() or not has_magic(str(p)))
    return folder.is_dir() and Path.cwd().resolve().is_relative_to(folder.resolve())


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
    """Raise `OutputNotWritable` for a folder that cannot be created or written to."""
    uri = storage.canonical(output)
    if not storage.is_written(uri):
        raise OutputNotWritable(f"{flag}: {storage.READ_ONLY.format(uri.partition('://')[0])}")
    path = _local(output)
    if path is None:
        return
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    shown = storage.display_name(str(there))
    if not there.is_dir():
        raise OutputNotWritable(f"{shown} is not a folder: choose another {flag}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputNotWritable(f"{shown} is not writable: choose another {flag}")


def ray_address(address: str) -> str:
    """Return the address, with `auto` replaced by RAY_ADDRESS, or else by `local`."""
    return os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address


def check_cluster(address: str) -> None:
    """Raise `UsageError` unless gRPC answers at a Ray address; Ray itself tries for minutes."""
    address = ray_address(address)
    if address in ("local", "auto"):  # RAY_ADDRESS=auto is a cluster of this machine
        return
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdecimal():
        raise UsageError(
            f"{address} is no address of a Ray cluster: use HOST:6379 or ray://HOST:10001 (http:// "
            "is that of its dashboard, for prompt-iml submit), or --address local"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as line:
            line.sendall(HTTP2_HELLO)
            if not os.environ.get("RAY_USE_TLS") and line.recv(9)[3:4] != HTTP2_SETTINGS:
                raise UsageError(f"what listens at {address} is no Ray cluster: check the address")
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at {address} ({error}): try --address local") from error


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
    if storage.is_local(uri):
        return storage.local_path(uri)
    storage.check_reachable(uri)
    return None
