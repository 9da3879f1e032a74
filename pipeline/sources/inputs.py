"""Detection of the kind of each INPUT, and listing of its shards and plain objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from fsspec.utils import glob_translate

from prompt_iml.engine.errors import (
    BadCredentials,
    CredentialsFailed,
    Denied,
    FetchError,
    MissingInput,
    NotFound,
    UsageError,
)
from prompt_iml.pipeline.images.sniff import HEAD_BYTES, describe_stand_in, sniff
from prompt_iml.pipeline.sources.names import (
    UNREAD_ARCHIVE,
    Format,
    Kind,
    claims_to_be_image,
    is_hidden,
    is_unread_archive,
    kind_of_name,
)
from prompt_iml.pipeline.sources.parquet import base64_column, column_of_images, open_parquet
from prompt_iml.pipeline.sources.tables import decoded_head
from prompt_iml.pipeline.sources.tar import is_archive
from prompt_iml.pipeline.sources.uri_list import PARQUET_MAGIC, is_list, read_list
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.units import ObjectRef

_WILDCARD = re.compile(r"[*?[]")
_UNREAD_MAGIC = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_WRITTEN = re.compile(  # by our commands, into an output
    r"/(results/part-[^/]+\.parquet$|report\.html$|reviews/review-[^/]+\.parquet$"
    r"|exports/[^/]+\.(csv|jsonl?|parquet)$|exports/(overlays|masks|images)/)"
)
_OUTPUTS_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """File that an input names.

    Attributes:
        kind: `objects` for one plain object, which may or may not be an image.
        ref: reference to the file.
    """

    kind: Kind
    ref: ObjectRef


@dataclass(frozen=True, slots=True)
class Source:
    """File or folder that one INPUT names.

    Attributes:
        name: INPUT as the user gave it.
        uri: URI of the file, or of the folder to list.
        file: reference to the file; None for a folder.
        starts, pattern: for a glob, the prefix of names to list and the pattern of URIs to take.
        levels: for a glob, the patterns of the names of folders at each depth; empty for any.
    """

    name: str
    uri: str
    file: ObjectRef | None = None
    starts: str = ""
    pattern: re.Pattern[str] | None = None
    levels: tuple[re.Pattern[str], ...] = ()


def resolve(name: str) -> Source:
    """Find the file or folder of an INPUT; a name with wildcards that exists is not a glob.

    `s3://bucket/photos/` is the folder, also where an object has the name `photos`.

    Raises:
        UsageError: as `entries_of`.
    """
    uri = storage.canonical(name)
    with _usage_errors(uri):
        try:
            file = storage.look_up(uri)
            is_folder = name.endswith("/") and not uri.startswith(("file://", "https://"))
            return Source(name, uri, None if is_folder else file)
        except NotFound:
            wildcard = None if storage.is_web(uri) else _WILDCARD.search(uri)
            if wildcard is None:
                raise
    return _glob(name, uri, wildcard.start())


def entries_of(
    source: Source,
    format: Format,  # noqa: A002
    image_column: str | None,
    trust_lists: bool,
) -> Iterator[Entry]:
    """Yield the files of an input, in the order of `list_objects` or of the list.

    What our commands wrote into an output at or below a folder is passed over.

    Raises:
        MissingInput: the input does not exist, or no name matches it.
        CredentialsFailed: the store refuses to list or read the input.
        UsageError: the input cannot be read for another reason.
    """
    with _usage_errors(source.uri):
        if source.file:
            kind = _kind_of_input(source.file, image_column) if format == "auto" else format
            yield from _expand(source.file, kind, trust_lists)
            return
        matches, own = 0, _OwnFiles(source.uri)
        for ref in list_objects(source.uri, is_hidden, source.starts, source.levels):
            if source.pattern is None or source.pattern.match(ref.uri):
                matches += 1
                if own.has(ref.uri):
                    continue
                yield from _expand(
                    ref, kind_of_name(ref.uri) if format == "auto" else format, trust_lists
                )
        if source.pattern and not matches:
            raise NotFound(f"nothing matches {storage.display_name(source.name)}")


@contextmanager
def _usage_errors(uri: str) -> Iterator[None]:
    """Convert errors of a read to errors of the command, for reads of an input itself."""
    try:
        yield
    except NotFound as error:
        raise MissingInput(f"no such input: {error}") from error
    except BadCredentials as error:
        raise CredentialsFailed(f"{error}; {storage.CREDENTIALS_FIX}") from error
    except Denied as error:
        fix = "; check its permissions" if storage.is_local(uri) else ""
        raise CredentialsFailed(f"{error}{fix}") from error
    except FetchError as error:
        raise UsageError(f"cannot read {error}") from error


def _glob(name: str, uri: str, wildcard: int) -> Source:
    """Return the source of the files that match, and of all files in folders that match."""
    folder, _, starts = uri[:wildcard].rpartition("/")
    try:
        pattern = re.compile(f"{glob_translate(uri)}|{glob_translate(f'{uri}/**')}")
        parts = uri.removeprefix(f"{folder}/").split("/")
        levels = [] if "**" in parts else [re.compile(glob_translate(part)) for part in parts]
    except ValueError as error:
        raise UsageError(f"{storage.display_name(name)}: {error}") from error
    root = folder if folder != "file://" else "file:///"
    return Source(name, root, None, starts, pattern, tuple(levels))


class _OwnFiles:
    """Files that our own commands wrote into the outputs at or below a folder.

    Overlays are no photographs to scan, and a new report is no change of the inputs. A name alone
    does not decide, because people have folders such as `exports` too: an output has a folder
    `_runs`, which each scan makes first.

    Args:
        folder: URI of the folder; what lies in an output above it is scanned like other files.
    """

    def __init__(self, folder: str) -> None:
        self._start = len(folder)
        self._is_output = lru_cache(_OUTPUTS_REMEMBERED)(_is_output)

    def has(self, uri: str) -> bool:
        """Return whether one of our commands wrote the file."""
        found = _WRITTEN.finditer(uri, self._start)
        return any(self._is_output(uri[: match.start()]) for match in found)


def _is_output(folder: str) -> bool:
    try:
        return storage.exists(f"{folder}/_runs")
    except FetchError:
        return False


def _expand(ref: ObjectRef, kind: Kind, trust_lists: bool) -> Iterator[Entry]:
    if kind == "list":
        for named in read_list(ref.uri, trust_lists=trust_lists):
            readable = not named.refused and storage.is_canonical(named.uri)
            yield Entry(kind_of_name(named.uri) if readable else "objects", named)
    else:
        yield Entry(kind, ref)


def _kind_of_input(ref: ObjectRef, image_column: str | None) -> Kind:
    """Detect the kind of a file by its content.

    Raises:
        UsageError: it is neither an image nor a shard nor a list.
    """
    with storage.open_stream(ref.uri) as stream:
        head = stream.read(8 * HEAD_BYTES)
        has_members = is_archive(stream)
    named = kind_of_name(ref.uri)
    if named == "parquet" or head.startswith(PARQUET_MAGIC):
        return _kind_of_parquet(ref.uri, image_column)
    if named == "tar" or has_members:
        return "tar"
    if is_unread_archive(ref.uri) or head.startswith(_UNREAD_MAGIC):
        raise UsageError(f"{storage.display_name(ref.uri)} is {UNREAD_ARCHIVE}")
    if claims_to_be_image(ref.uri) or sniff(head):
        return "objects"
    if stand_in := describe_stand_in(head):
        raise UsageError(f"{storage.display_name(ref.uri)} is {stand_in}")
    if not _CONTROL.search(decoded_head(head)) and is_list(ref.uri, head):
        return "list"
    raise UsageError(
        f"{storage.display_name(ref.uri)} is neither an image nor a shard (tar, zip, Parquet) nor "
        "a list: give a folder, one of these, or a list with one path a line or a column `uri`"
    )


def _kind_of_parquet(uri: str, image_column: str | None) -> Kind:
    try:
        with open_parquet(uri) as file:
            column = column_of_images(uri, file.schema_arrow, image_column) or base64_column(file)
            return "parquet" if column else "list"
    except FetchError:
        return "parquet"  # reading it reports the error
