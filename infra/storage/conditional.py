"""Write a file only if it is absent or still has the expected content, so that only one of several writers succeeds.

In a bucket, the server ensures this by conditional requests. On a local disk, an exclusive `flock` on a second file beside the
target (the guard file) ensures it.
"""

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from infra.storage.disk import disk_errors_for_user
from infra.storage.files import write_bytes
from infra.storage.objects import store_of
from infra.storage.uri import local_path

_LONGEST_NAME = 240
"""Length in bytes of the longest file name that is part of its guard file's name. Disks allow 255 bytes."""
_NO_FILE_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors of `flock` on disks that do not support it, as some network disks don't."""

logger = logging.getLogger(__name__)


def compare_and_swap(uri: str, old: bytes | None, new: bytes) -> bool:
    """Create or replace a file if its content is exactly `old`. If several processes try at once, only one succeeds.

    Args:
        uri: the file, local or in a bucket.
        old: the expected content; None if there should be no file.
        new: the new content. It must be unique to this writer, for example by a random token: if the server's answer is lost, the
            writer finds out whether it succeeded by reading the file back.

    Returns:
        True if this call changed the file, False if its content was not `old`.

    Raises:
        UserError: if the storage can't be used, for example for wrong credentials or a full disk.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            return store.compare_and_swap(bucket, key, old, new)
    path = local_path(uri)
    if old is not None and not path.parent.is_dir():
        return False
    with disk_errors_for_user(path), one_process_at_a_time(path):
        found = path.read_bytes() if path.exists() else None
        if found != old:
            return False
        write_bytes(uri, new)
        return True


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Let only one process at a time run the block of a `with` statement for a local file. Other processes wait for their turn.

    This works for processes on this machine and on machines that share the folder. They wait for the lock (`flock`) of a guard
    file, which is created beside the file and deleted at the end. If the disk does not support such locks, a warning is logged
    and nothing is waited for.

    Args:
        path: the file to be changed in the block. Its folder is created if it does not exist.
    """
    name, encoded = path.name, os.fsencode(path.name)
    if len(encoded) > _LONGEST_NAME:
        name = hashlib.sha256(encoded).hexdigest()[:32]
    guard = path.with_name(f".{name}.guard")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with guard.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_FILE_LOCKS:
                    raise
                _warn(path.parent)
            # The previous process may have deleted the guard file while we waited. Our lock would then be on a deleted file, and
            # a third process could lock a new file of the same name.
            if not _is_open_file(file.fileno(), guard):
                continue
            try:
                yield
            finally:
                guard.unlink(missing_ok=True)
            return


@cache
def _warn(folder: Path) -> None:
    """Log once that the disk of a folder has no file locks."""
    logger.warning(f"the disk of {folder} has no file locks: do not start two runs there in the same second")


def _is_open_file(descriptor: int, path: Path) -> bool:
    """Return whether a path still refers to the open file, which may have been deleted or replaced since.

    Args:
        descriptor: file descriptor of the open file.
        path: the path under which it was opened.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
