"""Writes that happen only if a file is absent or still holds known content, so that one of several writers wins.

On S3 the server ensures this by conditional requests; on a local disk, an exclusive `flock` on a guard file beside the target does.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.storage import s3
from infra.storage.disk import disk_errors_for_user
from infra.storage.files import write_bytes
from infra.storage.uri import is_s3, local_path


def put_if_absent(uri: str, data: bytes) -> bool:
    """Create a file unless one exists. Of several processes at once, one succeeds.

    Args:
        uri: the file, local or s3://.
        data: content that no other process would write (with a random token, say): if the answer of a successful S3 request is
            lost, finding exactly this content is how the writer knows that it succeeded.

    Returns:
        True if the file was created, False if there was one.
    """
    return _exchange(uri, None, data)


def replace_if_same(uri: str, data: bytes, old: bytes) -> bool:
    """Replace a file that holds exactly `old`. Of several processes at once, one succeeds.

    Args:
        uri: the file, local or s3://.
        data: new content that no other process would write (see `put_if_absent`).
        old: the content that is expected.

    Returns:
        True if the file was replaced, False if it is absent or holds something else.
    """
    return _exchange(uri, old, data)


def remove_if_same(uri: str, old: bytes) -> bool:
    """Delete a file that holds exactly `old`.

    Returns:
        True if the file was deleted, False if it is absent or holds something else.
    """
    return _exchange(uri, old, None)


def _exchange(uri: str, old: bytes | None, new: bytes | None) -> bool:
    """Change a file's content from `old` to `new` in one step; None stands for no file. False if the content is not `old`."""
    if is_s3(uri):
        with s3.location(uri) as (bucket, key):
            return s3.exchange(bucket, key, old, new)
    path = local_path(uri)
    if old is not None and not path.parent.is_dir():
        return False
    with disk_errors_for_user(path), _exclusive(path):
        found = path.read_bytes() if path.exists() else None
        if found != old:
            return False
        if new is None:
            path.unlink()
        else:
            write_bytes(uri, new)
        return True


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time, of all that share the folder, run the block for `path`. The guard file is deleted at the end."""
    guard = path.with_name(f".{path.name}.guard")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(guard, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The previous process may have deleted the guard file while we waited. Our lock would then be on a deleted file, and
            # a third process could lock a new file of the same name.
            if not _is_open_file(descriptor, guard):
                continue
            try:
                yield
            finally:
                guard.unlink()
            return
        finally:
            os.close(descriptor)


def _is_open_file(descriptor: int, path: Path) -> bool:
    """True if the open file `descriptor` is the one that `path` names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
