"""Files by URI: a local path, file:// or s3://. Tables go through `pyarrow.fs`, objects through boto3 for S3.

Everything written appears whole or not at all: locally by a rename, on S3 because an object appears when it is complete.
S3's endpoint and credentials come from the standard AWS variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …).
"""

import json
import os
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from infra.errors import UserError


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


@cache
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"max_attempts": 8, "mode": "standard"}))


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """S3's refusals, as a sentence; a missing object as FileNotFoundError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(uri) from None
        raise UserError(f"S3 refuses {uri}: {code or error}") from error
    except BotoCoreError as error:
        raise UserError(f"S3 can't be used for {uri}: {str(error).strip()}") from error


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of `uri`, and its path there."""
    if is_s3(uri):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return pafs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=False), uri.removeprefix("s3://")
    return pafs.LocalFileSystem(), str(local_path(uri))


def exists(uri: str) -> bool:
    """True if a file or folder stands at `uri`."""
    fs, path = filesystem(uri)
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def stamp(uri: str) -> str:
    """What tells a file from what stood there before, without reading it: size and time of change; of http(s) the address alone.

    Raises UserError where there is no such file.
    """
    if uri.startswith(("http://", "https://")):
        return uri
    fs, path = filesystem(uri)
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise UserError(f"there is no file {uri}")
    return f"{info.size}@{info.mtime_ns}"


def read_bytes(uri: str) -> bytes:
    """The file's content. Raises FileNotFoundError."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            return bytes(_s3().get_object(Bucket=bucket, Key=key)["Body"].read())
    return local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole: readers see the old content or the new, never a part."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            _s3().put_object(Bucket=bucket, Key=key, Body=data)
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    """A JSON file's value. Raises FileNotFoundError."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Write `value` as JSON, whole."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def list_files(uri: str) -> list[str]:
    """Files below the folder `uri`, as sorted paths relative to it; [] where it is absent."""
    fs, path = filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    root = path.rstrip("/") + "/"
    return sorted(i.path.removeprefix(root) for i in infos if i.type == pafs.FileType.File)


def remove(uri: str) -> None:
    """Delete a file or a folder with all below it; absent is fine."""
    fs, path = filesystem(uri)
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        fs.delete_dir(path)
    elif kind == pafs.FileType.File:
        fs.delete_file(path)


def copy_tree(source: str, target: str) -> None:
    """Copy every file below `source` to `target` (any mix of local and s3)."""
    for name in list_files(source):
        write_bytes(join(target, name), read_bytes(join(source, name)))


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the content of `uri` (local, s3:// or http(s)://), deleted afterwards if it was fetched.

    Raises UserError where there is no such file.
    """
    if is_s3(uri) or uri.startswith(("http://", "https://")):
        folder = Path(tempfile.mkdtemp(prefix="deconvnet-"))
        target = folder / Path(uri).name
        try:
            if is_s3(uri):
                target.write_bytes(read_bytes(uri))
            else:
                with urllib.request.urlopen(uri, timeout=60) as reply, target.open("wb") as file:
                    shutil.copyfileobj(reply, file)
            yield target
        except (OSError, FileNotFoundError) as error:
            raise UserError(f"{uri} can't be fetched: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    path = local_path(uri)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    yield path
