"""Access to files and objects: look up, read, stream and write them by URI.

A URI is `file:///abs/path` or `s3://bucket/key`, and is literal: nothing in it is
percent-encoded. Names need not be UTF-8 (surrogateescape); `display_name` makes them so. Files of
other stores (`storage.remote`) have URIs like those of S3. Files of web servers (`https://`, as
URLs are written) and of Hugging Face are read, and not written.

Reads use fsspec (s3fs) and raise `FetchError`. Reads from an object store are retried for several
minutes (`RETRIES`) and checked against the object's size. Writes to an object store use boto3,
which retries by itself; its conditional PUT creates an object once and whole. On a disk a hard link
does the same. Writes raise `UsageError`. `storage.s3` has the clients, `storage.web` reads https.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    ParamValidationError,
    ReadTimeoutError,
)

from prompt_iml.engine.errors import (
    BadAnswer,
    BadCredentials,
    CredentialsFailed,
    Denied,
    FetchError,
    FetchTimeout,
    NotFound,
    OutputNotWritable,
    UsageError,
)
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.storage import remote, s3, web
from prompt_iml.pipeline.storage.retries import RetryPolicy, retry
from prompt_iml.pipeline.units import ObjectRef

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STREAM_BLOCK = 8 << 20  # bytes of one ranged GET of a stream

_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{16}", re.DOTALL)  # as `_write_aside` names files
_STORES = ("s3", *remote.PACKAGES)
_ALIASES = {"gcs": "gs", "abfs": "az"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
RETRIES = RetryPolicy()  # of one read from an object store
PROBE_BYTES = 1 << 20
READ_ONLY = "{}:// is read and not written: choose a folder or s3://bucket/key"
_WRITTEN = ("file", "s3", *remote.WRITABLE)
CREDENTIALS_FIX = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or read a public bucket with "
    "--s3-access anonymous"
)


def canonical(name: str) -> str:
    """Return the canonical URI of a path or URI, without a trailing slash but in a URL.

    Raises:
        UsageError: the name is neither a path nor a URI of a scheme that is read.
    """
    match = _SCHEME.match(name)
    if match is None and name:
        return f"file://{os.path.normpath(Path(name).absolute())}"
    scheme, rest = (match[1].lower(), match[2]) if match else ("", "")
    scheme = _ALIASES.get(scheme, scheme)
    if scheme == "file" and rest.startswith("/"):
        return f"file://{os.path.normpath(rest)}"
    if scheme == "https":
        return _url(rest)
    if scheme in _STORES and rest.partition("/")[0]:
        return f"{scheme}://{rest.rstrip('/')}"
    more = ", https://" if scheme == "http" else ""
    raise UsageError(
        f"cannot read {display_name(name)!r}: use a path, file:///abs/path or s3://bucket/key{more}"
    )


def _url(rest: str) -> str:
    """Return the URL of https with this rest; raise `UsageError` for one that is not asked for."""
    url, problem = f"https://{rest}", "it names no server"
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0 and parts.username is None:
            return url
        problem = "it has a user or a password in it" if parts.username is not None else problem
    except ValueError as error:
        problem = str(error)
    raise UsageError(f"cannot read {display_name(url)!r}: {problem}")


def is_canonical(uri: str) -> bool:
    """Return whether a URI has a scheme that can be read."""
    return uri.partition("://")[0] in ("file", "https", *_STORES)


def is_local(uri: str) -> bool:
    """Return whether a canonical URI lies on this machine."""
    return uri.startswith("file://")


def is_s3(uri: str) -> bool:
    """Return whether a canonical URI lies on S3."""
    return uri.startswith("s3://")


def is_written(uri: str) -> bool:
    """Return whether files can be written where a canonical URI lies."""
    return uri.partition("://")[0] in _WRITTEN


def is_web(uri: str) -> bool:
    """Return whether a canonical URI lies on a web server, which lists no folders."""
    return uri.startswith("https://")


def place(uri: str) -> str:
    """Return the scheme and the bucket, server or data set of a URI; `file://` on this machine."""
    scheme, _, rest = uri.partition("://")
    names = 3 if scheme == "hf" else 0 if scheme == "file" else 1
    return f"{scheme}://{'/'.join(rest.split('/')[:names])}"


def local_path(uri: str) -> Path:
    """Return the path of a `file://` URI."""
    if not is_local(uri):
        raise ValueError(f"{display_name(uri)} is no file of this machine")
    return Path(uri.removeprefix("file://"))


def split_s3(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def display_name(name: str) -> str:
    """Return the name as valid UTF-8; other bytes are written as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def look_up(uri: str) -> ObjectRef | None:
    """Return the file or object at a URI; None for a folder or prefix.

    Raises:
        FetchError: `NotFound`, `Denied`, or the path is not a regular file.
    """
    if is_local(uri):
        return _look_up_local(uri)
    found = retry(lambda: _info(uri), RETRIES)
    if found["type"] == "directory":
        return None
    return ObjectRef(uri, found["size"], remote.version(found))


def _info(uri: str) -> dict[str, Any]:
    scheme, _, path = uri.partition("://")
    with fetching(uri):
        found: dict[str, Any] = filesystem(scheme).info(path)
    return found


def _look_up_local(uri: str) -> ObjectRef | None:
    with fetching(uri):
        status = local_path(uri).stat()
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise FetchError(f"{display_name(uri)}: not a regular file")
    return local_ref(uri, status)


def local_ref(uri: str, status: os.stat_result) -> ObjectRef:
    """Return the reference to a local file with this status."""
    return ObjectRef(uri, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def modified(uri: str) -> datetime:
    """Return when a file or object was last written, in UTC. Raises `FetchError`."""
    if is_local(uri):
        with fetching(uri):
            return datetime.fromtimestamp(local_path(uri).stat().st_mtime, UTC)
    return retry(lambda: _modified(uri), RETRIES)


def _modified(uri: str) -> datetime:
    store, path = _at(uri)
    with fetching(uri):
        written: datetime = _info(uri)["LastModified"] if is_s3(uri) else store.modified(path)
    return written


def exists(uri: str) -> bool:
    """Return whether there is a file, an object or a folder at the URI."""
    try:
        look_up(uri)
    except NotFound:
        return False
    return True


def read_bytes(uri: str, size_bytes: int = -1, most: int = sys.maxsize) -> bytes:
    """Read all bytes of a file or object.

    Args:
        uri: URI of the file or object.
        size_bytes: its listed size; -1 when unknown. The bytes of an object must match this size
            or the one that the store reports now: a truncated body can look complete.
        most: limit of the bytes that are read from a web server, whose files have any size.

    Raises:
        FetchError: `NotFound`, `Denied`, `FetchTimeout`, or another reason.
        TooLarge: a web server sends more than `most` bytes.
    """
    if is_local(uri):
        look_up(uri)  # a pipe would be waited for, and a device has no end
        return _read_once(uri)
    if is_web(uri):  # its client compares the length
        return retry(lambda: _read_once(uri, most=most), RETRIES)
    return retry(lambda: _read_whole(uri, size_bytes), RETRIES)


def _read_whole(uri: str, size_bytes: int) -> bytes:
    data = _read_once(uri)
    if len(data) != size_bytes and len(data) != _info(uri)["size"]:
        raise FetchError(f"{display_name(uri)}: {len(data)} bytes arrived, which is not its size")
    return data


def _read_once(uri: str, **options: int) -> bytes:
    scheme, _, path = uri.partition("://")
    with fetching(uri):
        data: bytes = filesystem(scheme).cat_file(path, **options)
    return data


def open_stream(uri: str) -> BinaryIO:
    """Open a seekable stream over a file or object, which holds a few MiB of it at a time.

    Raises:
        FetchError: from this call and from every method of the stream.
    """
    if is_local(uri):
        look_up(uri)  # as `read_bytes`
    return io.BufferedReader(_Stream(uri), 1 << 20)


class _Stream(io.RawIOBase):
    """Stream over a file of fsspec that raises `FetchError`; errors of objects are retried."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._retries = RetryPolicy(attempts=1) if is_local(uri) else RETRIES
        self._position = 0
        self._file: Any = None
        retry(self._opened, self._retries)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = retry(lambda: self._read_once(buffer), self._retries)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with fetching(self._uri):
            self._position = self._opened().seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _read_once(self, buffer: WriteableBuffer) -> int:
        """Read on; an error closes the file, whose buffered bytes may be wrong."""
        file = self._opened()
        try:
            with fetching(self._uri):
                count: int = file.readinto(buffer)
                if not count and self._position < file.size:
                    raise OSError(f"truncated at byte {self._position} of {file.size}")
        except FetchError:
            self._drop()
            raise
        return count

    def _opened(self) -> Any:
        if self._file is None:
            scheme, _, path = self._uri.partition("://")
            options = {"block_size": STREAM_BLOCK, "cache_type": "readahead"}
            with fetching(self._uri):
                options = {} if is_local(self._uri) else options
                file = filesystem(scheme).open(path, "rb", **options)
                file.seek(self._position)
            self._file = file
        return self._file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def create_once(uri: str, data: bytes) -> bool:
    """Create a file whole, unless it exists already; return whether this call created it.

    Exactly one of any number of concurrent callers gets True, and no reader ever sees a part of the
    file. The result is also False when the first attempt succeeded and only its response was lost.

    Raises:
        OutputNotWritable: the file cannot be written there.
        CredentialsFailed: the object store refuses the credentials.
    """
    with _writing(uri):
        if is_s3(uri):
            return _put_once(uri, data)
        if is_local(uri):
            return _link_once(local_path(uri), data)
        return remote.create_once(*_at(uri), data)


def write(uri: str, data: bytes) -> None:
    """Write a file whole and replace an existing one; raises as `create_once`."""
    with _writing(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        elif is_local(uri):
            _write_aside(local_path(uri), data).replace(local_path(uri))
        else:
            store, path = _at(uri)
            store.pipe_file(path, data)


def upload(uri: str, file: BinaryIO) -> None:
    """Write what a file holds, from its start, to an object store; raises as `create_once`."""
    file.seek(0)
    with _writing(uri):
        if is_s3(uri):
            s3_client().upload_fileobj(file, *split_s3(uri))
            return
        store, path = _at(uri)
        store.put_file(file.name, path)


def remove(uri: str) -> None:
    """Remove a file, if it exists; raises as `create_once`."""
    with _writing(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3_client().delete_object(Bucket=bucket, Key=key)
        elif is_local(uri):
            local_path(uri).unlink(missing_ok=True)
        else:
            store, path = _at(uri)
            with suppress(FileNotFoundError):
                store.rm_file(path)


def _at(uri: str) -> tuple[Any, str]:
    """Return the file system and the path to write to."""
    scheme, _, path = uri.partition("://")
    return filesystem(scheme), path


def check_writable(uri: str) -> None:
    """Check that `create_once` works under a folder, by a race of two writers for one file.

    Raises:
        OutputNotWritable: the folder is not writable, or the store ignores the condition that there
            is no such file, or does not decide a race by it, so that parts could be overwritten.
        CredentialsFailed: the object store refuses the credentials.
    """
    probe = f"{uri}/_runs/.writable-{secrets.token_hex(8)}"
    try:
        decided = _decides_races(probe)
    finally:
        with suppress(UsageError):  # some may write and not delete
            remove(probe)
    if not decided:
        raise OutputNotWritable(
            f"{display_name(uri)}: the store replaces objects in spite of the condition that there "
            "are none, so parts could be lost; use a store with conditional PUTs"
        )


def _decides_races(uri: str) -> bool:
    """Return whether of two writers of a new file one wins, whose file is then kept."""
    bodies = [bytes([number]) * PROBE_BYTES for number in range(2)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        won = list(pool.map(partial(create_once, uri), bodies))
    winners = [body for body, is_won in zip(bodies, won, strict=True) if is_won]
    # Without a winner the store created the file, and only its response was lost.
    one_wins = len(winners) <= 1 and not create_once(uri, b"")
    return one_wins and read_bytes(uri) in (winners or bodies)


def check_reachable(uri: str) -> None:
    """Send one request to the store of a URI: what all requests lack is found in seconds here, not
    after the retries of a read. Of stores other than S3 only the package is looked for.

    Raises:
        CredentialsFailed: the store refuses the credentials.
        UsageError: nothing answers, or there is no such bucket.
    """
    if not is_s3(uri):
        _check_answers(uri)
        return
    bucket, _ = split_s3(uri)
    try:
        with fetching(f"s3://{bucket}"):
            s3.probe(bucket)
    except BadCredentials as error:
        raise CredentialsFailed(f"cannot use {error}; {CREDENTIALS_FIX}") from error
    except Denied:
        return  # to list the bucket: a file in it may be read all the same
    except FetchError as error:
        raise UsageError(f"cannot use {error}") from error


def _check_answers(uri: str) -> None:
    """Check that a web server answers, or that the package of a store is there."""
    filesystem(uri.partition("://")[0])
    try:
        if is_web(uri):
            _info(uri)
    except (NotFound, Denied, BadAnswer):
        return  # reading it reports them, and at once
    except FetchError as error:
        raise UsageError(f"cannot use {error}") from error


def s3_client() -> Any:
    """Return the boto3 client of this process, which threads may share."""
    return s3.client(os.getpid())


@contextmanager
def fetching(uri: str) -> Iterator[None]:
    """Convert the errors that a store raises on reading to `FetchError`."""
    try:
        yield
    except (OSError, BotoCoreError, ClientError, ValueError, *remote.errors()) as error:
        raise _fetch_error(uri, _explained(uri, error)) from error


def _explained(uri: str, error: Exception) -> Exception:
    """Return the error that says why a store refused a HEAD, whose answer holds a status alone:
    credentials that ended must not be taken for a file that may not be read."""
    bucket, key = split_s3(uri) if is_s3(uri) else ("", "")
    if not key or not s3.is_unexplained(error):
        return error
    try:
        s3_client().get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close()
    except (ClientError, BotoCoreError) as refused:
        explained: Exception = refused
        return explained
    return error


def _fetch_error(uri: str, error: Exception) -> FetchError:
    shown, reason = display_name(uri), _reason(error)
    # fsspec's errors of missing objects say their path alone.
    message = f"{shown}: {'nothing is there' if shown.endswith(reason) else reason}"
    if s3.refuses_credentials(error):
        return BadCredentials(message)
    if isinstance(error, ClientError):
        error = _as_os_error(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFound(message)
    if isinstance(error, ParamValidationError | UnicodeError):  # no store has such a name
        return NotFound(message)
    if isinstance(error, PermissionError):
        return Denied(message)
    if isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError):
        return FetchTimeout(message)
    return FetchError(message)


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    message = f"cannot write {display_name(uri)}"
    if not is_written(uri):
        raise OutputNotWritable(f"{message}: {READ_ONLY.format(uri.partition('://')[0])}")
    try:
        yield
    except (OSError, BotoCoreError, ClientError, *remote.errors()) as error:
        if s3.refuses_credentials(error):
            raise CredentialsFailed(f"{message}: {_reason(error)}; {CREDENTIALS_FIX}") from error
        raise OutputNotWritable(f"{message}: {_reason(error)}; choose another --output") from error


def _reason(error: Exception) -> str:
    """Return the error in one line."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(display_name(s3.reason(error) or message)) or type(error).__name__


def _as_os_error(error: ClientError) -> Exception:
    from s3fs.errors import translate_boto_error

    translated: Exception = translate_boto_error(error)
    return translated


def _put_once(uri: str, data: bytes, retries: int = 5) -> bool:
    bucket, key = split_s3(uri)
    try:
        s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]  # a body may break off
        if status == HTTPStatus.PRECONDITION_FAILED:
            return False
        if status == HTTPStatus.CONFLICT and retries:  # another PUT is under way
            time.sleep(0.5)
            return _put_once(uri, data, retries - 1)
        raise
    return True


def _link_once(path: Path, data: bytes) -> bool:
    aside = _write_aside(path, data)
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        return False
    except FileNotFoundError:  # removed by a reader that found `path` complete
        if path.exists():
            return False
        raise
    finally:
        aside.unlink(missing_ok=True)
    return True


def half_written_of(uri: str) -> str | None:
    """Return the URI for which a writer on a disk makes the file at `uri`; None for other files."""
    folder, _, name = uri.rpartition("/")
    aside = _ASIDE.fullmatch(name) if is_local(uri) else None
    return f"{folder}/{aside[1]}" if aside else None


def _write_aside(path: Path, data: bytes) -> Path:
    """Write the bytes to a hidden file beside `path`, flush them to the disk; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk must not also keep the half of it
        aside.unlink(missing_ok=True)
        raise
    return aside


def filesystem(scheme: str) -> Any:
    """Return the file system of fsspec for a scheme, in this process.

    Raises:
        NotFound: it is not read: fsspec has many, some of which are the local disk.
        MissingDependency: its package is not installed.
    """
    if scheme == "file":
        return fsspec.filesystem("file")
    if scheme == "https":
        return web.filesystem(os.getpid())
    if scheme in remote.PACKAGES:
        return remote.filesystem(scheme, os.getpid())
    if scheme != "s3":
        raise NotFound(f"{scheme}:// is not read: use a path, file:///abs/path or s3://")
    return s3.filesystem(os.getpid())
