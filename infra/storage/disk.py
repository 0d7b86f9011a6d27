"""Write local files in one step, and turn disk errors into messages for the user."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeGuard

from infra.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST)
_TEMPORARY = re.compile(r"(?:.*/)?\.[0-9a-f]{32}")  # names of the temporary files of `replacing`
MAX_STEM_BYTES = 250
"""Most bytes in the name of an image without its suffix. With any of the suffixes ".png" to ".jpeg" it fits into 255 bytes, which
is what Linux's file systems allow."""


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether an error was raised because the disk is full or a quota is exhausted."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def disk_user_error(error: OSError, folder: Path | str) -> UserError | None:
    """Convert an error of writing a file to a UserError that explains it to the user.

    Args:
        error: the error that writing raised.
        folder: the folder that contains or should contain the file.

    Returns:
        The UserError, for the caller to raise, if the disk is full, a permission is missing, the path of `folder` can't be a
        folder, or a name is too long. None for other errors, which the user can't correct.
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
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"the name of {error.filename2 or error.filename} is too long: {error.strerror}")
    return None


def is_temporary(name: str) -> bool:
    """Return whether a file has the name of a temporary file of `replacing`. A process that is killed leaves one behind."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def disk_errors_for_user(path: Path) -> Iterator[None]:
    """Convert disk errors in the block of a `with` statement to UserErrors, if the user can correct them.

    Errors that the user can't correct are raised unchanged.

    Args:
        path: the file that the block writes.

    Raises:
        UserError: if the disk is full, a permission is missing, a parent folder of the file can't exist, or a name is too long.
    """
    try:
        yield
    except OSError as error:
        if explained := disk_user_error(error, path.parent):
            raise explained from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Replace a file in one step, so that readers see either its old or its new content, never a part.

    The `with` block writes a temporary file in the same folder. At the end the file is synced to disk (fsync) and renamed to
    `path`. Parent folders are created. If the block fails, `path` is unchanged and the temporary file is deleted.

    Args:
        path: the file to create or replace.

    Yields:
        The temporary file, open for writing.

    Raises:
        UserError: if the disk is full, a permission is missing, a parent folder can't be created, or a name is too long.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}")  # without the file's name, which may be as long as the disk allows
    with disk_errors_for_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
