"""Working directory of a job: the files of one folder, packed for upload."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_iml.engine.errors import MissingInput, UsageError
from prompt_iml.pipeline.logs import log

MAX_BYTES = 32 * 2**20  # because the upload goes through the cluster's head
LISTED_FILES = 20


@contextmanager
def packed(folder: str | None) -> Iterator[Path | None]:
    """Pack a working directory into a temporary zip file, and log its files; None for no folder.

    Hidden files and bytecode are left out. The same files give the same bytes, which Ray does not
    upload again.

    Raises:
        MissingInput: there is no such folder.
        UsageError: it is larger than `MAX_BYTES`, or the name of a file is not UTF-8.
    """
    if folder is None:
        yield None
        return
    root = Path(folder)
    if not root.is_dir():
        raise MissingInput(f"--working-dir {folder} is not a folder")
    files = sorted(_files(root))
    _log_files(root, files)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "working_dir.zip"
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix())
                entry.external_attr = path.stat().st_mode << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
        yield package


def _files(root: Path) -> Iterator[Path]:
    """Yield the files to upload. A folder to which a link leads goes by the link's name, once.

    So the package of a checkout, which is links to its folders, arrives as plain files.
    """
    links = {path.resolve() for path in root.rglob("*") if path.is_symlink() and path.is_dir()}
    seen = {root.resolve()}
    for name, folders, files in os.walk(root, followlinks=True):
        within = [Path(name, each) for each in folders if _is_uploaded(each)]
        within = [path for path in within if path.is_symlink() or path.resolve() not in links]
        folders[:] = [path.name for path in within if path.resolve() not in seen]
        seen.update(path.resolve() for path in within)
        paths = (Path(name, each) for each in files if _is_uploaded(each))
        yield from (path for path in paths if path.is_file())


def _is_uploaded(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _log_files(root: Path, files: list[Path]) -> None:
    """Log the files to upload; raises `UsageError` as `packed`, with the largest files."""
    for path in files:
        name = str(path.relative_to(root))
        try:
            name.encode()
        except UnicodeEncodeError:  # which no zip file can hold
            shown = name.encode(errors="backslashreplace").decode()
            raise UsageError(
                f"--working-dir {root}: the name of {shown} is not UTF-8: rename it"
            ) from None
    sizes = {path: path.stat().st_size for path in files}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda path: -sizes[path])[:3]
        raise UsageError(
            f"--working-dir {root} has {total / 2**20:.0f} MiB, more than {MAX_BYTES >> 20}: "
            f"leave out {', '.join(str(path.relative_to(root)) for path in largest)}"
        )
    log(f"Uploading {len(files)} files, {total / 2**20:.1f} MiB:")
    for path in files[:LISTED_FILES]:
        log(f"  {path.relative_to(root)}")
    if len(files) > LISTED_FILES:
        log(f"  and {len(files) - LISTED_FILES} more")
