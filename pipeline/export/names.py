"""Names of images in an export: unique, and safe as names of files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from prompt_iml.pipeline.export.rows import Row

LONGEST = 255  # bytes of a part of a path


def file_name(row: Row, root: str) -> str:
    """Return the path of an image below `root`, which its URI begins with.

    A member of a shard lies in a folder of the shard's name; one without an extension, such as a
    row of a Parquet file, has that of its media type. A path that leads elsewhere, or that no file
    can have, is replaced by a name.
    """
    scheme, _, path = row["uri"].partition("://")
    name = row["uri"][len(root) :] if root else f"{scheme}/{path.lstrip('/')}"
    if row["member"] is not None:
        name += f"/{row['member']}"
    extension = row["media_type"].rpartition("/")[2]
    if not all(map(_is_safe, name.split("/"))):
        return picture_name(row, extension)
    return name if PurePosixPath(name).suffix or row["member"] is None else f"{name}.{extension}"


def _is_safe(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= LONGEST


def picture_name(row: Row, extension: str) -> str:
    """Return a file name that says whose mask it is, belongs to this image alone, and is safe."""
    name = (row["member"] or row["uri"]).rpartition("/")[2].rpartition(".")[0] or "image"
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:80]}-{row['image_id'][:12]}.{extension}"
