"""Connections to S3, by boto3 and pyarrow, that retry requests which fail for a passing reason.

Endpoint, region and credentials come from where boto3 finds them: the standard AWS variables, profiles, the machine's role.
"""

import os
import random
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from infra.errors import UserError

RETRY_SECONDS = 60.0
"""How long a request is retried after its first failure."""

CHECK_SECONDS = 4.0
"""The same for the check at the start of a run, where the user is waiting."""

TRANSIENT_CODES = (
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "IncompleteBody",
)
"""S3 error codes of failures that may pass."""

_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
_MAX_BACKOFF_SECONDS = 5.0
_ARROW_ATTEMPTS = 11  # pyarrow pauses 25 ms · 2ⁿ: 51 s in total, the nearest to RETRY_SECONDS


def backoff_seconds(attempt: int) -> float:
    """Pause after the `attempt`-th failure (from 1): exponential, and random so that workers don't all retry at once."""
    return random.uniform(0.5, 1) * min(0.1 * 2**attempt, _MAX_BACKOFF_SECONDS)


def client(retry_seconds: float | None = None) -> Any:
    """This process's boto3 S3 client.

    Args:
        retry_seconds: how long a request is retried after its first failure; None for RETRY_SECONDS.

    Raises:
        UserError: if AWS_ENDPOINT_URL is not a URL.
    """
    return _client(os.getpid(), _aws_variables(), RETRY_SECONDS if retry_seconds is None else retry_seconds)


def filesystem(bucket: str) -> pafs.FileSystem:
    """A pyarrow S3 filesystem with the client's endpoint and region that retries about as long.

    It can be pickled and sent to workers: credentials are not part of the pickle, and the copy retries like the original.
    """
    return _filesystem(os.getpid(), _aws_variables(), bucket)


def _aws_variables() -> frozenset[tuple[str, str]]:
    """The environment's AWS variables: part of the cache's key, since other variables may mean another server."""
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))


@cache
def _client(pid: int, variables: frozenset[tuple[str, str]], retry_seconds: float) -> Any:
    """Make a client; cached by process, since clients must not be shared by forked processes."""
    import boto3
    from botocore.config import Config

    quick = retry_seconds < RETRY_SECONDS
    config = Config(
        # botocore's own retries stop too soon for us; _RetryHandler replaces them.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=3 if quick else 10,
        read_timeout=6 if quick else 60,
        max_pool_connections=32,
    )
    try:
        made = boto3.session.Session().client("s3", config=config)
    except ValueError as error:  # botocore's "Invalid endpoint"
        reason = without_password(str(error))
        raise UserError(f"AWS_ENDPOINT_URL is not the address of an S3 server ({reason}): http://host:port is needed") from None
    made.meta.events.register("needs-retry.s3", _RetryHandler(retry_seconds))
    return made


@dataclass(frozen=True)
class _RetryHandler:
    """Botocore's `needs-retry` hook: returns the seconds to wait before the next attempt, or None to give up."""

    seconds: float

    def __call__(
        self, *, response: Any, attempts: int, caught_exception: Any, request_dict: dict[str, Any], **_: Any
    ) -> float | None:
        if not _is_transient(response, caught_exception):
            return None
        first_failure = request_dict["context"].setdefault("first_failure", time.monotonic())
        return backoff_seconds(attempts) if time.monotonic() - first_failure < self.seconds else None


def _is_transient(response: Any, error: BaseException | None) -> bool:
    """True for a failed request that may succeed when it is repeated."""
    if error is not None:
        return isinstance(error, network_errors())
    raw, parsed = response
    return raw.status_code in _TRANSIENT_STATUS or parsed.get("Error", {}).get("Code") in TRANSIENT_CODES


@cache
def network_errors() -> tuple[type[Exception], ...]:
    """Botocore's exceptions for a server that can't be reached or a connection that broke."""
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


class _RetryingS3FileSystem(pafs.S3FileSystem):
    """pyarrow's S3 filesystem, but unpickling makes a new one: pyarrow's own pickles lose the retry strategy."""

    bucket: str

    def __reduce__(self) -> tuple[Any, ...]:
        return filesystem, (self.bucket,)


@cache
def _filesystem(pid: int, variables: frozenset[tuple[str, str]], bucket: str) -> pafs.FileSystem:
    """Make a filesystem; cached by process and environment, as clients are."""
    s3 = client()
    host = urlsplit(s3.meta.endpoint_url)
    amazon = (host.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    region = s3.head_bucket(Bucket=bucket).get("BucketRegion") if amazon else s3.meta.region_name or "us-east-1"
    made = _RetryingS3FileSystem(
        endpoint_override=None if amazon else host.netloc,
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


def endpoint() -> str:
    """The server's address for messages, without a password."""
    try:
        return without_password(client().meta.endpoint_url)
    except Exception:  # while another error is being explained, a second one would only hide it
        return "its endpoint"


def without_password(text: str) -> str:
    """Remove user:password@ from the URLs in a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)
