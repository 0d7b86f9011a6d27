"""The object store S3 (s3://): operations on objects with boto3. `s3_client` has the connections, `s3_errors` the messages.

Except for `location`, the functions raise botocore's errors. Callers run them inside `with location(uri)`, which converts
botocore's errors to errors that explain the problem to the user.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import islice
from typing import IO, Any

from infra.errors import UserError
from infra.storage.objects.s3_client import TRANSIENT_CODES, client, endpoint, network_errors
from infra.storage.objects.s3_client import delta_location as delta_location  # both are functions of every store
from infra.storage.objects.s3_client import filesystem as filesystem
from infra.storage.objects.s3_errors import is_condition_failed, is_not_found, s3_errors_for_user
from infra.storage.objects.store import backoff_seconds, check_conditions, compare_and_swap_by_tag, retry_seconds, split_uri

PART_BYTES = 16 * 2**20
"""Size in bytes of the parts in which larger objects are transferred. boto3 holds up to ten parts in memory."""

PAGE = 1000
"""Largest number of keys that one request can list or delete, a limit of S3."""

_WRONG_TAG = f'"{32 * "0"}"'


@contextmanager
def location(uri: str) -> Iterator[tuple[str, str]]:
    """Split an s3:// URI, and convert S3 errors in the block of the `with` statement to errors that explain the problem.

    Args:
        uri: URI of the object, folder or bucket that the block works on.

    Yields:
        The name of the bucket, and the key without a slash at its end.

    Raises:
        UserError: if the URI has no bucket, or the block raises an S3 error.
        FileNotFoundError: if the block raises an S3 error because an object does not exist.
    """
    bucket, key = split_uri(uri)
    with s3_errors_for_user(uri):
        yield bucket, key


def read(bucket: str, key: str) -> tuple[bytes, str]:
    """Read an object. If the connection breaks midway, read it again from its start, for up to a minute.

    Args:
        bucket: name of the bucket.
        key: key of the object.

    Returns:
        The content of the object, and its ETag (the version identifier that S3 assigns).

    Raises:
        botocore.exceptions.ClientError: if there is no such object, or the server refuses the request.
        botocore.exceptions.BotoCoreError: if the server can't be reached, or the connection still breaks after a minute.
    """
    first_failure, attempt = None, 0
    while True:
        found = client().get_object(Bucket=bucket, Key=key)
        try:
            return bytes(found["Body"].read()), found["ETag"]
        except network_errors():
            now, attempt = time.monotonic(), attempt + 1
            first_failure = now if first_failure is None else first_failure
            if now - first_failure > retry_seconds():
                raise
            time.sleep(backoff_seconds(attempt))


def transfer_config() -> Any:
    """Return the boto3 settings for transferring large objects in parts of PART_BYTES bytes, four at a time."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)


def keys(bucket: str, prefix: str) -> Iterator[str]:
    """Iterate over the keys of all objects in a bucket that begin with `prefix`, in sorted order.

    The server is asked for the next 1000 keys (PAGE) only when they are needed.

    Args:
        bucket: name of the bucket.
        prefix: beginning of the keys; "" for all keys.
    """
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE})
    for page in pages:
        yield from (found["Key"] for found in page.get("Contents", ()))


def delete(bucket: str, keys: Iterable[str]) -> None:
    """Delete objects, by one request for 1000 of them (PAGE). Keys that do not exist are ignored.

    Args:
        bucket: name of the bucket.
        keys: keys of the objects.

    Raises:
        UserError: if the server does not delete all of them.
        botocore.exceptions.ClientError: if the server refuses a whole request.
    """
    remaining = iter(keys)
    while page := list(islice(remaining, PAGE)):
        _delete_page(bucket, page)


def _delete_page(bucket: str, keys: list[str]) -> None:
    """Delete at most 1000 objects (PAGE), as `delete` does. Transient failures are retried up to five times."""
    attempt = 0
    while keys:
        reply = client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True})
        if not (errors := reply.get("Errors")):
            return
        keys, attempt = [error["Key"] for error in errors], attempt + 1
        lasting = [error for error in errors if error.get("Code") not in TRANSIENT_CODES]
        if lasting or attempt > 5:
            error = (lasting or errors)[0]
            raise UserError(f"S3 at {endpoint()} won't delete s3://{bucket}/{error['Key']} ({error.get('Code')})")
        time.sleep(backoff_seconds(attempt))


def write(bucket: str, key: str, data: bytes) -> None:
    """Create or replace an object in one step."""
    if len(data) > PART_BYTES:
        upload(bucket, key, BytesIO(data))
    else:
        client().put_object(Bucket=bucket, Key=key, Body=data)


def upload(bucket: str, key: str, file: IO[bytes]) -> None:
    """Create or replace an object in one step from an open file. Large ones are sent in parts."""
    client().upload_fileobj(file, bucket, key, Config=transfer_config())


def download(bucket: str, key: str, file: IO[bytes]) -> None:
    """Write the content of an object to an open file. Large ones are received in parts."""
    client().download_fileobj(bucket, key, file, Config=transfer_config())


def copy(source: tuple[str, str], target: tuple[str, str]) -> bool:
    """Let the server copy an object from one (bucket, key) to another. Large ones are copied in parts. Return True."""
    client().copy({"Bucket": source[0], "Key": source[1]}, *target, Config=transfer_config())
    return True


def version_token(bucket: str, key: str) -> str | None:
    """Return the size and ETag of an object as a text; None if it does not exist."""
    found = head(bucket, key)
    return f"{found['ContentLength']}@{found['ETag']}" if found else None


def head(bucket: str, key: str) -> dict[str, Any] | None:
    """Return the metadata of an object without reading its content.

    Args:
        bucket: name of the bucket.
        key: key of the object.

    Returns:
        boto3's description of the object ("ContentLength", "ETag" and others); None if it does not exist.

    Raises:
        botocore.exceptions.ClientError: if the server refuses the request.
    """
    from botocore.exceptions import ClientError

    try:
        return dict(client().head_object(Bucket=bucket, Key=key))
    except ClientError as error:
        if is_not_found(error):
            return None
        raise


def _read_if_there(bucket: str, key: str) -> tuple[bytes, str] | None:
    """Return the content of an object and its ETag; None if there is no such object."""
    from botocore.exceptions import ClientError

    try:
        return read(bucket, key)
    except ClientError as error:
        if is_not_found(error):
            return None
        raise


def _write_if(bucket: str, key: str, data: bytes, etag: str | None) -> bool:
    """Write an object if its ETag is still the given one (None: if there is no object). Return whether it was written."""
    from botocore.exceptions import ClientError

    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    try:
        client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
    except ClientError as error:
        if is_not_found(error) or is_condition_failed(error):
            return False
        raise
    return True


def compare_and_swap(bucket: str, key: str, old: bytes | None, new: bytes) -> bool:
    """Change the content of an object from `old` (None: no object) to `new` in one step. Return whether this call did so.

    The server must support conditional writes, as AWS, MinIO and SeaweedFS (from 4.18) do. `check_conditional_writes` checks it.
    """
    return compare_and_swap_by_tag(partial(_read_if_there, bucket, key), partial(_write_if, bucket, key, new), old, new)


def check_conditional_writes(bucket: str, key: str) -> None:
    """Raise UserError if the server ignores the condition of a conditional write. The object `key` must exist.

    A server that refuses all conditions as not implemented is treated as one that ignores them.
    """
    from botocore.exceptions import ClientError

    def write_if(etag: str | None) -> bool:
        """Return whether the server overwrites the object, or does not support conditions."""
        try:
            return _write_if(bucket, key, b"", etag)
        except ClientError as error:
            if error.response["Error"]["Code"] == "NotImplemented":
                return True
            raise

    other = "one with conditional writes (AWS, MinIO, SeaweedFS from 4.18)"
    check_conditions(write_if, _WRONG_TAG, f"s3://{bucket}/{key}", other)
