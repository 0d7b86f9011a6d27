"""The object store Azure Blob Storage (abfs://). It uses the library azure-storage-blob, which the extra `azure` installs.

The account, its key and its server are those of the connection string in AZURE_STORAGE_CONNECTION_STRING. Other credentials,
such as the role of a machine, are not supported, and neither are accounts with a hierarchical namespace, whose folders are
objects too.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import IO, Any
from urllib.parse import quote, urlsplit

import pyarrow.fs as pafs

from infra.errors import UserError
from infra.redaction import without_secrets
from infra.storage.objects.store import (
    PART_BYTES,
    backoff_seconds,
    check_conditions,
    compare_and_swap_by_tag,
    delta_options,
    for_each,
    missing_extra,
    retry_seconds,
    split_uri,
    timeouts,
)

_VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"
_NEEDED = "AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net is needed, as the Azure portal shows it under Access keys"
_WRONG_TAG = '"0x0"'


@contextmanager
def location(uri: str) -> Iterator[tuple[str, str]]:
    """Split an abfs:// URI, and convert errors of Azure's library in the block to errors that explain the problem to the user.

    Raises:
        UserError: if the URI has no container, the library is not installed, or the block raises another of its errors.
        FileNotFoundError: if the block raises an error because an object does not exist.
    """
    bucket, key = split_uri(uri)
    if "@" in bucket:
        raise UserError(f"{uri} names an account: abfs://container/folder is needed, and the account in {_VARIABLE}")
    try:
        from azure.core.exceptions import (
            AzureError,
            ClientAuthenticationError,
            HttpResponseError,
            IncompleteReadError,
            ResourceNotFoundError,
            ServiceRequestError,
            ServiceResponseError,
        )
    except ImportError:
        raise missing_extra("abfs", "azure") from None
    try:
        yield bucket, key
    except ResourceNotFoundError as error:
        if _code(error) == "ContainerNotFound":
            raise UserError(f"there is no container {bucket} at {endpoint()}: create it, or correct {uri}") from None
        raise FileNotFoundError(uri) from None
    except (ServiceRequestError, ServiceResponseError, IncompleteReadError) as error:
        raise UserError(
            f"Azure does not answer at {endpoint()}: {type(error).__name__}; {uri} can't be used: check the address in "
            f"{_VARIABLE}, and that the server is running"
        ) from error
    except (ClientAuthenticationError, HttpResponseError) as error:
        if getattr(error, "status_code", None) in (401, 403):
            raise UserError(
                f"Azure at {endpoint()} refuses the key for {uri} ({_code(error)}): check AccountName and AccountKey in "
                f"{_VARIABLE}"
            ) from error
        raise UserError(f"Azure at {endpoint()} refuses a request for {uri}: {_code(error)}") from error
    except AzureError as error:
        raise UserError(f"Azure can't be used for {uri}: {without_secrets(' '.join(str(error).split()))[:300]}") from error


def _code(error: Any) -> str:
    """Return Azure's code of an error, such as "BlobNotFound"; its HTTP status if it has none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or getattr(error, "status_code", "no reason given"))


def endpoint() -> str:
    """Return the URL of the server, for messages; "its endpoint" if it can't be determined."""
    try:
        return without_secrets(_service().url).rstrip("/")
    except Exception:  # while another error is being explained, a second one would only hide it
        return "its endpoint"


@cache
def _client(pid: int, connection: str, seconds: float, waits: tuple[int, int]) -> Any:
    """Create a client. Later calls with equal arguments return the same one.

    Args:
        pid: id of this process. It only distinguishes forked processes, which must not share a client.
        connection: the connection string.
        seconds: how many seconds after its first failure a request is still retried.
        waits: how many seconds a request waits for a connection, and for an answer.

    Raises:
        UserError: if the connection string is not one, or has no key.
    """
    from azure.storage.blob import BlobServiceClient, LinearRetry

    class Retry(LinearRetry):
        """Retries as long as this module's other requests, with the same pauses."""

        def get_backoff_time(self, settings: dict[str, Any]) -> float:
            return backoff_seconds(settings["count"])

        def increment(self, settings: dict[str, Any], *args: Any, **more: Any) -> bool:
            first_failure = settings.setdefault("first_failure", time.monotonic())
            return time.monotonic() - first_failure < seconds and super().increment(settings, *args, **more)

    many: dict[str, Any] = {f"retry_{kind}": 10**6 for kind in ("total", "connect", "read", "status")}
    sizes = {"max_single_put_size": PART_BYTES, "max_block_size": PART_BYTES}
    try:
        made = BlobServiceClient.from_connection_string(
            connection, retry_policy=Retry(**many), connection_timeout=waits[0], read_timeout=waits[1], **sizes
        )
    except ValueError:
        made = None  # not `from error`: its text may contain the key
    if made is None or not getattr(made.credential, "account_key", None):
        raise UserError(f"{_VARIABLE} is not a connection string with an account and its key: {_NEEDED}")
    return made


def _service() -> Any:
    """Return the client of this process, which is created when first needed.

    Raises:
        UserError: if the variable with the connection string is not set or wrong.
    """
    connection = os.environ.get(_VARIABLE, "")
    if not connection:
        raise UserError(f"there are no credentials for abfs://: set {_VARIABLE}: {_NEEDED}")
    return _client(os.getpid(), connection, retry_seconds(), timeouts())


@cache
def _check_namespace(connection: str) -> None:
    """Raise UserError if the account has a hierarchical namespace. After it has succeeded, the server is not asked again."""
    if _service().get_account_information().get("is_hns_enabled"):
        raise UserError(
            f"the storage account at {endpoint()} has a hierarchical namespace, in which folders are objects: use one without"
        )


def _container(name: str) -> Any:
    """Return the client of a container. The server is not asked whether it exists."""
    _check_namespace(os.environ.get(_VARIABLE, ""))
    return _service().get_container_client(name)


class _AzureFileSystem(pafs.AzureFileSystem):
    """A pyarrow filesystem whose pickle contains no key, unlike that of pyarrow's own.

    Attributes:
        bucket: name of the container for which it was created.
    """

    bucket: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell pickle to call `filesystem(bucket)` when it unpickles this object, with the connection string of that process."""
        return filesystem, (self.bucket,)


def filesystem(bucket: str) -> pafs.FileSystem:
    """Return a pyarrow filesystem. It retries failed requests for about six seconds, which pyarrow does not let one change."""
    _container(bucket)
    service = _service()
    url = urlsplit(service.url)
    # "account.blob.core.windows.net" is given as ".blob.core.windows.net". Otherwise the account is the first part of the path.
    blob = url.netloc.removeprefix(service.account_name) if url.netloc.startswith(f"{service.account_name}.") else url.netloc
    made = _AzureFileSystem(
        account_name=service.account_name,
        account_key=service.credential.account_key,
        blob_storage_authority=blob,
        blob_storage_scheme=url.scheme,
        dfs_storage_authority=blob.replace(".blob.", ".dfs.", 1),
        dfs_storage_scheme=url.scheme,
    )
    made.bucket = bucket
    return made


def delta_location(bucket: str, key: str) -> tuple[str, dict[str, str]]:
    """Return the URI of a folder for the library `deltalake`, and its options. They contain the key, and must not be logged."""
    _container(bucket)
    service = _service()
    options = {
        **delta_options(),
        "azure_storage_account_name": service.account_name,
        "azure_storage_account_key": service.credential.account_key,
    }
    options |= {"azure_storage_endpoint": service.url.rstrip("/"), "allow_http": str(service.url.startswith("http:")).lower()}
    return f"abfs://{bucket}/{quote(key)}", options


def version_token(bucket: str, key: str) -> str | None:
    """Return the size and ETag of an object as a text; None if it does not exist. The ETag changes with each write."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        found = _container(bucket).get_blob_client(key).get_blob_properties()
    except ResourceNotFoundError as error:
        if _code(error) == "ContainerNotFound":
            raise
        return None
    return f"{found.size}@{found.etag}"


def read(bucket: str, key: str) -> tuple[bytes, str]:
    """Return the content of an object and its ETag."""
    found = _container(bucket).download_blob(key)
    return found.readall(), found.properties.etag


def _read_if_there(bucket: str, key: str) -> tuple[bytes, str] | None:
    """Return the content of an object and its ETag; None if there is no such object."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return read(bucket, key)
    except ResourceNotFoundError:
        return None


def write(bucket: str, key: str, data: bytes) -> None:
    """Create or replace an object in one step."""
    _container(bucket).upload_blob(key, data, overwrite=True)


def _write_if(bucket: str, key: str, data: bytes, etag: str | None) -> bool:
    """Write an object if its ETag is still the given one (None: if there is no object). Return whether it was written."""
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

    condition: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}
    if etag is not None:
        condition = {"match_condition": MatchConditions.IfNotModified, "etag": etag}
    try:
        _container(bucket).upload_blob(key, data, overwrite=True, **condition)
    except (ResourceExistsError, ResourceModifiedError):
        return False
    except ResourceNotFoundError as error:
        if _code(error) == "ContainerNotFound":
            raise
        return False
    return True


def compare_and_swap(bucket: str, key: str, old: bytes | None, new: bytes) -> bool:
    """Change the content of an object from `old` (None: no object) to `new` in one step. Return whether this call did so."""
    return compare_and_swap_by_tag(partial(_read_if_there, bucket, key), partial(_write_if, bucket, key, new), old, new)


def check_conditional_writes(bucket: str, key: str) -> None:
    """Raise UserError if the server ignores the condition of a conditional write. The object `key` must exist."""
    check_conditions(partial(_write_if, bucket, key, b""), _WRONG_TAG, f"abfs://{bucket}/{key}")


def upload(bucket: str, key: str, file: IO[bytes]) -> None:
    """Create or replace an object in one step from an open file.

    Large files are uploaded in blocks. The object changes when the block list is committed at the end.
    """
    _container(bucket).upload_blob(key, file, overwrite=True, max_concurrency=4)


def download(bucket: str, key: str, file: IO[bytes]) -> None:
    """Write the content of an object to an open file."""
    _container(bucket).download_blob(key, max_concurrency=4).readinto(file)


def copy(source: tuple[str, str], target: tuple[str, str]) -> bool:
    """Return False: the server may still be copying after its answer, and until it ends the target is incomplete."""
    return False


def keys(bucket: str, prefix: str) -> Iterator[str]:
    """Iterate over the keys of a container that begin with `prefix`, in sorted order."""
    yield from _container(bucket).list_blob_names(name_starts_with=prefix)


def delete(bucket: str, keys: Iterable[str]) -> None:
    """Delete objects. Keys that do not exist are ignored."""
    from azure.core.exceptions import ResourceNotFoundError

    container = _container(bucket)

    def delete_one(key: str) -> None:
        """Delete an object, unless there is none of this key."""
        try:
            container.delete_blob(key)
        except ResourceNotFoundError as error:
            if _code(error) == "ContainerNotFound":
                raise

    for_each(delete_one, keys)
