"""Connections to S3 with boto3 and pyarrow. Requests that fail for a passing reason are retried.

Endpoint, region and credentials are found as boto3 finds them: in the standard AWS environment variables, in profiles, or from
the role of the machine.
"""

import os
import time
from functools import cache, partial
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import pyarrow.fs as pafs

from infra.errors import UserError
from infra.redaction import without_secrets
from infra.storage.objects import store

TRANSIENT_CODES = (
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "IncompleteBody",
)
"""S3 error codes of transient failures, after which a request is retried."""

_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
_ARROW_ATTEMPTS = 11  # pyarrow pauses for 25 ms · 2ⁿ, which is 51 s in total, the nearest to store.RETRY_SECONDS


def client() -> Any:
    """Return the boto3 S3 client of this process, which is created when first needed.

    Raises:
        UserError: if AWS_ENDPOINT_URL is not a URL.
    """
    return _client(os.getpid(), _aws_variables(), store.retry_seconds(), store.timeouts())


def filesystem(bucket: str) -> pafs.FileSystem:
    """Return a pyarrow S3 filesystem for a bucket.

    It uses the endpoint and region of the boto3 client, and retries failed requests for about a minute, as that client does. It
    can be pickled and sent to workers. The pickle contains no credentials: a worker uses its own.

    Args:
        bucket: name of the bucket.
    """
    return _filesystem(os.getpid(), _aws_variables(), bucket)


def _aws_variables() -> frozenset[tuple[str, str]]:
    """Return all environment variables whose names begin with AWS_, as a set of (name, value) pairs.

    Clients are cached by this set, because a client for another server may be needed when the variables change.
    """
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))


@cache
def _client(pid: int, variables: frozenset[tuple[str, str]], retry_seconds: float, timeouts: tuple[int, int]) -> Any:
    """Create a boto3 S3 client. Later calls with equal arguments return the same client.

    Args:
        pid: id of this process. It only distinguishes forked processes, which must not share a client.
        variables: the AWS environment variables as (name, value) pairs. They only distinguish clients, because boto3 reads the
            environment itself.
        retry_seconds: how many seconds after its first failure a request is still retried.
        timeouts: how many seconds a request waits for a connection, and for an answer.

    Raises:
        UserError: if AWS_ENDPOINT_URL is not a URL.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        # botocore's own retries stop too soon, so _retry_delay replaces them.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=timeouts[0],
        read_timeout=timeouts[1],
        max_pool_connections=32,
    )
    try:
        made = boto3.session.Session().client("s3", config=config)
    except ValueError as error:  # botocore's "Invalid endpoint"
        reason = without_secrets(str(error)).rpartition("@")[2]  # user:password@host:port is refused, too
        raise UserError(f"AWS_ENDPOINT_URL is not the address of an S3 server ({reason}): http://host:port is needed") from None
    made.meta.events.register("needs-retry.s3", partial(_retry_delay, retry_seconds))
    return made


def _retry_delay(
    seconds: float, *, response: Any, attempts: int, caught_exception: Any, request_dict: dict[str, Any], **_: Any
) -> float | None:
    """Decide whether botocore should retry a request. botocore calls this at its event `needs-retry`.

    Args:
        seconds: how many seconds after its first failure a request is still retried.
        response: pair of the HTTP response and its parsed content; None if there was no response.
        attempts: number of attempts so far.
        caught_exception: the exception that the last attempt raised, or None.
        request_dict: botocore's description of the request. The time of the first failure is stored in its "context".
        **_: further values of the event, which are ignored.

    Returns:
        The number of seconds to wait before the next attempt; None to give up or if the request succeeded.
    """
    if not _is_transient(response, caught_exception):
        return None
    first_failure = request_dict["context"].setdefault("first_failure", time.monotonic())
    return store.backoff_seconds(attempts) if time.monotonic() - first_failure < seconds else None


def _is_transient(response: Any, error: BaseException | None) -> bool:
    """Return whether a request failed for a passing reason, so that it may succeed if it is repeated.

    Args:
        response: pair of the HTTP response and its parsed content; not used if there is an error.
        error: the exception that the attempt raised, or None.
    """
    if error is not None:
        return isinstance(error, network_errors())
    raw, parsed = response
    return raw.status_code in _TRANSIENT_STATUS or parsed.get("Error", {}).get("Code") in TRANSIENT_CODES


@cache
def network_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes that botocore raises if a server can't be reached or a connection breaks."""
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


class _RetryingS3FileSystem(pafs.S3FileSystem):
    """A pyarrow S3 filesystem that keeps its retry strategy when it is pickled and unpickled, unlike pyarrow's own.

    Attributes:
        bucket: name of the bucket for which it was created.
    """

    bucket: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell pickle to call `filesystem(bucket)` when it unpickles this object.

        Returns:
            The function to call, and the tuple of its arguments.
        """
        return filesystem, (self.bucket,)


@cache
def _filesystem(pid: int, variables: frozenset[tuple[str, str]], bucket: str) -> pafs.FileSystem:
    """Create a pyarrow S3 filesystem. Later calls with equal arguments return the same object.

    Args:
        pid: id of this process. It only distinguishes forked processes, which must not share a filesystem.
        variables: the AWS environment variables as (name, value) pairs. They only distinguish filesystems.
        bucket: name of the bucket. On Amazon's S3 its region is looked up.
    """
    host, region = _server(bucket)
    made = _RetryingS3FileSystem(
        endpoint_override=host.netloc or None,
        scheme=host.scheme,
        region=region,
        # Not the "standard" strategy: it has a quota of retries, and stops retrying after about a minute of failures.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=_ARROW_ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
        **({"tls_ca_file_path": bundle} if (bundle := os.environ.get("AWS_CA_BUNDLE")) else {}),
    )
    made.bucket = bucket
    return made


def _server(bucket: str) -> tuple[SplitResult, str]:
    """Return the URL of the S3 server for pyarrow and deltalake, without a host for Amazon's S3, and the region of a bucket."""
    s3 = client()
    host = urlsplit(s3.meta.endpoint_url)
    if (host.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return host._replace(netloc=""), str(s3.head_bucket(Bucket=bucket).get("BucketRegion"))
    return host, s3.meta.region_name or "us-east-1"


def delta_location(bucket: str, key: str) -> tuple[str, dict[str, str]]:
    """Return the URI of a folder for the library deltalake, and the options with which it uses it as this module's clients do.

    The options contain the credentials that boto3 finds, so they must not be stored or logged. Credentials of a machine's role
    expire, so the options are made anew for each use.

    Args:
        bucket: name of the bucket.
        key: key of the folder.
    """
    import boto3

    host, region = _server(bucket)
    found = {**store.delta_options(), "aws_region": region, "aws_conditional_put": "etag"}
    found["backoff_config.max_backoff"] = f"{store.MAX_BACKOFF_SECONDS:g}s"
    if host.netloc:
        found |= {"aws_endpoint_url": host.geturl(), "allow_http": str(host.scheme == "http").lower()}
    if credentials := boto3.session.Session().get_credentials():
        frozen = credentials.get_frozen_credentials()
        named = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "session_token": frozen.token}
        found |= {f"aws_{name}": value for name, value in named.items() if value}
    return f"s3://{bucket}/{quote(key)}", found


def endpoint() -> str:
    """Return the URL of the S3 server, without a password, for use in messages; "its endpoint" if it can't be determined."""
    try:
        return without_secrets(client().meta.endpoint_url)
    except Exception:  # while another error is being explained, a second one would only hide it
        return "its endpoint"
