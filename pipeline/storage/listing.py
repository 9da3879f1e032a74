"""Listing of the objects below a folder or prefix as a stream, in constant memory."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from prompt_iml.engine.errors import FetchError
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.ordered import reading_threads
from prompt_iml.pipeline.storage.remote import version
from prompt_iml.pipeline.storage.retries import retry
from prompt_iml.pipeline.units import ObjectRef

LISTING_THREADS = 16
KEYS_PER_PAGE = 1000  # maximum of S3
RANGES_PER_PAGE = 64
WAYS_TO_A_FOLDER = 1000  # through links, which multiply where folders link to each other

Skip = Callable[[str], bool]
_Identity = tuple[int, int]  # device and inode


def list_objects(
    folder: str,
    skip: Skip = lambda name: False,
    starts: str = "",
    levels: Sequence[re.Pattern[str]] = (),
) -> Iterator[ObjectRef]:
    """Yield every file below a folder, or object below a prefix.

    The order depends on the names alone. It is the byte order of the whole names, except on S3
    beyond one page (1000 keys): there 16 ranges of the keys are listed at once, and their pages
    alternate.

    Args:
        folder: canonical URI to list.
        skip: called with the name of a file or folder (without its parents); True skips it and
            all below it.
        starts: prefix of the names below the folder that are listed.
        levels: patterns of the names of the folders at each depth; of a local folder, others are
            passed over, as are those without the prefix: they need not be readable.

    Raises:
        FetchError: the folder, or a folder below it, cannot be listed, or links lead to it in too
            many ways.
    """
    if storage.is_local(folder):
        return _list_local(folder, skip, starts, levels)
    if storage.is_s3(folder):
        return _list_s3(folder, skip, starts)
    if storage.is_web(folder):
        raise FetchError(f"{folder}: a web server lists no files: give a list of URLs")
    return _list_remote(folder, skip, starts)


def _list_local(
    folder: str, skip: Skip, starts: str, levels: Sequence[re.Pattern[str]]
) -> Iterator[ObjectRef]:
    root = storage.local_path(folder)
    beginning = str(root / starts)

    def passed_over(entry: _Entry, depth: int) -> bool:
        name = os.fsdecode(entry.key.rstrip(b"/"))
        if not entry.key.endswith(b"/"):
            return not entry.path.startswith(beginning) or skip(name)
        path = f"{entry.path}/"
        is_on_way = path.startswith(beginning) or beginning.startswith(path)
        is_level = depth >= len(levels) or levels[depth].match(name)
        return not (is_on_way and is_level) or skip(name)

    return map(_local_ref, _walk(str(root), passed_over))


def _walk(folder: str, passed_over: Callable[[_Entry, int], bool]) -> Iterator[str]:
    """Yield the paths of everything but folders; links are followed.

    Args:
        folder: path to begin at.
        passed_over: called with an entry and its depth, 0 in `folder`.

    Raises:
        FetchError: a folder cannot be listed, or links lead to it in too many ways.
    """
    here, entries = _folder(folder)
    open_folders = {here: entries}  # those above the current path, each with what is left of it
    ways = Counter[_Identity]()  # by links
    while open_folders:
        here = next(reversed(open_folders))
        entry = next(open_folders[here], None)
        if entry is None:
            del open_folders[here]
        elif passed_over(entry, len(open_folders) - 1):
            continue
        elif not entry.key.endswith(b"/"):
            yield entry.path
        else:
            inner, entries = _folder(entry.path)
            if inner in open_folders:  # reached through a link to a folder that contains it
                continue
            if entry.is_link:
                ways[inner] += 1
            if ways[inner] > WAYS_TO_A_FOLDER:
                shown = storage.display_name(entry.path)
                raise FetchError(f"{shown}: links lead to this folder in too many ways")
            open_folders[inner] = entries


class _Entry(NamedTuple):
    """Entry of a folder. The keys sort as on S3: that of a folder is its name with a slash."""

    key: bytes
    path: str
    is_link: bool


def _folder(path: str) -> tuple[_Identity, Iterator[_Entry]]:
    """Return the identity of a folder, and its entries in order."""
    with storage.fetching(f"file://{path}"):
        status = Path(path).stat()
        with os.scandir(path) as scan:
            entries = sorted(map(_entry, scan))
    return (status.st_dev, status.st_ino), iter(entries)


def _entry(entry: os.DirEntry[str]) -> _Entry:
    is_link = entry.is_symlink()
    is_folder = Path(entry.path).is_dir() if is_link else entry.is_dir(follow_symlinks=False)
    return _Entry(os.fsencode(entry.name) + b"/" * is_folder, entry.path, is_link)


def _local_ref(path: str) -> ObjectRef:
    """Return the reference to a file; reading a broken link, a pipe or a device fails."""
    uri = f"file://{path}"
    try:
        status = Path(path).stat()
    except OSError:
        return ObjectRef(uri)
    return storage.local_ref(uri, status) if stat.S_ISREG(status.st_mode) else ObjectRef(uri)


def _list_remote(folder: str, skip: Skip, starts: str) -> Iterator[ObjectRef]:
    """Yield the files of a store that fsspec lists: memory holds a folder on each level."""
    scheme, _, path = folder.partition("://")
    beginning = f"{path}/{starts}"

    def below(path: str) -> Iterator[ObjectRef]:
        for entry in retry(lambda: entries(path), storage.RETRIES):
            name = entry["name"].rstrip("/")
            is_wanted = name.startswith(beginning) and name != path
            if not is_wanted or skip(name.rpartition("/")[2]):
                continue
            if entry["type"] == "directory":
                yield from below(name)
            else:
                yield ObjectRef(f"{scheme}://{name}", entry["size"], version(entry))

    def entries(path: str) -> list[dict[str, Any]]:
        with storage.fetching(f"{scheme}://{path}"):
            found = storage.filesystem(scheme).ls(path, detail=True)
        return sorted(found, key=lambda e: e["name"] + "/" * (e["type"] == "directory"))

    return below(path)


@dataclass(frozen=True, slots=True)
class _Range:
    """Keys of a bucket with a prefix, after `start` and before `end` where they are set.

    `token` is the store's continuation token of the next page in the range.
    """

    bucket: str
    prefix: str
    start: str = ""
    end: str = ""
    token: str = ""


def _list_s3(folder: str, skip: Skip, starts: str) -> Iterator[ObjectRef]:
    bucket, key = storage.split_s3(folder)
    above = f"{key}/" if key else ""
    for page in _pages(_Range(bucket, above + starts)):
        for entry in page:
            name: str = entry["Key"]
            # A key with a slash at its end is how consoles show an empty folder.
            if not name.endswith("/") and not any(map(skip, name[len(above) :].split("/"))):
                yield ObjectRef(f"s3://{bucket}/{name}", entry["Size"], entry["ETag"].strip('"'))


def _pages(whole: _Range) -> Iterator[list[dict[str, Any]]]:
    page, rest = _page(whole)
    if rest is None:
        yield page
        return
    ranges = _split(whole)
    with reading_threads(LISTING_THREADS) as pool:
        turns: deque[Future[tuple[list[dict[str, Any]], _Range | None]]] = deque(
            pool.submit(_page, part) for part in islice(ranges, LISTING_THREADS)
        )
        while turns:
            page, rest = turns.popleft().result()
            following = rest or next(ranges, None)
            if following:
                turns.append(pool.submit(_page, following))
            yield page


def _page(part: _Range) -> tuple[list[dict[str, Any]], _Range | None]:
    """Return the next page of a range, and the rest of the range, None at its end."""
    answer = _list(part)
    page = answer.get("Contents", [])
    inside = [entry for entry in page if not part.end or entry["Key"] < part.end]
    if not answer["IsTruncated"] or len(inside) < len(page):
        return inside, None
    return inside, replace(part, token=answer["NextContinuationToken"])


def _split(whole: _Range) -> Iterator[_Range]:
    """Yield parts of a range, split where folders begin; the range itself without folders."""
    start = ""
    level: _Range | None = _branching(whole)
    while level:
        answer = _list(level, Delimiter="/")
        folders = [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
        stride = -(-len(folders) // RANGES_PER_PAGE) or 1
        for cut in folders[stride::stride]:
            yield _Range(whole.bucket, whole.prefix, start, cut)
            start = cut
        more = folders and answer["IsTruncated"]
        level = replace(level, token=answer["NextContinuationToken"]) if more else None
    yield _Range(whole.bucket, whole.prefix, start)


def _branching(part: _Range) -> _Range:
    """Return the first prefix, at or below this one, that holds more than a single folder."""
    answer = _list(part, Delimiter="/")
    folders = answer.get("CommonPrefixes", [])
    if len(folders) == 1 and not answer.get("Contents") and not answer["IsTruncated"]:
        return _branching(_Range(part.bucket, folders[0]["Prefix"]))
    return part


def _list(part: _Range, **options: str) -> Any:
    if part.token:
        options["ContinuationToken"] = part.token
    with storage.fetching(f"s3://{part.bucket}/{part.prefix}"):
        return storage.s3_client().list_objects_v2(
            Bucket=part.bucket,
            Prefix=part.prefix,
            StartAfter=part.start,
            MaxKeys=KEYS_PER_PAGE,
            **options,
        )
