"""Kinds of files, by their names alone."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["objects", "tar", "parquet", "list"]
Format = Literal["auto", "objects", "tar", "parquet", "list"]

_IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
    *(".jxl", ".jxr", ".ico", ".cur", ".tga", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".psd"),
    *(".xcf", ".exr", ".hdr", ".dds", ".qoi", ".svg"),
    # Raw files of cameras.
    *(".dng", ".crw", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
    *(".raf", ".pef", ".srw", ".x3f", ".mrw", ".3fr", ".iiq", ".mef", ".mos", ".erf", ".kdc"),
    *(".dcr", ".rwl", ".gpr"),
)

_TAR_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".zip",
)  # fmt: skip
_UNREAD_ARCHIVE = re.compile(
    r"\.(7z|rar|zipx|tzst|tlz|ace|arj|cab|lha|lzh|cpio|cb[7rtz]|tar\.(zst|lz4|lz|lzma|lzo|br|z))"
    r"(\.\d{2,3})?$|\.z\d\d$|\.(tar|tgz|zip|tar\.(gz|bz2|xz))\.(\d{2,3}|a[a-z]|part\d{1,2})$"
)
UNREAD_ARCHIVE = "an archive that is not read: unpack it, or write a tar or zip"
PACKED_MEMBER = "an archive or a Parquet file in a shard is not read: unpack the shard, and scan it"

# Of what lies beside images in a shard.
_OTHER_SUFFIXES = (
    *(".txt", ".text", ".md", ".rst", ".log", ".html", ".htm", ".css", ".js", ".py", ".ipynb"),
    *(".json", ".jsonl", ".ndjson", ".geojson", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".xml"),
    *(".csv", ".tsv", ".cls", ".cap", ".caption", ".id", ".url", ".xmp", ".aae", ".srt", ".vtt"),
    *(".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".pyd", ".mat", ".h5", ".db", ".sqlite"),
    *(".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".rtf", ".eml", ".msg"),
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".wmv", ".mp3", ".wav", ".flac"),
    *(".ogg", ".m4a", ".exe", ".dll", ".so", ".sh", ".bat", ".md5", ".sha1", ".sha256"),
)

# Names that Spark, Hive and prompt-iml write beside data, and cameras do not.
_BOOKKEEPING = frozenset(
    ["_runs", "_SUCCESS", "_metadata", "_common_metadata", "_temporary", "_delta_log"]
)


def claims_to_be_image(name: str) -> bool:
    """Return whether a name has the extension of an image, of a supported format or not."""
    return _path(name).endswith(_IMAGE_SUFFIXES)


def may_be_image(name: str) -> bool:
    """Return whether a member may be an image, by its name alone: where its content is not seen.

    Datasets also store images by their hash or number, without an extension.
    """
    is_other = _path(name).endswith(_OTHER_SUFFIXES) or is_hidden(name.rpartition("/")[2])
    return (claims_to_be_image(name) or not is_other) and not is_apple_double(name)


def is_unread_archive(name: str) -> bool:
    """Return whether a name has the extension of an archive of an unsupported format."""
    return bool(_UNREAD_ARCHIVE.search(_path(name)[-16:]))


def kind_of_name(name: str) -> Kind:
    """Return the kind of a shard by its extension (`tar` for a zip); other files are objects."""
    lowered = _path(name)
    if lowered.endswith(_TAR_SUFFIXES):
        return "tar"
    return "parquet" if lowered.endswith(".parquet") else "objects"


def _path(name: str) -> str:
    """Return a name in lower case; of a URL the part before a query."""
    is_url = name.startswith("https://")
    return (re.split("[?#]", name, maxsplit=1)[0] if is_url else name).lower()


def is_packed(name: str) -> bool:
    """Return whether a name has the extension of a shard or of another archive."""
    return kind_of_name(name) != "objects" or is_unread_archive(name)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name inside a source is skipped.

    Dot names and the bookkeeping of data tools are skipped. Other names with a leading `_`, which
    Spark skips, are not, because cameras name photographs `_DSC0001.JPG`.
    """
    return (name.startswith(".") and name not in (".", "..")) or name in _BOOKKEEPING


def is_apple_double(name: str) -> bool:
    """Return whether a member has the name of a file in which macOS keeps attributes of another."""
    return name.rpartition("/")[2].startswith("._")
