"""Files by URI: a local path, file:// or s3://. Tables go through `pyarrow.fs`, objects through boto3 for S3.

Everything written appears whole or not at all: locally by a rename, on S3 because an object appears when it is complete.
S3's endpoint and credentials come from the standard AWS variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …). Wrong ones, a missing
bucket, a server that stays away and a full disk are UserErrors; a server that comes back within a minute is waited for.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import pyarrow.fs as pafs

from infra.errors import UserError
from infra.storage import s3
from infra.storage.s3 import PATIENCE_SECONDS as PATIENCE_SECONDS

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def is_s3(uri: str) -> bool:
    """True for s3:// URIs."""
    return uri.startswith("s3://")


def local_path(uri: str) -> Path:
    """The path of a local URI. Raises UserError for any other."""
    if "://" in uri and not uri.startswith("file://"):
        raise UserError(f"{uri} can't be used here: a local path or an s3:// one is needed")
    return Path(uri.removeprefix("file://")).expanduser()


def absolute(uri: str) -> str:
    """Local paths made absolute (workers run in other folders); other URIs as they are."""
    return uri.rstrip("/") if uri.startswith(("s3://", "http://", "https://")) else str(local_path(uri).resolve())


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(p.strip("/") for p in parts)])


@contextmanager
def _s3(uri: str) -> Iterator[tuple[str, str]]:
    """The bucket and key of an s3:// URI; what S3 refuses in the block is told as a sentence."""
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    if not bucket:
        raise UserError(f"{uri} names no bucket: s3://bucket/folder is needed")
    with s3.sentences(uri):
        yield bucket, key


def disk_mistake(error: OSError, folder: Path | str) -> UserError | None:
    """What a person can do about an error of writing below `folder`: the disk is full, or not theirs to write on. Else None."""
    if is_full(error):
        free = ""
        with suppress(OSError):
            usage = shutil.disk_usage(folder)
            free = f" ({usage.free / 2**20:,.0f} MiB free of {usage.total / 2**20:,.0f} MiB)"
        return UserError(f"the disk of {folder} is full{free}: make room; what was committed before is intact")
    if error.errno in _NOT_ALLOWED:
        return UserError(f"{folder} can't be written to: {error.strerror}")
    if error.errno in _NO_FOLDER:
        return UserError(f"{folder} can't be a folder: {error.strerror} ({error.filename})")
    return None


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """True for what a full disk (or quota) raises."""
    return isinstance(error, OSError) and error.errno in _FULL_DISK


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """The disk's refusals to write `path`, as a sentence."""
    try:
        yield
    except OSError as error:
        if mistake := disk_mistake(error, path.parent):
            raise mistake from error
        raise


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of `uri`, and its path there; S3's is as patient as this module."""
    if is_s3(uri):
        with _s3(uri) as (bucket, _):
            return s3.filesystem(bucket), uri.removeprefix("s3://")
    return pafs.LocalFileSystem(), str(local_path(uri))


def exists(uri: str) -> bool:
    """True if a file or folder stands at `uri`; on S3 a folder is what the keys below it begin with."""
    if not is_s3(uri):
        return local_path(uri).exists()
    with _s3(uri) as (bucket, key):
        if key and s3.head(bucket, key) is not None:
            return True
        below = s3.keys(bucket, f"{key}/" if key else "")
        return next(below, None) is not None or not key


def stamp(uri: str) -> str:
    """What tells a file from what stood there before, without reading it: its size and time of change, or on S3 its ETag; of
    http(s) the address alone.

    Raises UserError where there is no such file.
    """
    if uri.startswith(("http://", "https://")):
        return uri
    if is_s3(uri):
        with _s3(uri) as (bucket, key):
            if key and (head := s3.head(bucket, key)) is not None:
                return f"{head['ContentLength']}@{head['ETag']}"
    elif (path := local_path(uri)).is_file():
        found = path.stat()
        return f"{found.st_size}@{found.st_mtime_ns}"
    raise UserError(f"there is no file {uri}")


def read_bytes(uri: str) -> bytes:
    """The file's content. Raises FileNotFoundError."""
    if is_s3(uri):
        with _s3(uri) as (bucket, key):
            return s3.read(bucket, key)[0]
    return local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole: readers see the old content or the new, never a part."""
    if not is_s3(uri):
        with _aside(local_path(uri)) as path:
            _write(path, data)
        return
    with _s3(uri) as (bucket, key):
        if len(data) > s3.PART_BYTES:
            s3.client().upload_fileobj(BytesIO(data), bucket, key, Config=s3.transfer())
        else:
            s3.client().put_object(Bucket=bucket, Key=key, Body=data)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place at the end of the block; nothing is left behind if that fails."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def read_json(uri: str) -> Any:
    """A JSON file's value. Raises FileNotFoundError."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Write `value` as JSON, whole."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def list_files(uri: str) -> list[str]:
    """Files below the folder `uri`, as sorted paths relative to it; [] where it is absent."""
    if is_s3(uri):
        with _s3(uri) as (bucket, key):
            prefix = f"{key}/" if key else ""
            # A key that ends in "/" is a folder's marker, which some tools leave.
            return sorted(found.removeprefix(prefix) for found in s3.keys(bucket, prefix) if not found.endswith("/"))
    fs, path = filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    root = path.rstrip("/") + "/"
    return sorted(i.path.removeprefix(root) for i in infos if i.type == pafs.FileType.File)


def remove(uri: str) -> None:
    """Delete a file or a folder with all below it; absent is fine."""
    if is_s3(uri):
        with _s3(uri) as (bucket, key):
            doomed = s3.keys(bucket, f"{key}/" if key else "")
            while page := list(islice(doomed, s3.PAGE)):
                s3.delete(bucket, page)
            if key:
                s3.delete(bucket, [key])
        return
    path = local_path(uri)
    with _disk(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def copy_file(source: str, target: str) -> None:
    """Copy one file (any mix of local and s3), without holding it. Raises FileNotFoundError."""
    if is_s3(target):
        with _s3(target) as (bucket, key):
            if is_s3(source):
                with _s3(source) as (from_bucket, from_key):
                    place = {"Bucket": from_bucket, "Key": from_key}
                    s3.client().copy(place, bucket, key, Config=s3.transfer())
            else:
                with local_path(source).open("rb") as file:
                    s3.client().upload_fileobj(file, bucket, key, Config=s3.transfer())
    elif is_s3(source):
        with _aside(local_path(target)) as aside, _s3(source) as (bucket, key), aside.open("wb") as file:
            s3.client().download_fileobj(bucket, key, file, Config=s3.transfer())
            _sync(file)
    else:
        with local_path(source).open("rb") as content, _aside(local_path(target)) as aside, aside.open("wb") as file:
            shutil.copyfileobj(content, file, 2**20)
            _sync(file)


def copy_tree(source: str, target: str) -> None:
    """Copy every file below `source` to `target` (any mix of local and s3), one at a time."""
    for name in list_files(source):
        copy_file(join(source, name), join(target, name))


def check_writable(uri: str) -> None:
    """Raise UserError, within seconds, where a run could not keep its files in the folder `uri`."""
    name = f".writable-{uuid.uuid4().hex}"
    if is_s3(uri):
        with _s3(uri) as (bucket, folder):
            client, place = s3.client(s3.CHECK_SECONDS), {"Bucket": bucket, "Key": f"{folder}/{name}".lstrip("/")}
            client.put_object(**place, Body=b"writable")
            client.get_object(**place)["Body"].read()
            client.list_objects_v2(Bucket=bucket, Prefix=place["Key"], MaxKeys=1)
            client.delete_object(**place)
        return
    path = local_path(uri) / name
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(path, bytes(4096))
        finally:
            with suppress(OSError):
                path.unlink()


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file that isn't there yet; False where one stands. Of several writers at once one wins.

    `data` should be the writer's own: whoever finds exactly it there after an answer was lost takes it for what they wrote.
    """
    return _exchange(uri, None, data)


def replace_if_same(uri: str, data: bytes, old: bytes) -> bool:
    """Write a file in place of one that holds exactly `old`; False where it is absent or holds something else.

    Of several writers at once one wins. `data` should be the writer's own, as for `put_if_absent`.
    """
    return _exchange(uri, old, data)


def remove_if_same(uri: str, old: bytes) -> bool:
    """Delete a file that holds exactly `old`; False where it is absent or holds something else."""
    return _exchange(uri, old, None)


def _exchange(uri: str, old: bytes | None, new: bytes | None) -> bool:
    """Put `new` in the place of `old` (None is no file) in one step, if `old` is what stands there."""
    if is_s3(uri):
        with _s3(uri) as (bucket, key):
            return s3.exchange(bucket, key, old, new)
    path = local_path(uri)
    if old is not None and not path.parent.is_dir():
        return False
    with _disk(path), _guarded(path):
        found = path.read_bytes() if path.exists() else None
        if found != old:
            return False
        if new is None:
            path.unlink()
        else:
            write_bytes(uri, new)
        return True


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Only one process (of all that share the folder) is in this block for `path`; no file is left behind."""
    guard = path.with_name(f".{path.name}.guard")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        held = os.open(guard, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not _is_at(held, guard):  # who held it before us has deleted it, and a newcomer would lock another of this name
                continue
            try:
                yield
            finally:
                guard.unlink()
            return
        finally:
            os.close(held)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the content of `uri` (local, s3:// or http(s)://), deleted afterwards if it was fetched.

    Raises UserError where there is no such file.
    """
    if not is_s3(uri) and not uri.startswith(("http://", "https://")):
        path = local_path(uri)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="deconvnet-"))
    target = folder / Path(uri).name
    try:
        _fetch(uri, target)
        yield target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(uri: str, target: Path) -> None:
    try:
        if is_s3(uri):
            copy_file(uri, str(target))
        else:
            with _disk(target), urllib.request.urlopen(uri, timeout=60) as reply, target.open("wb") as file:
                shutil.copyfileobj(reply, file)
    except FileNotFoundError:
        raise UserError(f"there is no file {uri}") from None
    except OSError as error:
        raise UserError(f"{uri} can't be fetched: {error}") from error
