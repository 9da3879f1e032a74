"""What travels with a job: the files of one folder, listed and bounded."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_iml.engine.errors import MissingInput, UsageError
from prompt_iml.pipeline.logs import log

MOST_BYTES = 32 * 2**20  # it goes through the cluster's head
SHOWN = 20  # files told by name


@contextmanager
def packed(folder: str | None) -> Iterator[Path | None]:
    """A zip of what travels of a working directory, which is told; None: nothing does.

    Hidden files stay, and so does bytecode. The same files give the same bytes, which Ray then
    does not upload again.

    Raises:
        UsageError: there is no such folder, or it is larger than `MOST_BYTES`.
    """
    if folder is None:
        yield None
        return
    root = Path(folder)
    if not root.is_dir():
        raise MissingInput(f"--working-dir {folder} is no folder")
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and _travels(path, root)]
    tell_travellers(root, files)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "working_dir.zip"
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix())
                entry.external_attr = path.stat().st_mode << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
        yield package


def _travels(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    return not any(part.startswith(".") or part == "__pycache__" for part in parts)


def tell_travellers(root: Path, files: list[Path]) -> None:
    """Say what travels.

    Raises:
        UsageError: it is more than `MOST_BYTES`; the largest files are named.
    """
    sizes = {path: path.stat().st_size for path in files}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(files, key=lambda path: -sizes[path])[:3]
        raise UsageError(
            f"--working-dir {root} has {total / 2**20:.0f} MiB, more than {MOST_BYTES >> 20}: "
            f"leave out {', '.join(str(path.relative_to(root)) for path in largest)}"
        )
    log(f"{len(files)} files travel, {total / 2**20:.1f} MiB:")
    for path in files[:SHOWN]:
        log(f"  {path.relative_to(root)}")
    if len(files) > SHOWN:
        log(f"  and {len(files) - SHOWN} more")
