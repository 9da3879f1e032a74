"""Everything that touches a file system or an object store.

A URI is `file:///abs/path` or `s3://bucket/key`, and is literal: nothing in it is
percent-encoded. Names need not be UTF-8 (surrogateescape); `display_name` makes them so.

Reading goes through fsspec (s3fs) and fails with a `FetchError`; what an object store answers is
tried again for minutes (`PATIENCE`) and believed only if the bytes are as many as they should be.
Writing goes through boto3, which retries by itself and whose conditional PUT creates an object
once and whole, or through a hard link, which does the same on a disk, and fails with a
`UsageError`. S3 is configured as every AWS tool is: AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID and so on.
"""

from __future__ import annotations

import functools
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)

from prompt_iml.engine.errors import (
    CredentialsFailed,
    Denied,
    FetchError,
    FetchTimeout,
    NotFound,
    OutputNotWritable,
    UsageError,
)
from prompt_iml.pipeline.storage.retries import Patience, patiently
from prompt_iml.pipeline.units import ObjectRef

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STREAM_BLOCK = 8 << 20  # bytes a ranged GET of a stream asks for

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
PATIENCE = Patience()  # with one read from an object store
_CLIENT = {"connect_timeout": 10, "read_timeout": 30, "max_pool_connections": 64}
_WRITE_ATTEMPTS = {"mode": "standard", "total_max_attempts": 10}  # waits up to 20 s, with jitter
_ONE_ATTEMPT = {"mode": "standard", "total_max_attempts": 1}  # `patiently` does it
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
CREDENTIALS_FIX = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def canonical(name: str) -> str:
    """The one URI of a path or URI, without a trailing slash.

    Raises:
        UsageError: neither a path nor a URI of a scheme that we read.
    """
    match = _SCHEME.match(name)
    if match is None and name:
        return f"file://{os.path.normpath(Path(name).absolute())}"
    scheme, rest = (match[1].lower(), match[2]) if match else ("", "")
    if scheme == "file" and rest.startswith("/"):
        return f"file://{os.path.normpath(rest)}"
    if scheme == "s3" and rest.partition("/")[0]:
        return f"s3://{rest.rstrip('/')}"
    raise UsageError(
        f"cannot read {display_name(name)!r}: use a path, file:///abs/path or s3://bucket/key"
    )


def is_canonical(uri: str) -> bool:
    """Whether it is of a scheme that we read."""
    return uri.startswith(("file://", "s3://"))


def is_s3(uri: str) -> bool:
    """Whether a canonical URI lies on S3."""
    return uri.startswith("s3://")


def local_path(uri: str) -> Path:
    """The path of a `file://` URI."""
    return Path(uri.removeprefix("file://"))


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def display_name(name: str) -> str:
    """The name as valid UTF-8: bytes that are not are shown as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def look_up(uri: str) -> ObjectRef | None:
    """The file or object at a URI; None for a folder or prefix.

    Raises:
        FetchError: `NotFound` when there is nothing, `Denied`, or that it is no regular file.
    """
    if not is_s3(uri):
        return _look_up_local(uri)
    found = patiently(lambda: _info(uri), PATIENCE)
    if found["type"] == "directory":
        return None
    return ObjectRef(uri, found["size"], found["ETag"].strip('"'))


def _info(uri: str) -> dict[str, Any]:
    with fetching(uri):
        found: dict[str, Any] = _filesystem("s3", os.getpid()).info(uri.removeprefix("s3://"))
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
    """The local file of that status."""
    return ObjectRef(uri, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def exists(uri: str) -> bool:
    """Whether there is a file, an object or a folder at the URI."""
    try:
        look_up(uri)
    except NotFound:
        return False
    return True


def read_bytes(uri: str, size_bytes: int = -1) -> bytes:
    """All bytes of a file or object.

    Args:
        uri: where it is.
        size_bytes: as listed; -1 when unknown. An object must have as many, or as many as the
            store says now: a body that breaks off can look whole.

    Raises:
        FetchError: `NotFound`, `Denied`, `FetchTimeout`, or another reason.
    """
    if not is_s3(uri):
        return _read_once(uri)
    return patiently(lambda: _read_whole(uri, size_bytes), PATIENCE)


def _read_whole(uri: str, size_bytes: int) -> bytes:
    data = _read_once(uri)
    if len(data) != size_bytes and len(data) != _info(uri)["size"]:
        raise FetchError(f"{display_name(uri)}: {len(data)} bytes arrived, and there are more")
    return data


def _read_once(uri: str) -> bytes:
    scheme, _, path = uri.partition("://")
    with fetching(uri):
        data: bytes = _filesystem(scheme, os.getpid()).cat_file(path)
    return data


def open_stream(uri: str) -> BinaryIO:
    """A seekable stream over a file or object that holds a few MiB of it at a time.

    Raises:
        FetchError: here, and from every method of the stream.
    """
    return io.BufferedReader(_Stream(uri), 1 << 20)


class _Stream(io.RawIOBase):
    """A file of fsspec whose failures are FetchErrors; over an object, they are outlasted."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._patience = PATIENCE if is_s3(uri) else Patience(attempts=1)
        self._position = 0
        self._file: Any = None
        patiently(self._opened, self._patience)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = patiently(lambda: self._read_once(buffer), self._patience)
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
        """Read on, in a file opened anew if the last attempt failed: what that one holds of the
        object may be wrong."""
        file = self._opened()
        try:
            with fetching(self._uri):
                count: int = file.readinto(buffer)
                if not count and self._position < file.size:
                    raise OSError(f"breaks off at byte {self._position} of {file.size}")
        except FetchError:
            self._drop()
            raise
        return count

    def _opened(self) -> Any:
        if self._file is None:
            scheme, _, path = self._uri.partition("://")
            options = {"block_size": STREAM_BLOCK, "cache_type": "readahead"}
            with fetching(self._uri):
                filesystem = _filesystem(scheme, os.getpid())
                file = filesystem.open(path, "rb", **(options if is_s3(self._uri) else {}))
                file.seek(self._position)
            self._file = file
        return self._file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def create_once(uri: str, data: bytes) -> bool:
    """Create a file whole, unless there is one of that name already.

    Of any number of concurrent creators exactly one gets True, and nobody ever sees a part of
    the file. False also when our own first attempt arrived and only its answer was lost.

    Raises:
        OutputNotWritable: the location refuses a file.
        CredentialsFailed: the object store refuses who we are.
    """
    with _writing(uri):
        if is_s3(uri):
            return _put_once(uri, data)
        return _link_once(local_path(uri), data)


def write(uri: str, data: bytes) -> None:
    """Write a file whole, in place of one that may be there. Raises as `create_once`."""
    with _writing(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        else:
            _write_aside(local_path(uri), data).replace(local_path(uri))


def remove(uri: str) -> None:
    """Remove a file, if it is there. Raises as `create_once`."""
    with _writing(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3_client().delete_object(Bucket=bucket, Key=key)
        else:
            local_path(uri).unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Prove that `create_once` works under a folder: leaves an empty `_runs/.writable` there.

    Raises:
        OutputNotWritable: also when the store ignores `If-None-Match`, the guarantee of every
            part file.
        CredentialsFailed: the object store refuses who we are.
    """
    probe = f"{uri}/_runs/.writable"
    create_once(probe, b"")
    if create_once(probe, b""):
        raise OutputNotWritable(
            f"{display_name(uri)}: the store replaces objects in spite of If-None-Match, so parts "
            "could be lost; use a store with conditional PUTs"
        )


def s3_client() -> Any:
    """This process's boto3 client, which threads may share."""
    return _client(os.getpid())


@contextmanager
def fetching(uri: str) -> Iterator[None]:
    """Turn what a store raises on reading into the FetchError that it means."""
    try:
        yield
    except (OSError, BotoCoreError, ClientError, ValueError) as error:
        raise _fetch_error(uri, error) from error
    except _wire_errors() as error:
        raise _fetch_error(uri, error) from error


def _fetch_error(uri: str, error: Exception) -> FetchError:
    told = f"{display_name(uri)}: {_reason(error)}"
    if isinstance(error, ClientError):
        error = _as_os_error(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFound(told)
    if isinstance(error, PermissionError | NoCredentialsError | PartialCredentialsError):
        return Denied(told)
    if isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError):
        return FetchTimeout(told)
    return FetchError(told)


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    told = f"cannot write {display_name(uri)}"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CredentialsFailed(f"{told}: {_reason(error)}; {CREDENTIALS_FIX}") from error
    except ClientError as error:
        if error.response["Error"].get("Code") in _BAD_CREDENTIALS:
            raise CredentialsFailed(f"{told}: {_reason(error)}; {CREDENTIALS_FIX}") from error
        raise OutputNotWritable(f"{told}: {_reason(error)}; choose another --output") from error
    except (OSError, BotoCoreError) as error:
        raise OutputNotWritable(f"{told}: {_reason(error)}; choose another --output") from error


def _reason(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, ClientError):
        answer = error.response["Error"]
        return f"{answer.get('Code')}: {answer.get('Message')}"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(display_name(told).split()) or type(error).__name__


def _as_os_error(error: ClientError) -> Exception:
    from s3fs.errors import translate_boto_error

    translated: Exception = translate_boto_error(error)
    return translated


def _wire_errors() -> tuple[type[Exception], ...]:
    """What else s3fs lets through; told only when needed, as importing it takes half a second."""
    from aiohttp import ClientError as WireError

    return (WireError,)


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
    finally:
        aside.unlink()
    return True


def _write_aside(path: Path, data: bytes) -> Path:
    """The bytes, on the disk under a hidden name in the folder of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    with aside.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return aside


@functools.cache
def _filesystem(scheme: str, pid: int) -> Any:
    """One a process, for all its threads: connections outlive no fork."""
    if scheme == "file":
        return fsspec.filesystem("file")
    if scheme != "s3":  # fsspec knows many more, some of them other names of this machine's disk
        raise FetchError(f"{scheme}:// is not read: use a path, file:///abs/path or s3://")
    filesystem = fsspec.filesystem(
        scheme,
        use_listings_cache=False,
        max_concurrency=1,  # else every read asks for the size first
        config_kwargs=_CLIENT | {"retries": _ONE_ATTEMPT},
        skip_instance_cache=True,
    )
    filesystem.retries = 1
    return filesystem


@functools.cache
def _client(pid: int) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client("s3", config=Config(**_CLIENT, retries=_WRITE_ATTEMPTS))
