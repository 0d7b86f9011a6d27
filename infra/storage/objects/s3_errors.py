"""Convert S3 errors to errors that explain them to the user.

The messages name the server and the URI, but no access key or password.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from infra.errors import UserError
from infra.redaction import without_secrets
from infra.storage.objects.s3_client import endpoint, network_errors

_NOT_FOUND = ("NoSuchKey", "404", "NotFound")
_WRONG_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "InvalidClientTokenId",
    "AuthorizationHeaderMalformed",
)
_FORBIDDEN = ("AccessDenied", "403", "Forbidden", "AllAccessDisabled")
_SERVER_FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "507")
_CONDITION_FAILED = ("PreconditionFailed", "412")


def is_not_found(error: Any) -> bool:
    """Return whether an error, a botocore ClientError, says that the object does not exist."""
    return _code(error) in _NOT_FOUND


def is_condition_failed(error: Any) -> bool:
    """Return whether an error, a botocore ClientError, says that the condition of a conditional request was not met."""
    return _code(error) in _CONDITION_FAILED


@contextmanager
def s3_errors_for_user(uri: str) -> Iterator[None]:
    """Convert S3 errors in the block of the `with` statement to errors that explain them to the user.

    Args:
        uri: URI of the file or folder that the block works on, for the message.

    Raises:
        FileNotFoundError: if the block raises an S3 error because an object does not exist.
        UserError: if the block raises another error of boto3 or botocore.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if is_not_found(error) and error.operation_name != "HeadBucket":
            raise FileNotFoundError(uri) from None
        raise UserError(_refused_message(uri, error)) from error
    except (BotoCoreError, Boto3Error) as error:
        raise UserError(_failed_message(uri, error)) from error


def _code(error: Any) -> str:
    """Return the S3 error code of a botocore ClientError, such as "NoSuchKey"; "" if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _refused_message(uri: str, error: Any) -> str:
    """Return the message to the user for a request that the server answered with an error.

    Args:
        uri: URI of the file or folder that was requested.
        error: botocore's ClientError.
    """
    code, bucket = _code(error), urlsplit(uri).netloc
    if code in ("NoSuchBucket", *_NOT_FOUND):
        return f"there is no bucket {bucket} at {endpoint()}: create it, or correct {uri}"
    if code in _WRONG_CREDENTIALS:
        variables = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION"
        return f"S3 at {endpoint()} refuses the credentials ({code}): check {variables}"
    if code in _FORBIDDEN:
        return (
            f"S3 at {endpoint()} forbids {error.operation_name} on {uri} ({code}): check the credentials, and that they are "
            "allowed to read, write, list and delete there"
        )
    if code in _SERVER_FULL:
        return f"S3 at {endpoint()} has no room left for {uri} ({code}): make room; what was committed before is intact"
    if code == "RequestTimeTooSkewed":
        return f"S3 at {endpoint()} rejects this machine's clock (RequestTimeTooSkewed): set the time"
    return f"S3 at {endpoint()} refuses {error.operation_name} on {uri}: {code or 'no reason given'}"


def _failed_message(uri: str, error: Exception) -> str:
    """Return the message to the user for a request that got no answer or could not be sent.

    Args:
        uri: URI of the file or folder that was requested.
        error: the exception of botocore or boto3.
    """
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"there are no credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, network_errors()):
        where = " (Amazon's, since AWS_ENDPOINT_URL is not set)" if "amazonaws.com" in endpoint() else ""
        return (
            f"S3 does not answer at {endpoint()}{where}: {type(error).__name__}; {uri} can't be used: "
            "check the address, and that the server is running"
        )
    return f"S3 can't be used for {uri}: {without_secrets(' '.join(str(error).split()))}"
