"""Errors that the product raises on purpose, each with a stable code.

    PromptImlError
    ├── UsageError             usage               exit 2: one line that says how to fix it
    │   ├── MissingInput       missing_input
    │   ├── EmptySource        empty_source
    │   ├── OutputNotWritable  output_not_writable
    │   ├── CredentialsFailed  credentials_failed
    │   ├── UnknownModel       unknown_model
    │   ├── DamagedModel       damaged_model
    │   ├── RunMismatch        run_mismatch
    │   ├── MissingDependency  missing_dependency
    │   ├── UnknownPrompts     unknown_prompts
    │   ├── NotPromoted        not_promoted
    │   ├── LeaseHeld          lease_held
    │   ├── LeaseLost          lease_lost
    │   └── BadLabels          bad_labels
    └── ImageError                                 becomes one row with status=failed
        ├── FetchError         fetch_failed        stage "fetch"
        │   ├── NotFound       not_found
        │   ├── Denied         denied
        │   │   └── BadCredentials bad_credentials ends a scan: all that is left would be denied
        │   ├── FetchTimeout   timeout
        │   ├── BadAnswer      bad_answer
        │   ├── DamagedShard   damaged_shard
        │   └── AlreadyScanned already_scanned     status=skipped, not failed
        ├── DecodeError        corrupt             stage "decode"
        │   ├── Empty          empty
        │   ├── Truncated      truncated
        │   ├── Unsupported    unsupported
        │   ├── NotAnImage     not_an_image        status=skipped, not failed
        │   └── TooLarge       too_large
        ├── InferError         infer_failed        stage "infer"
        │   └── DeviceFull     device_full         one image did not fit; batches are halved before
        └── Fatal                                  stage in which it happened
            ├── Crashed        crashed
            ├── TimedOut       timeout
            └── OutOfMemory    out_of_memory

Codes and stages are part of the results schema (version 1): they are added to, never renamed.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class PromptImlError(Exception):
    """Base of all errors that the product raises on purpose."""

    code: ClassVar[str] = "error"

    def bare(self) -> Self:
        """Forget the traceback and the causes, whose frames hold the data that was read."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


class UsageError(PromptImlError):
    """The command cannot run as asked; the message is one line that says how to fix it."""

    code = "usage"


class MissingInput(UsageError):
    """An INPUT names nothing that exists."""

    code = "missing_input"


class EmptySource(UsageError):
    """The inputs exist and hold nothing to scan."""

    code = "empty_source"


class OutputNotWritable(UsageError):
    """The output location cannot be written to."""

    code = "output_not_writable"


class CredentialsFailed(UsageError):
    """The object store refused the credentials."""

    code = "credentials_failed"


class UnknownModel(UsageError):
    """No model of that name or at that path."""

    code = "unknown_model"


class DamagedModel(UsageError):
    """A model's file cannot be read, or its files do not belong together."""

    code = "damaged_model"


class RunMismatch(UsageError):
    """The run id exists with another configuration."""

    code = "run_mismatch"


class MissingDependency(UsageError):
    """An optional package is needed and not installed."""

    code = "missing_dependency"


class UnknownPrompts(UsageError):
    """The registry has no prompt set of that name, or several."""

    code = "unknown_prompts"


class NotPromoted(UsageError):
    """The gate refused the prompt set, or somebody else moved `current` first."""

    code = "not_promoted"


class LeaseHeld(UsageError):
    """Another re-training cycle is under way."""

    code = "lease_held"


class LeaseLost(UsageError):
    """This cycle's lease ran out and another cycle took it."""

    code = "lease_lost"


class BadLabels(UsageError):
    """A row of reviewers' labels is invalid."""

    code = "bad_labels"


class ImageError(PromptImlError):
    """One image cannot be scanned; it becomes a row, and the scan goes on.

    Args:
        message: what happened, in plain words; rows keep its first 300 characters.
        facts: result columns known before the failure (say `width`), kept in the row.
    """

    stage: str
    status: ClassVar[str] = "failed"

    def __init__(self, message: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = facts or {}


class FetchError(ImageError):
    """The bytes could not be fetched."""

    stage = "fetch"
    code = "fetch_failed"


class NotFound(FetchError):
    """The object does not exist, or no longer."""

    code = "not_found"


class Denied(FetchError):
    """The store denies access to the object."""

    code = "denied"


class BadCredentials(Denied):
    """The store knows our credentials no more, or there are none: it refuses all objects alike."""

    code = "bad_credentials"


class FetchTimeout(FetchError):
    """The store did not answer in time."""

    code = "timeout"


class BadAnswer(FetchError):
    """A web server answers with what cannot be used, and would do so again."""

    code = "bad_answer"


class DamagedShard(FetchError):
    """A shard is truncated or corrupt at this point; the rest of it cannot be read."""

    code = "damaged_shard"


class AlreadyScanned(FetchError):
    """Another run has a row for the same URI and ETag."""

    code = "already_scanned"
    status = "skipped"


class DecodeError(ImageError):
    """The bytes claim to be an image and do not decode."""

    stage = "decode"
    code = "corrupt"


class Empty(DecodeError):
    """The file has zero bytes."""

    code = "empty"


class Truncated(DecodeError):
    """The image data ends early."""

    code = "truncated"


class Unsupported(DecodeError):
    """The format, or this variant of it, is not on the allow-list."""

    code = "unsupported"


class NotAnImage(DecodeError):
    """Neither the bytes nor the name are those of an image (a README in a bucket)."""

    code = "not_an_image"
    status = "skipped"


class TooLarge(DecodeError):
    """The image has more bytes or pixels than the limits allow."""

    code = "too_large"


class InferError(ImageError):
    """The engine failed on this image."""

    stage = "infer"
    code = "infer_failed"


class DeviceFull(InferError):
    """The device has no room for a batch of this size."""

    code = "device_full"


class Fatal(ImageError):
    """The image ended the process that scanned it, or had to be ended with it.

    Args:
        message: what happened.
        stage: the stage in which it happened: fetch, decode or infer.
    """

    def __init__(self, message: str, stage: str = "decode") -> None:
        super().__init__(message)
        self.stage = stage


class Crashed(Fatal):
    """The process died of a signal, or exited unexpectedly."""

    code = "crashed"


class TimedOut(Fatal):
    """The image took longer than the time limit."""

    code = "timeout"


class OutOfMemory(Fatal):
    """The image took more memory than the limit for one image."""

    code = "out_of_memory"
