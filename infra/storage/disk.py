"""Writing local files whole, and disk errors as messages for the user."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeGuard

from infra.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """True for the error that a full disk or an exhausted quota raises."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def disk_user_error(error: OSError, folder: Path | str) -> UserError | None:
    """Explain to the user why writing below a folder failed.

    Args:
        error: what the write raised.
        folder: the folder that was written to; its free space is part of the message.

    Returns:
        The error to raise instead, or None if it is not for the user to correct (not a full disk, missing permission or a path
        that can't be a folder).
    """
    if is_full(error):
        free = ""
        with suppress(OSError):
            usage = shutil.disk_usage(folder)
            free = f" ({usage.free / 2**20:,.0f} MiB free of {usage.total / 2**20:,.0f} MiB)"
        return UserError(f"the disk of {folder} is full{free}: make room; what was committed before is intact")
    if error.errno in _NOT_WRITABLE:
        return UserError(f"{folder} can't be written to: {error.strerror}")
    if error.errno in _NOT_A_FOLDER:
        return UserError(f"{folder} can't be a folder: {error.strerror} ({error.filename})")
    return None


@contextmanager
def disk_errors_for_user(path: Path) -> Iterator[None]:
    """Turn disk errors within the block, raised while writing the file `path`, into UserErrors where possible."""
    try:
        yield
    except OSError as error:
        if explained := disk_user_error(error, path.parent):
            raise explained from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one step, so that readers see its old content or the new, never a part.

    Parent folders are created. If the block fails, `path` is unchanged and nothing else is left behind.

    Args:
        path: the file to create or replace.

    Yields:
        A temporary path in the same folder to write to; it is renamed to `path` at the end of the block.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with disk_errors_for_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        sync(file)


def sync(file: BinaryIO) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())
