"""Read, write, list and copy files given by a URI: a local path, file://, or in a bucket (s3://, gs:// or abfs://).

A written file appears complete or not at all. Locally it is written under a temporary name and then renamed. In a bucket an
object becomes visible only when its upload is complete.

Functions raise UserError for wrong credentials, a missing bucket, a server that does not answer, and a full disk. If the server
of a bucket does not answer, requests are retried for a minute (`objects.store.RETRY_SECONDS`).
"""

import hashlib
import http.client
import json
import re
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

from infra.errors import UserError
from infra.storage.disk import disk_errors_for_user, replacing
from infra.storage.listing import list_files
from infra.storage.objects import store_of
from infra.storage.objects.store import copy_through_disk, short_retries
from infra.storage.uri import in_bucket, is_http, join, local_path

_TIMEOUT = 60.0  # seconds without a byte before the connection of a download counts as broken


def exists(uri: str) -> bool:
    """Return whether there is a file or folder at `uri`. In a bucket a folder exists if any key lies below it."""
    store = store_of(uri)
    if store is None:
        return local_path(uri).exists()
    with store.location(uri) as (bucket, key):
        if key and store.version_token(bucket, key) is not None:
            return True
        below = store.keys(bucket, f"{key}/" if key else "")
        return next(below, None) is not None or not key


def version_token(uri: str) -> str:
    """Return a short text that changes when the content of a file changes. The file is not read.

    For a local file, the text consists of size and modification time. For an object in a bucket, it consists of size and the
    store's identifier of the content, such as the ETag.
    For http(s) URIs it is the URI itself, so changes of such files go unnoticed.

    Args:
        uri: the file, local, in a bucket or http(s)://.

    Raises:
        UserError: if there is no such file.
    """
    if is_http(uri):
        return uri
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            if key and (token := store.version_token(bucket, key)) is not None:
                return token
    elif (path := local_path(uri)).is_file():
        status = path.stat()
        return f"{status.st_size}@{status.st_mtime_ns}"
    raise UserError(f"there is no file {uri}")


def content_digest(uri: str) -> str:
    """Return the SHA-256 of a local file, or the `version_token` of another file.

    So copies of a local file have the same digest. Files that are not local are not read.

    Args:
        uri: the file, local, in a bucket or http(s)://.

    Raises:
        UserError: if there is no such file.
    """
    token = version_token(uri)
    return token if is_http(uri) or in_bucket(uri) else _sha256(local_path(uri), token)


@lru_cache
def _sha256(path: Path, token: str) -> str:
    """Read a file and return its SHA-256 in hexadecimal. Results are cached.

    Args:
        path: the file.
        token: the file's `version_token`. It is part of the key of the cache, so that a changed file is read again.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(uri: str) -> bytes:
    """Return the content of a file, local or in a bucket.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if the server of the bucket can't be used.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            return store.read(bucket, key)[0]
    return local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Create or replace a file in one step. Missing parent folders are created.

    Args:
        uri: the file, local or in a bucket.
        data: its content.

    Raises:
        UserError: if the file can't be written, for example for wrong credentials or a full disk.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            store.write(bucket, key, data)
        return
    with replacing(local_path(uri)) as file:
        file.write(data)


def read_json(uri: str) -> Any:
    """Read a JSON file, local or in a bucket, and return its value.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if the server of the bucket can't be used.
        ValueError: if the file does not contain valid JSON.
    """
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Create or replace a JSON file in one step.

    Args:
        uri: the file, local or in a bucket. Missing parent folders are created.
        value: its value, which must be serialisable by `json.dumps`.

    Raises:
        UserError: if the file can't be written, for example for wrong credentials or a full disk.
    """
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def remove(uri: str) -> None:
    """Delete a file, or a folder with everything in it. Do nothing if it does not exist.

    Args:
        uri: the file or folder, local or in a bucket.

    Raises:
        UserError: if it can't be deleted, for example because a permission is missing.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            store.delete(bucket, store.keys(bucket, f"{key}/" if key else ""))
            if key:
                store.delete(bucket, [key])
        return
    path = local_path(uri)
    with disk_errors_for_user(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_files(uri: str, names: Sequence[str]) -> None:
    """Delete files of a folder, in a bucket many of them at a time. Do nothing for files that do not exist.

    Args:
        uri: the folder, local or in a bucket.
        names: paths of the files relative to the folder.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            store.delete(bucket, [f"{key}/{name}".lstrip("/") for name in names])
        return
    for name in names:
        remove(join(uri, name))


def copy_file(source: str, target: str) -> None:
    """Copy one file, without holding all of it in memory.

    Args:
        source: the file to copy, local or in a bucket.
        target: the file to create or replace, local or in a bucket.

    Raises:
        FileNotFoundError: if there is no file at `source`.
    """
    store = store_of(target)
    if store is None:
        with replacing(local_path(target)) as file:
            _copy_to(file, source)
        return
    with store.location(target) as there:
        if store_of(source) is store:
            with store.location(source) as here:
                if store.copy(here, there):
                    return
        if in_bucket(source):
            copy_through_disk(partial(_copy_to, source=source), partial(store.upload, *there))
        else:
            with local_path(source).open("rb") as content:
                store.upload(*there, content)


def _copy_to(file: IO[bytes], source: str) -> None:
    """Write the content of a file, local or in a bucket, to an open file."""
    if store := store_of(source):
        with store.location(source) as (bucket, key):
            store.download(bucket, key, file)
        return
    with local_path(source).open("rb") as content:
        shutil.copyfileobj(content, file, 2**20)


def copy_tree(source: str, target: str) -> None:
    """Copy all files below a folder, at any depth, to another folder.

    Args:
        source: the folder to copy, local or in a bucket. If it does not exist, nothing is copied.
        target: the folder to copy into, local or in a bucket; files of the same name are replaced.
    """
    for name in list_files(source):
        copy_file(join(source, name), join(target, name))


def check_writable(uri: str, locks: bool = False) -> None:
    """Check that files can be written, read, listed and deleted below a folder.

    Commands call this at the start of a run, so that the run does not fail later. It writes a small file and deletes it again.
    If the server of a bucket does not answer, requests are retried for only four seconds.

    Args:
        uri: the folder, local or in a bucket; a missing local folder is created.
        locks: True to check also that the server of a bucket supports conditional writes, which a safe lock file needs. It has no
            effect for a local folder.

    Raises:
        UserError: if one of these operations fails. The message says why.
    """
    name = f".writable-{uuid.uuid4().hex}"
    if (store := store_of(uri)) is None:
        path = local_path(uri) / name
        with replacing(path) as written:
            written.write(bytes(4096))
        path.unlink()
        return
    with store.location(uri) as (bucket, folder), short_retries():
        key = f"{folder}/{name}".lstrip("/")
        store.write(bucket, key, b"writable")
        try:
            store.read(bucket, key)
            next(store.keys(bucket, key), None)
            if locks:
                store.check_conditional_writes(bucket, key)
        finally:
            store.delete(bucket, [key])


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Provide a local path to a file for the duration of a `with` statement.

    Args:
        uri: the file, local, in a bucket or http(s)://.

    Yields:
        The local file itself, or a temporary download with the same file name (without the query of a URL, which may be a
        signature). The download is deleted at the end.

    Raises:
        UserError: if there is no such file or it can't be downloaded.
    """
    if not in_bucket(uri) and not is_http(uri):
        path = local_path(uri)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deconvnet-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / Path(_without_query(uri) if is_http(uri) else uri).name
        _download(uri, target)
        yield target


def _download(uri: str, target: Path) -> None:
    """Download a file.

    Args:
        uri: the file, in a bucket or http(s)://.
        target: the local file to create or replace.

    Raises:
        UserError: if there is no such file or it can't be downloaded.
    """
    try:
        if in_bucket(uri):
            copy_file(uri, str(target))
        else:
            _request(uri, target)
    except FileNotFoundError:
        raise UserError(f"there is no file {uri}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{uri} can't be downloaded: {error}") from error


def _request(url: str, target: Path) -> None:
    """Download a file from an http(s) URL. Raise UserError if it is not a valid URL, OSError if the connection ends too early."""
    try:
        with disk_errors_for_user(target), urllib.request.urlopen(url, timeout=_TIMEOUT) as reply, target.open("wb") as file:
            shutil.copyfileobj(reply, file)
            announced = reply.headers.get("Content-Length")
    except (ValueError, http.client.InvalidURL):  # their texts may quote the query, which may be a signature
        raise UserError(
            f"{_without_query(url)} is not a valid URL; in URLs, a blank is written as %20, and é as %C3%A9"
        ) from None
    if announced and target.stat().st_size != int(announced):
        raise OSError(f"the connection ended after {target.stat().st_size:,} of {int(announced):,} bytes")


def _without_query(url: str) -> str:
    """Return an http(s) URL without its query and fragment. It need not be valid."""
    return re.split("[?#]", url)[0]
