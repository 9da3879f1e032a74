"""Access to stores; clients of S3: how their requests are signed, and what their errors mean.

S3 is configured by the usual variables of AWS tools: AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID and so on. Beyond these, `use` chooses anonymous or requester-pays access.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import botocore
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)

CLIENT = {"connect_timeout": 10, "read_timeout": 30, "max_pool_connections": 64}
_WRITE_ATTEMPTS = {"mode": "standard", "total_max_attempts": 10}  # waits up to 20 s, with jitter
_ONE_ATTEMPT = {"mode": "standard", "total_max_attempts": 1}  # `retries.retry` repeats it
_FIRST_CONTACT = {
    "connect_timeout": 5,
    "read_timeout": 8,
    "retries": {"mode": "standard", "total_max_attempts": 2},
}
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_DENIED = {"AccessDenied", "AllAccessDisabled", "403"}  # a HEAD has a status and no code
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
_PERMISSIONS = {
    "ListObjectsV2": "list it (s3:ListBucket)",
    "HeadBucket": "list it (s3:ListBucket)",
    "HeadObject": "read it (s3:GetObject)",
    "GetObject": "read it (s3:GetObject)",
    "PutObject": "write there (s3:PutObject)",
    "DeleteObject": "delete there (s3:DeleteObject)",
}

VERSION = "?versionId="  # by which s3fs names a version of an object
_HIDDEN = "?versionId\0="

AccessKind = Literal["signed", "anonymous", "requester-pays"]


@dataclass(frozen=True, slots=True)
class Access:
    """Access to stores.

    Attributes:
        kind: of buckets: `signed` with the credentials of the environment, `anonymous`, or
            `requester-pays`: signed, and every request says that the caller pays for it.
        signed: buckets that are never anonymous, such as that of the output.
        private_addresses: whether https:// may reach addresses that are not public.
    """

    kind: AccessKind = "signed"
    signed: tuple[str, ...] = ()
    private_addresses: bool = False

    @property
    def needs_credentials(self) -> bool:
        """True if some requests are signed, so that credentials must be found."""
        return self.kind != "anonymous" or bool(self.signed)


SIGNED = Access()


class _Requests:
    """Handlers of botocore's events that make each request as `access` says."""

    access = SIGNED

    def register(self, session: Any, no_credentials: Any) -> None:
        """Handle the events of all clients of a botocore session that are created from now on.

        Args:
            session: the session.
            no_credentials: a resolver of its kind that finds none, for where none are needed: the
                usual one would ask the metadata service of a cloud.
        """
        if not self.access.needs_credentials:
            session.register_component("credential_provider", no_credentials)
        session.register("before-parameter-build.s3", self._note_bucket)
        session.register("choose-signer.s3", self._choose_signer)
        session.register("before-call.s3", self._say_who_pays)

    def _note_bucket(self, params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
        context["prompt_iml_bucket"] = params.get("Bucket")

    def _choose_signer(self, context: dict[str, Any], **_: object) -> Any:
        signed = context.get("prompt_iml_bucket") in self.access.signed
        return botocore.UNSIGNED if self.access.kind == "anonymous" and not signed else None

    def _say_who_pays(self, params: dict[str, Any], **_: object) -> None:
        if self.access.kind == "requester-pays":
            params["headers"]["x-amz-request-payer"] = "requester"


_REQUESTS = _Requests()


def use(access: Access) -> None:
    """Make every request of this process with this access from now on."""
    if access.needs_credentials != _REQUESTS.access.needs_credentials:
        client.cache_clear()
        filesystem.cache_clear()
    _REQUESTS.access = access


def current() -> Access:
    """Return the access that the requests of this process have."""
    return _REQUESTS.access


@functools.cache
def client(pid: int) -> Any:
    """Return the boto3 client of a process: connections must not be used after a fork."""
    return _client(CLIENT | {"retries": _WRITE_ATTEMPTS})


@functools.cache
def filesystem(pid: int) -> Any:
    """Return the s3fs file system of a process."""
    from aiobotocore.credentials import (  # type: ignore[import-untyped]
        AioCredentialResolver,
    )
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]
    from s3fs import S3FileSystem

    class Keys(S3FileSystem):  # type: ignore[misc]
        """File system in whose paths `?versionId=` is a part of the key, and no version."""

        def split_path(self, path: str) -> tuple[str, str, None]:
            bucket, key, _ = super().split_path(path.replace(VERSION, _HIDDEN))
            return bucket, key.replace(_HIDDEN, VERSION), None

    session = AioSession()
    _REQUESTS.register(session, AioCredentialResolver([]))
    found = Keys(
        session=session,
        use_listings_cache=False,
        max_concurrency=1,  # else every read requests the size first
        config_kwargs=CLIENT | {"retries": _ONE_ATTEMPT},
        skip_instance_cache=True,
    )
    found.retries = 1
    return found


def probe(bucket: str) -> None:
    """Send one request that fails as all would; raise its error, unless a retry may help."""
    try:
        _client(_FIRST_CONTACT).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
            raise
    except (ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError, SSLError):
        raise
    except BotoCoreError as error:
        if refuses_credentials(error):
            raise


def refuses_credentials(error: BaseException | None) -> bool:
    """Return whether a store refused the credentials themselves, or there are none."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return True
    answer = _answer(error)
    return answer is not None and _code(answer) in _BAD_CREDENTIALS


def is_unexplained(error: BaseException | None) -> bool:
    """Return whether a store refused a request with a status and no code."""
    answer = _answer(error)
    return answer is not None and _code(answer) in ("400", "403")


def reason(error: BaseException) -> str:
    """Return in words what a request lacked; empty for an error that has nothing to do with S3."""
    if answer := _answer(error):
        return _reason_of_answer(answer)
    if isinstance(error, SSLError):
        return f"{error}: set AWS_CA_BUNDLE to a file with the certificate of its authority"
    if isinstance(error, EndpointConnectionError):
        return f"nothing answers at {error.kwargs['endpoint_url']}: check AWS_ENDPOINT_URL"
    return ""


def _reason_of_answer(answer: ClientError) -> str:
    code, operation = _code(answer), answer.operation_name
    if code == "NoSuchBucket" or (code == "404" and operation == "HeadBucket"):
        return "NoSuchBucket: the bucket does not exist"
    if code in _ELSEWHERE and (region := _region(answer)):
        return f"{code}: the bucket is in another region: set AWS_DEFAULT_REGION={region}"
    if code in _DENIED and operation in _PERMISSIONS:
        hint = "; see --s3-access for public and requester-pays buckets"
        hint = hint if _REQUESTS.access.kind == "signed" else ""
        return f"{code}: no permission to {_PERMISSIONS[operation]}{hint}"
    return f"{code}: {answer.response['Error'].get('Message')}"


def _answer(error: BaseException | None) -> ClientError | None:
    """Return the store's answer behind an error; s3fs keeps it as the cause."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return error


def _code(answer: ClientError) -> str:
    return str(answer.response["Error"].get("Code"))


def _region(answer: ClientError) -> str | None:
    headers = answer.response["ResponseMetadata"].get("HTTPHeaders", {})
    found: str | None = headers.get("x-amz-bucket-region") or answer.response["Error"].get("Region")
    return found


def _client(options: dict[str, Any]) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.credentials import CredentialResolver

    session = botocore.session.get_session()
    _REQUESTS.register(session, CredentialResolver([]))
    return boto3.session.Session(botocore_session=session).client("s3", config=Config(**options))
