"""Read, write, list and copy files given by a URI: a local path, file:// or s3://.

A written file appears complete or not at all. Locally it is written under a temporary name and then renamed. On S3 an object
becomes visible only when its upload is complete.

Functions raise UserError for wrong credentials, a missing bucket, an S3 server that does not answer, and a full disk. If an S3
server does not answer, requests are retried for a minute (`s3_client.RETRY_SECONDS`).
"""

import hashlib
import json
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from infra.errors import UserError
from infra.storage import s3, s3_client
from infra.storage.disk import disk_errors_for_user, replacing
from infra.storage.uri import is_http, is_s3, join, local_path


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem for a URI, and the path within that filesystem.

    S3 filesystems retry failed requests for about a minute, as the functions of this module do.

    Args:
        uri: a file or folder, local or s3://.

    Raises:
        UserError: if the URI names no bucket, or the S3 server can't be used.
    """
    if is_s3(uri):
        with s3.location(uri) as (bucket, _):
            return s3_client.filesystem(bucket), uri.removeprefix("s3://")
    return pafs.LocalFileSystem(), str(local_path(uri))


def exists(uri: str) -> bool:
    """Return whether there is a file or folder at `uri`. On S3 a folder exists if any key lies below it."""
    if not is_s3(uri):
        return local_path(uri).exists()
    with s3.location(uri) as (bucket, key):
        if key and s3.head(bucket, key) is not None:
            return True
        below = s3.keys(bucket, f"{key}/" if key else "")
        return next(below, None) is not None or not key


def version_token(uri: str) -> str:
    """Return a short text that changes when the content of a file changes. The file is not read.

    For local files the text consists of size and modification time, on S3 of size and ETag. For http(s) URIs it is the URI
    itself, so changes of such files go unnoticed.

    Args:
        uri: the file, local, s3:// or http(s)://.

    Raises:
        UserError: if there is no such file.
    """
    if is_http(uri):
        return uri
    if is_s3(uri):
        with s3.location(uri) as (bucket, key):
            if key and (head := s3.head(bucket, key)) is not None:
                return f"{head['ContentLength']}@{head['ETag']}"
    elif (path := local_path(uri)).is_file():
        status = path.stat()
        return f"{status.st_size}@{status.st_mtime_ns}"
    raise UserError(f"there is no file {uri}")


def content_digest(uri: str) -> str:
    """Return a text that identifies the content of a file.

    For local files this is the SHA-256 in hexadecimal, so copies of a file have the same digest. Other files are not read: the
    result is their `version_token`, on S3 size and ETag.

    Args:
        uri: the file, local, s3:// or http(s)://.

    Raises:
        UserError: if there is no such file.
    """
    token = version_token(uri)
    return token if is_http(uri) or is_s3(uri) else _sha256(local_path(uri), token)


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
    """Return the content of a local or s3:// file.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if the S3 server can't be used.
    """
    if is_s3(uri):
        with s3.location(uri) as (bucket, key):
            return s3.read(bucket, key)[0]
    return local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Create or replace a file in one step. Missing parent folders are created.

    Args:
        uri: the file, local or s3://.
        data: its content.

    Raises:
        UserError: if the file can't be written, for example for wrong credentials or a full disk.
    """
    if not is_s3(uri):
        with replacing(local_path(uri)) as file:
            file.write(data)
        return
    with s3.location(uri) as (bucket, key):
        if len(data) > s3.PART_BYTES:
            s3_client.client().upload_fileobj(BytesIO(data), bucket, key, Config=s3.transfer_config())
        else:
            s3_client.client().put_object(Bucket=bucket, Key=key, Body=data)


def read_json(uri: str) -> Any:
    """Read a JSON file, local or s3://, and return its value.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if the S3 server can't be used.
        ValueError: if the file does not contain valid JSON.
    """
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Create or replace a JSON file in one step.

    Args:
        uri: the file, local or s3://. Missing parent folders are created.
        value: its value, which must be serialisable by `json.dumps`.

    Raises:
        UserError: if the file can't be written, for example for wrong credentials or a full disk.
    """
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def list_files(uri: str) -> list[str]:
    """List the files at any depth below a folder.

    Args:
        uri: the folder, local or s3://.

    Returns:
        Sorted paths relative to the folder; [] if there is no such folder.
    """
    if is_s3(uri):
        with s3.location(uri) as (bucket, key):
            prefix = f"{key}/" if key else ""
            # Some tools mark folders with an empty object whose key ends in "/".
            return sorted(found.removeprefix(prefix) for found in s3.keys(bucket, prefix) if not found.endswith("/"))
    fs, path = filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    root = path.rstrip("/") + "/"
    return sorted(i.path.removeprefix(root) for i in infos if i.type == pafs.FileType.File)


def remove(uri: str) -> None:
    """Delete a file, or a folder with everything in it. Do nothing if it does not exist.

    Args:
        uri: the file or folder, local or s3://.

    Raises:
        UserError: if it can't be deleted, for example because a permission is missing.
    """
    if is_s3(uri):
        with s3.location(uri) as (bucket, key):
            below = s3.keys(bucket, f"{key}/" if key else "")
            while page := list(islice(below, s3.PAGE)):
                s3.delete(bucket, page)
            if key:
                s3.delete(bucket, [key])
        return
    path = local_path(uri)
    with disk_errors_for_user(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_files(uri: str, names: Sequence[str]) -> None:
    """Delete files of a folder, on S3 by one request for 1000 of them. Do nothing for files that do not exist.

    Args:
        uri: the folder, local or s3://.
        names: paths of the files relative to the folder.
    """
    if not is_s3(uri):
        for name in names:
            remove(join(uri, name))
        return
    with s3.location(uri) as (bucket, key):
        keys = [f"{key}/{name}".lstrip("/") for name in names]
        for start in range(0, len(keys), s3.PAGE):
            s3.delete(bucket, keys[start : start + s3.PAGE])


def copy_file(source: str, target: str) -> None:
    """Copy one file, without holding all of it in memory.

    Args:
        source: the file to copy, local or s3://.
        target: the file to create or replace, local or s3://.

    Raises:
        FileNotFoundError: if there is no file at `source`.
    """
    client, config = s3_client.client, s3.transfer_config
    if not is_s3(target):
        with replacing(local_path(target)) as file:
            if is_s3(source):
                with s3.location(source) as (bucket, key):
                    client().download_fileobj(bucket, key, file, Config=config())
            else:
                with local_path(source).open("rb") as content:
                    shutil.copyfileobj(content, file, 2**20)
        return
    with s3.location(target) as (bucket, key):
        if is_s3(source):
            with s3.location(source) as (source_bucket, source_key):
                client().copy({"Bucket": source_bucket, "Key": source_key}, bucket, key, Config=config())
        else:
            with local_path(source).open("rb") as content:
                client().upload_fileobj(content, bucket, key, Config=config())


def copy_tree(source: str, target: str) -> None:
    """Copy all files below a folder, at any depth, to another folder.

    Args:
        source: the folder to copy, local or s3://. If it does not exist, nothing is copied.
        target: the folder to copy into, local or s3://; files of the same name are replaced.
    """
    for name in list_files(source):
        copy_file(join(source, name), join(target, name))


def check_writable(uri: str, locks: bool = False) -> None:
    """Check that files can be written, read, listed and deleted below a folder.

    Commands call this at the start of a run, so that the run does not fail later. It writes a small file and deletes it again.
    If an S3 server does not answer, requests are retried for only four seconds.

    Args:
        uri: the folder, local or s3://; a missing local folder is created.
        locks: True to check also that an S3 server supports conditional writes, which a safe lock file needs. It has no effect
            for a local folder.

    Raises:
        UserError: if one of these operations fails. The message says why.
    """
    name = f".writable-{uuid.uuid4().hex}"
    if is_s3(uri):
        with s3.location(uri) as (bucket, folder):
            client, file = s3_client.client(s3_client.CHECK_SECONDS), {"Bucket": bucket, "Key": f"{folder}/{name}".lstrip("/")}
            client.put_object(**file, Body=b"writable")
            client.get_object(**file)["Body"].read()
            client.list_objects_v2(Bucket=bucket, Prefix=file["Key"], MaxKeys=1)
            try:
                if locks:
                    s3.check_conditional_writes(bucket, file["Key"])
            finally:
                client.delete_object(**file)
        return
    path = local_path(uri) / name
    with replacing(path) as written:
        written.write(bytes(4096))
    path.unlink()


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Provide a local path to a file for the duration of a `with` statement.

    Args:
        uri: a local path, s3:// or http(s)://.

    Yields:
        The local file itself, or a temporary download with the same file name. The download is deleted at the end.

    Raises:
        UserError: if there is no such file or it can't be downloaded.
    """
    if not is_s3(uri) and not is_http(uri):
        path = local_path(uri)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deconvnet-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / Path(uri).name
        _download(uri, target)
        yield target


def _download(uri: str, target: Path) -> None:
    """Download a file.

    Args:
        uri: the file, s3:// or http(s)://.
        target: the local file to create or replace.

    Raises:
        UserError: if there is no such file or it can't be downloaded.
    """
    try:
        if is_s3(uri):
            copy_file(uri, str(target))
        else:
            with disk_errors_for_user(target), urllib.request.urlopen(uri, timeout=60) as reply, target.open("wb") as file:
                shutil.copyfileobj(reply, file)
    except FileNotFoundError:
        raise UserError(f"there is no file {uri}") from None
    except OSError as error:
        raise UserError(f"{uri} can't be downloaded: {error}") from error
