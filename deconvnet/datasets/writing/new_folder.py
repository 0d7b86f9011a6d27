"""A folder that appears only when its content is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra import storage
from infra.errors import UserError
from infra.storage.lock import Lock, hold_lock


def check_new(folder: Path) -> None:
    """Raise UserError if a folder exists and is not empty, or its path is that of a file."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--to {folder} exists and is not empty: name a new folder, or remove it")


@contextmanager
def new_folder(folder: Path, command: str = "import_data.py") -> Iterator[Path]:
    """Create a folder that appears only when its content is complete.

    Args:
        folder: path of the folder to create. An empty folder may exist there.
        command: name of the command that creates it, for the message to another one that would create the same folder.

    Yields:
        A temporary folder to fill. It is renamed to `folder` at the end of the `with` block, or deleted if the block raises.

    Raises:
        UserError: if the folder exists and is not empty, or the disk is full or not writable.
        Locked: if another command creates the same folder at this time, and so holds its lock (a file beside the folder).
        Interrupted: if another command has taken over the lock, because this one did not renew it in time.
    """
    temporary = folder.with_name(f".{folder.name}.importing")
    try:
        with locked_folder(temporary, folder.with_name(f".{folder.name}.lock"), command) as lock:
            check_new(folder)
            temporary.mkdir(parents=True)
            yield temporary
            lock.check()
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
    except OSError as error:
        if user_error := storage.disk_user_error(error, folder.parent):
            raise user_error from error
        raise


@contextmanager
def locked_folder(temporary: Path, lock_file: Path, command: str = "import_data.py") -> Iterator[Lock]:
    """Hold a lock for a temporary folder. At the end, the folder and the lock's file are deleted.

    If a killed run has left the folder, it is also deleted at the start.

    Args:
        temporary: path of the folder.
        lock_file: file of the lock.
        command: name of the command that holds the lock, for the message to another one.

    Yields:
        The lock.

    Raises:
        Locked: if another command holds the lock.
    """
    with hold_lock(str(lock_file), command) as lock:
        try:
            storage.remove(str(temporary))
            yield lock
        finally:
            if not lock.lost:
                storage.remove(str(temporary))
                lock_file.unlink(missing_ok=True)  # no later import needs it
