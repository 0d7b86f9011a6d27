"""The object store Google Cloud Storage (gs://). It uses the library google-cloud-storage, which the extra `gcs` installs.

Credentials are found as Google's libraries find them: in the file that GOOGLE_APPLICATION_CREDENTIALS names, in that of `gcloud
auth application-default login`, or from the role of the machine. STORAGE_EMULATOR_HOST names another server, such as that of
the tests.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import IO, Any
from urllib.parse import quote, urlsplit

import pyarrow.fs as pafs

from infra.errors import UserError
from infra.redaction import without_secrets
from infra.storage.objects.store import (
    MAX_BACKOFF_SECONDS,
    PART_BYTES,
    RETRY_SECONDS,
    check_conditions,
    compare_and_swap_by_tag,
    delta_options,
    for_each,
    missing_extra,
    retry_seconds,
    split_uri,
    timeouts,
)

_BINARY = "application/octet-stream"
_LIST_FIELDS = "items(name),nextPageToken"


@contextmanager
def location(uri: str) -> Iterator[tuple[str, str]]:
    """Split a gs:// URI, and convert errors of Google's library in the block to errors that explain the problem to the user.

    Raises:
        UserError: if the URI has no bucket, the library is not installed, or the block raises another of its errors.
        FileNotFoundError: if the block raises an error because an object does not exist.
    """
    bucket, key = split_uri(uri)
    try:
        from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, RetryError, Unauthorized
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
        from google.cloud.storage.exceptions import InvalidResponse
        from requests import RequestException
    except ImportError:
        raise missing_extra("gs", "gcs") from None
    server = f"Google Cloud Storage at {endpoint()}"
    try:
        yield bucket, key
    except NotFound:
        _check_bucket(uri, bucket)
        raise FileNotFoundError(uri) from None
    except (Unauthorized, Forbidden) as error:
        raise UserError(
            f"{server} forbids the use of {uri} ({error.code}): check the credentials, and that they are allowed to read, write, "
            "list and delete objects there"
        ) from error
    except (DefaultCredentialsError, RefreshError) as error:
        raise UserError(
            f"there are no valid credentials for {uri}: set GOOGLE_APPLICATION_CREDENTIALS to the JSON file of a service "
            f"account, or run gcloud auth application-default login ({_line(error)})"
        ) from error
    except (RetryError, RequestException) as error:
        raise UserError(
            f"{server} does not answer, or not with success ({_line(error)}); {uri} can't be used: check the address, and that "
            "the server is running"
        ) from error
    except (GoogleAPICallError, GoogleAuthError, InvalidResponse) as error:
        raise UserError(f"{server} can't be used for {uri}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Return the text of an error on one line of at most 300 characters, without passwords in URLs."""
    return without_secrets(" ".join(str(error).split()))[:300]


def endpoint() -> str:
    """Return the URL of the server, for messages."""
    return without_secrets(os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com"))


def _variables() -> frozenset[tuple[str, str]]:
    """Return the environment variables that Google's libraries read, as (name, value) pairs. Clients are cached by them."""
    names = ("GOOGLE_", "STORAGE_EMULATOR_HOST", "CLOUDSDK_")
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith(names))


@cache
def _client(pid: int, variables: frozenset[tuple[str, str]]) -> Any:
    """Create a client. Later calls with equal arguments, the id of this process and its variables, return the same one."""
    from google.cloud.storage import Client

    return Client(project=None)


def _bucket(name: str) -> Any:
    """Return Google's object for a bucket. The server is not asked whether it exists."""
    return _client(os.getpid(), _variables()).bucket(name)


def _options() -> dict[str, Any]:
    """Return the options of each request: how long it waits for an answer, and how long it is retried."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry = DEFAULT_RETRY.with_delay(initial=0.2, maximum=MAX_BACKOFF_SECONDS, multiplier=2).with_timeout(retry_seconds())
    return {"retry": retry, "timeout": timeouts()}


@cache
def _list_one(pid: int, variables: frozenset[tuple[str, str]], name: str) -> None:
    """List an object of a bucket, which fails if there is no such bucket. After a success, no further request is sent."""
    next(iter(_bucket(name).list_blobs(max_results=1, fields=_LIST_FIELDS, **_options())), None)


def _check_bucket(uri: str, name: str) -> None:
    """Raise UserError if the bucket of a URI does not exist.

    The server gives the same answer for a missing bucket and a missing object.
    """
    from google.api_core.exceptions import GoogleAPICallError, NotFound

    try:
        _list_one(os.getpid(), _variables(), name)
    except NotFound:
        raise UserError(f"there is no bucket {name} at {endpoint()}: create it, or correct {uri}") from None
    except GoogleAPICallError:  # it may not be listed
        pass


def filesystem(bucket: str) -> pafs.FileSystem:
    """Return a pyarrow filesystem. Its pickle contains no credentials: a worker uses its own."""
    options: dict[str, Any] = {}
    if host := os.environ.get("STORAGE_EMULATOR_HOST"):
        options = {"anonymous": True, "scheme": urlsplit(host).scheme, "endpoint_override": urlsplit(host).netloc}
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=RETRY_SECONDS), **options)


def delta_location(bucket: str, key: str) -> tuple[str, dict[str, str]]:
    """Return the URI of a folder for the library `deltalake`, and its options. That library finds credentials itself."""
    options = delta_options()
    if host := os.environ.get("STORAGE_EMULATOR_HOST"):
        # The library takes another server, and no credentials, only from the key of a service account.
        account = {"gcs_base_url": host, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        options |= {"google_service_account_key": json.dumps(account), "allow_http": "true"}
    return f"gs://{bucket}/{quote(key)}", options


def version_token(bucket: str, key: str) -> str | None:
    """Return the size and MD5 digest of an object as a text, or for composed objects, which have none, its generation."""
    found = _bucket(bucket).get_blob(key, **_options())
    return None if found is None else f"{found.size}@{found.md5_hash or found.generation}"


def read(bucket: str, key: str) -> tuple[bytes, str]:
    """Return the content of an object and its generation, the number that Google gives each content."""
    blob = _bucket(bucket).blob(key)
    data = blob.download_as_bytes(**_options())
    return data, str(int(blob.generation))


def _read_if_there(bucket: str, key: str) -> tuple[bytes, str] | None:
    """Return the content of an object and its generation; None if there is no such object."""
    from google.api_core.exceptions import NotFound

    try:
        return read(bucket, key)
    except NotFound:
        return None


def write(bucket: str, key: str, data: bytes) -> None:
    """Create or replace an object in one step."""
    _bucket(bucket).blob(key).upload_from_string(data, content_type=_BINARY, **_options())


def _write_if(bucket: str, key: str, data: bytes, generation: str | None) -> bool:
    """Write an object if its generation is still the given one (None: if there is no object). Return whether it was written."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    condition = {"if_generation_match": 0 if generation is None else int(generation)}
    try:
        _bucket(bucket).blob(key).upload_from_string(data, content_type=_BINARY, **condition, **_options())
    except PreconditionFailed:
        return False
    except NotFound:
        if generation is None:  # no condition that failed, so it is the bucket that does not exist
            raise
        return False
    return True


def compare_and_swap(bucket: str, key: str, old: bytes | None, new: bytes) -> bool:
    """Change the content of an object from `old` (None: no object) to `new` in one step. Return whether this call did so."""
    return compare_and_swap_by_tag(partial(_read_if_there, bucket, key), partial(_write_if, bucket, key, new), old, new)


def check_conditional_writes(bucket: str, key: str) -> None:
    """Raise UserError if the server ignores the condition of a conditional write. The object `key` must exist."""
    check_conditions(partial(_write_if, bucket, key, b""), "1", f"gs://{bucket}/{key}")


def upload(bucket: str, key: str, file: IO[bytes]) -> None:
    """Create or replace an object in one step from an open file."""
    _bucket(bucket).blob(key, chunk_size=PART_BYTES).upload_from_file(file, content_type=_BINARY, **_options())


def download(bucket: str, key: str, file: IO[bytes]) -> None:
    """Write the content of an object to an open file."""
    _bucket(bucket).blob(key).download_to_file(file, **_options())


def copy(source: tuple[str, str], target: tuple[str, str]) -> bool:
    """Let the server copy an object from one (bucket, key) to another. Return True.

    Raises:
        UserError: if the target's bucket does not exist.
        google.api_core.exceptions.NotFound: if there is no such object.
    """
    from google.api_core.exceptions import NotFound

    new, old, token = _bucket(target[0]).blob(target[1]), _bucket(source[0]).blob(source[1]), None
    try:
        while True:
            token, *_ = new.rewrite(old, token=token, **_options())
            if token is None:
                return True
    except NotFound:
        _check_bucket("gs://" + "/".join(target), target[0])
        raise


def keys(bucket: str, prefix: str) -> Iterator[str]:
    """Iterate over the keys of a bucket that begin with `prefix`, in sorted order."""
    for found in _bucket(bucket).list_blobs(prefix=prefix, fields=_LIST_FIELDS, **_options()):
        yield found.name


def delete(bucket: str, keys: Iterable[str]) -> None:
    """Delete objects. Keys that do not exist are ignored."""
    from google.api_core.exceptions import NotFound

    options = _options()

    def delete_one(key: str) -> None:
        """Delete an object, unless there is none of this key."""
        try:
            _bucket(bucket).blob(key).delete(**options)
        except NotFound:
            _check_bucket(f"gs://{bucket}/{key}", bucket)

    for_each(delete_one, keys)
