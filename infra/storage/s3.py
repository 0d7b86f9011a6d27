"""S3 by boto3, patiently: what a server refuses for a while is asked again, what it refuses for good is a sentence.

Endpoint, region and credentials come from where boto3 finds them: the standard AWS variables, profiles, the machine's role.
Messages name the server, never a key.
"""

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from infra.errors import UserError

PATIENCE_SECONDS = 60.0
"""For how long after its first failure a request is tried again."""

CHECK_SECONDS = 4.0
"""The same where somebody waits to hear whether a run can start."""

PART_BYTES = 16 * 2**20
"""Objects larger than this go and come in parts of this size; boto3 holds up to ten of them."""

PAGE = 1000
"""Keys that are listed or deleted by one request; S3 allows no more."""

_PARALLEL_PARTS = 4
_LONGEST_PAUSE = 5.0
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_PASSING_CODES = (
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "IncompleteBody",
)
_ARROW_TRIES = 11  # pauses of 25 ms · 2ⁿ: 51 s in all, as near PATIENCE_SECONDS as it goes


def pause(attempt: int) -> float:
    """Seconds to wait after the `attempt`th failure (from 1): exponential, with jitter so that workers don't come back at once."""
    return random.uniform(0.5, 1) * min(0.1 * 2**attempt, _LONGEST_PAUSE)


def client(seconds: float | None = None) -> Any:
    """This process's boto3 client; it tries for `seconds` (default PATIENCE_SECONDS) after a request's first failure."""
    return _client(os.getpid(), _aws_variables(), PATIENCE_SECONDS if seconds is None else seconds)


def filesystem(bucket: str) -> pafs.FileSystem:
    """pyarrow's S3 with the client's endpoint and region, as patient as the client. It can be pickled: no keys go along, and it stays patient."""
    return _filesystem(os.getpid(), _aws_variables(), bucket)


def _aws_variables() -> frozenset[tuple[str, str]]:
    """What clients are remembered by: another environment means another server."""
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))


@cache
def _client(pid: int, variables: frozenset[tuple[str, str]], seconds: float) -> Any:
    import boto3
    from botocore.config import Config

    quick = seconds < PATIENCE_SECONDS
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # they stop too soon; `_Patience` takes their place
        connect_timeout=3 if quick else 10,
        read_timeout=6 if quick else 60,
        max_pool_connections=32,
    )
    try:
        made = boto3.session.Session().client("s3", config=config)
    except ValueError as error:  # botocore's "Invalid endpoint"
        raise UserError(
            f"AWS_ENDPOINT_URL is not the address of an S3 server ({_without_login(str(error))}): http://host:port is needed"
        ) from None
    made.meta.events.register("needs-retry.s3", _Patience(seconds))
    return made


@dataclass(frozen=True)
class _Patience:
    """Botocore's hook that says how long to wait before a request is sent again, or None to give up."""

    seconds: float

    def __call__(
        self, *, response: Any, attempts: int, caught_exception: Any, request_dict: dict[str, Any], **_: Any
    ) -> float | None:
        if not _passing(response, caught_exception):
            return None
        first_failure = request_dict["context"].setdefault("first_failure", time.monotonic())
        return pause(attempts) if time.monotonic() - first_failure < self.seconds else None


def _passing(response: Any, error: BaseException | None) -> bool:
    """True for a failure that may pass by itself."""
    if error is not None:
        return isinstance(error, _network_errors())
    raw, parsed = response
    return raw.status_code in _PASSING_STATUS or parsed.get("Error", {}).get("Code") in _PASSING_CODES


@cache
def _network_errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


class _Patient(pafs.S3FileSystem):
    """What pyarrow pickles of a filesystem lacks its retry strategy, so this one is made anew where it arrives."""

    bucket: str

    def __reduce__(self) -> tuple[Any, ...]:
        return filesystem, (self.bucket,)


@cache
def _filesystem(pid: int, variables: frozenset[tuple[str, str]], bucket: str) -> pafs.FileSystem:
    s3 = client()
    host = urlsplit(s3.meta.endpoint_url)
    amazon = (host.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    region = s3.head_bucket(Bucket=bucket).get("BucketRegion") if amazon else s3.meta.region_name or "us-east-1"
    made = _Patient(
        endpoint_override=None if amazon else host.netloc,
        scheme=host.scheme,
        region=region,
        # The "standard" strategy has a quota of retries: after a minute of refusals it tries nothing again.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=_ARROW_TRIES),
        connect_timeout=10,
        request_timeout=60,
        **({"tls_ca_file_path": bundle} if (bundle := os.environ.get("AWS_CA_BUNDLE")) else {}),
    )
    made.bucket = bucket
    return made


def read(bucket: str, key: str) -> tuple[bytes, str]:
    """An object's content and its ETag; a connection that is cut in the middle is not its end."""
    s3, first_failure, attempt = client(), None, 0
    while True:
        found = s3.get_object(Bucket=bucket, Key=key)
        try:
            return bytes(found["Body"].read()), found["ETag"]
        except _network_errors():
            now, attempt = time.monotonic(), attempt + 1
            first_failure = first_failure or now
            if now - first_failure > PATIENCE_SECONDS:
                raise
            time.sleep(pause(attempt))


def transfer() -> Any:
    """How boto3's managed transfers move large objects: in parts, a few at a time."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=_PARALLEL_PARTS)


def keys(bucket: str, prefix: str) -> Iterator[str]:
    """All keys that begin with `prefix`, a page at a time."""
    for page in (
        client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE})
    ):
        yield from (found["Key"] for found in page.get("Contents", ()))


def delete(bucket: str, doomed: list[str]) -> None:
    """Delete up to a page of objects. Raises UserError where the server keeps some."""
    attempt = 0
    while doomed:
        reply = client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in doomed], "Quiet": True})
        if not (errors := reply.get("Errors")):
            return
        doomed, attempt = [error["Key"] for error in errors], attempt + 1
        if attempt > 5 or not all(error.get("Code") in _PASSING_CODES for error in errors):
            raise UserError(f"S3 at {endpoint()} won't delete s3://{bucket}/{doomed[0]} ({errors[0].get('Code')})")
        time.sleep(pause(attempt))


def head(bucket: str, key: str) -> dict[str, Any] | None:
    """What S3 tells of an object without sending it (ContentLength, ETag, …); None where there is none."""
    from botocore.exceptions import ClientError

    try:
        return dict(client().head_object(Bucket=bucket, Key=key))
    except ClientError as error:
        if _code(error) in _MISSING:
            return None
        raise


def exchange(bucket: str, key: str, old: bytes | None, new: bytes | None) -> bool:
    """Put `new` in the place of `old` (None is no object) in one step; False where something else than `old` stands there.

    The server sees to it, by conditional requests (AWS, MinIO, SeaweedFS from 4.18).
    """
    from botocore.exceptions import ClientError

    s3, place = client(), {"Bucket": bucket, "Key": key}
    try:
        content, etag = (None, None) if old is None else read(bucket, key)
    except ClientError as error:
        if _code(error) in _MISSING:
            return False
        raise
    if content != old:
        return False
    try:
        if new is None:
            s3.delete_object(**place, IfMatch=etag)
        else:
            s3.put_object(**place, Body=new, **({"IfMatch": etag} if etag else {"IfNoneMatch": "*"}))
        return True
    except ClientError as error:
        if _code(error) not in (*_MISSING, "PreconditionFailed", "412"):
            raise
        if not error.response["ResponseMetadata"].get("RetryAttempts"):
            return False
    # A first try may have been carried out though its answer was lost.
    stands = head(bucket, key) is not None
    return stands and read(bucket, key)[0] == new if new is not None else not stands


def endpoint() -> str:
    """The server's address, fit for a message."""
    try:
        return _without_login(client().meta.endpoint_url)
    except Exception:  # it is asked for while an error is being told
        return "its endpoint"


def _without_login(text: str) -> str:
    """`text` with user:password@ taken out of its URLs."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


_MISSING = ("NoSuchKey", "404", "NotFound")
_CREDENTIALS = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId", "AuthorizationHeaderMalformed",
)  # fmt: skip
_FORBIDDEN = ("AccessDenied", "403", "Forbidden", "AllAccessDisabled")
_FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "507")


@contextmanager
def sentences(uri: str) -> Iterator[None]:
    """S3's refusals of what is done with `uri`, as UserErrors; a missing object as FileNotFoundError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if _code(error) in _MISSING and error.operation_name != "HeadBucket":
            raise FileNotFoundError(uri) from None
        raise UserError(_refusal(uri, error)) from error
    except (BotoCoreError, Boto3Error) as error:
        raise UserError(_failure(uri, error)) from error


def _refusal(uri: str, error: Any) -> str:
    code, bucket = _code(error), urlsplit(uri).netloc
    if code in ("NoSuchBucket", *_MISSING):
        return f"there is no bucket {bucket} at {endpoint()}: make it, or mend {uri}"
    if code in _CREDENTIALS:
        return f"S3 at {endpoint()} refuses the credentials ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION"
    if code in _FORBIDDEN:
        return (
            f"S3 at {endpoint()} forbids {error.operation_name} on {uri} ({code}): these credentials must be the right ones, "
            "and be let read, write, list and delete there"
        )
    if code in _FULL:
        return f"S3 at {endpoint()} has no room left for {uri} ({code}): make room; what was committed before is intact"
    if code == "RequestTimeTooSkewed":
        return f"S3 at {endpoint()} refuses this machine's clock (RequestTimeTooSkewed): set the time"
    return f"S3 at {endpoint()} refuses {error.operation_name} on {uri}: {code or 'no reason given'}"


def _failure(uri: str, error: Exception) -> str:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"there are no credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, _network_errors()):
        where = "" if "amazonaws.com" not in endpoint() else ", which is Amazon's own since AWS_ENDPOINT_URL is not set"
        return f"S3 does not answer at {endpoint()}{where} ({type(error).__name__}), so {uri} can't be used: is the address right, and the server up?"
    return f"S3 can't be used for {uri}: {_without_login(' '.join(str(error).split()))}"
