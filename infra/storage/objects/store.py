"""The interface of the object stores (S3, Google Cloud Storage and Azure Blob Storage), and code that they share.

Each store is a module that implements `ObjectStore`: `s3`, `gcs` or `azure`. Its functions raise the errors of the store's own
library. Callers run them inside `with store.location(uri)`, which converts these to UserError or FileNotFoundError.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from tempfile import TemporaryFile
from typing import IO, Protocol

import pyarrow.fs as pafs

from infra.errors import UserError

RETRY_SECONDS = 60.0
"""How many seconds after its first failure a request is still retried."""

CHECK_SECONDS = 4.0
"""How many seconds a request is retried in the check at the start of a run, while the user is waiting."""

PART_BYTES = 8 * 2**20
"""Size in bytes of the parts in which larger objects are sent to Google and Azure. Up to four are in memory."""

MAX_BACKOFF_SECONDS = 5.0
"""The longest time in seconds between two attempts of a request."""

_DELETING_THREADS = 8  # fewer than the ten connections that the libraries keep open

_checking: ContextVar[bool] = ContextVar(
    "checking", default=False
)  # whether a user is waiting for the check at the start of a run


class ObjectStore(Protocol):
    """The functions of a store. A `key` is the name of an object in its bucket (on Azure, container), such as "runs/a.json"."""

    def location(self, uri: str) -> AbstractContextManager[tuple[str, str]]:
        """Split a URI into bucket and key, and convert the library's errors in the block to FileNotFoundError or UserError."""

    def filesystem(self, bucket: str) -> pafs.FileSystem:
        """Return a pyarrow filesystem for a bucket. It can be pickled, and the pickle contains no credentials."""

    def delta_location(self, bucket: str, key: str) -> tuple[str, dict[str, str]]:
        """Return the URI of a folder for the library `deltalake`, and its storage options, which may contain credentials."""

    def version_token(self, bucket: str, key: str) -> str | None:
        """Return a text that changes when the content of an object changes; None if there is no such object."""

    def read(self, bucket: str, key: str) -> tuple[bytes, str]:
        """Return the content of an object and its tag (ETag or generation), for a conditional write."""

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """Create or replace an object in one step."""

    def compare_and_swap(self, bucket: str, key: str, old: bytes | None, new: bytes) -> bool:
        """Change the content from `old` (None: no object) to `new` in one step. Return whether this call did so."""

    def check_conditional_writes(self, bucket: str, key: str) -> None:
        """Raise UserError if the server ignores the condition of a conditional write. The object `key` must exist."""

    def upload(self, bucket: str, key: str, file: IO[bytes]) -> None:
        """Create or replace an object in one step from an open file, without holding all of it in memory."""

    def download(self, bucket: str, key: str, file: IO[bytes]) -> None:
        """Write the content of an object to an open file, without holding all of it in memory."""

    def copy(self, source: tuple[str, str], target: tuple[str, str]) -> bool:
        """Let the server copy an object in one step to another (bucket, key). False, with nothing done, if it can't do this."""

    def keys(self, bucket: str, prefix: str) -> Iterator[str]:
        """Iterate over the keys of a bucket that begin with `prefix`, in sorted order."""

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete objects. Keys that do not exist are ignored."""


def retry_seconds() -> float:
    """Return how many seconds after its first failure a request is still retried."""
    return CHECK_SECONDS if _checking.get() else RETRY_SECONDS


def delta_options() -> dict[str, str]:
    """Return options for the library `deltalake`: it retries and waits as this project's own requests do, on every store."""
    return {"max_retries": "1000", "retry_timeout": f"{RETRY_SECONDS:g}s", "timeout": "60s", "connect_timeout": "10s"}


def timeouts() -> tuple[int, int]:
    """Return how many seconds a request waits for a connection, and how many for an answer."""
    return (3, 6) if _checking.get() else (10, 60)


@contextmanager
def short_retries() -> Iterator[None]:
    """Retry the failed requests of a `with` statement, in this thread, for only a few seconds (CHECK_SECONDS)."""
    before = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(before)


def backoff_seconds(attempt: int) -> float:
    """Return how many seconds to wait before retrying a failed request.

    The time grows exponentially with the number of failures, up to five seconds. It is partly random, so that workers do not all
    retry at once.

    Args:
        attempt: number of failures of the request so far, at least 1.
    """
    return random.uniform(0.5, 1) * min(0.1 * 2**attempt, MAX_BACKOFF_SECONDS)


def split_uri(uri: str) -> tuple[str, str]:
    """Split a URI into its bucket and key.

    Returns:
        The name of the bucket, and the key without slashes at its end. The key is "" if the URI names the bucket itself.

    Raises:
        UserError: if the URI has no bucket.
    """
    scheme, _, path = uri.partition("://")
    bucket, _, key = path.rstrip("/").partition("/")
    if not bucket:
        raise UserError(f"{uri} names no bucket: {scheme}://bucket/folder is needed")
    return bucket, key


def compare_and_swap_by_tag(
    read: Callable[[], tuple[bytes, str] | None], write_if: Callable[[str | None], bool], old: bytes | None, new: bytes
) -> bool:
    """Compare and swap the content of an object, as `ObjectStore.compare_and_swap` does, by a conditional write.

    Args:
        read: function that returns the content of the object and its tag; None if there is no object.
        write_if: function that writes `new` if the object has the given tag (None: if there is no object), and returns whether
            the server did so. Its request may be retried.
        old: the expected content; None if there should be no object.
        new: the new content, which must differ from what any other process writes.

    Returns:
        True if this call changed the object, False if its content was not `old`.
    """
    found = None if old is None else read()
    if (found and found[0]) != old:
        return False
    if write_if(found[1] if found else None):
        return True
    # The first attempt may have succeeded although its answer was lost. Then the condition of the second one did not hold.
    after = read()
    return after is not None and after[0] == new


def check_conditions(
    write_if: Callable[[str | None], bool], wrong_tag: str, uri: str, other: str = "one with conditional writes"
) -> None:
    """Check that a server refuses a conditional write whose condition does not hold. Locks depend on it.

    Args:
        write_if: function that overwrites an existing object if it has the given tag (None: if there is no object), and returns
            whether the server did so.
        wrong_tag: a tag that the object does not have.
        uri: URI of the object, for the message.
        other: the server to use instead, for the message.

    Raises:
        UserError: if the server ignores a condition.
    """
    for tag in (None, wrong_tag):
        if write_if(tag):
            raise UserError(
                f"the server of {uri} ignores the conditions of writes, so two runs could write to one folder at the same time: "
                f"use {other}, or a folder on a disk"
            )


def missing_extra(scheme: str, extra: str) -> UserError:
    """Return the error that the library for a scheme is not installed. It names the extra of this project that installs it."""
    return UserError(
        f"{scheme}:// needs a library that is not installed; to install it run in the project's folder: "
        f"pip install -c constraints.txt -e '.[{extra}]'"
    )


def copy_through_disk(download: Callable[[IO[bytes]], None], upload: Callable[[IO[bytes]], None]) -> None:
    """Copy an object that no server can copy itself, through a temporary file on this machine.

    Args:
        download: function that writes the object to an open file.
        upload: function that makes an object of an open file.
    """
    with TemporaryFile(prefix="deconvnet-") as file:
        download(file)
        file.seek(0)
        upload(file)


def for_each(act: Callable[[str], object], keys: Iterable[str]) -> None:
    """Call a function for each of some keys, in several threads. Raise the first error after all calls have ended."""
    with ThreadPoolExecutor(_DELETING_THREADS) as pool:
        for done in [pool.submit(act, key) for key in keys]:
            done.result()
