"""List the files below a folder, local or in a bucket."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs

from infra.errors import UserError
from infra.storage.objects import store_of
from infra.storage.uri import local_path


class ListedFile(NamedTuple):
    """A file in a folder.

    Attributes:
        name: path of the file relative to the folder.
        size: size in bytes.
        mtime_ns: time of the last modification, in nanoseconds since 1970; 0 if it is not known.
        dangling: True for a symbolic link that leads to no file. Its size and time are 0.
    """

    name: str
    size: int
    mtime_ns: int
    dangling: bool = False


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem for a URI, and the path within that filesystem.

    Failed requests are retried for about a minute, as in `infra.storage.files`; for Azure, for about six seconds.

    Args:
        uri: a file or folder, local or in a bucket.

    Raises:
        UserError: if the URI names no bucket, or the server can't be used.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, _):
            return store.filesystem(bucket), uri.partition("://")[2]
    return pafs.LocalFileSystem(), str(local_path(uri))


def list_files(uri: str) -> list[str]:
    """List the files at any depth below a folder. Symbolic links are followed as by `list_sizes`; those to nothing are left out.

    Args:
        uri: the folder, local or in a bucket.

    Returns:
        Sorted paths relative to the folder; [] if there is no such folder.

    Raises:
        UserError: as `list_sizes`.
    """
    if store := store_of(uri):
        with store.location(uri) as (bucket, key):
            prefix = f"{key}/" if key else ""
            # Some tools mark folders with an empty object whose key ends in "/".
            return sorted(found.removeprefix(prefix) for found in store.keys(bucket, prefix) if not found.endswith("/"))
    return sorted(file.name for file in list_sizes(uri) if not file.dangling)


def list_sizes(uri: str, recursive: bool = True) -> Iterator[ListedFile]:
    """List the files below a folder with their sizes and times.

    Symbolic links in a local folder are followed, except those to a folder above them, which would be a loop. Dangling links are
    listed as well: tools such as DVC and git-annex leave them in place of files that were not fetched.

    Args:
        uri: the folder, local or in a bucket.
        recursive: True to list files at any depth, False to list only those directly in the folder.

    Yields:
        The files in any order; nothing if there is no such folder.

    Raises:
        UserError: if the server of a bucket can't be used, a local folder can't be listed, or a local file's name is not in
            UTF-8.
    """
    if not store_of(uri):
        yield from _list_local(local_path(uri), recursive)
        return
    fs, path = filesystem(uri)
    root = path.rstrip("/") + "/"
    for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=recursive)):
        if info.type == pafs.FileType.File:
            yield ListedFile(info.path.removeprefix(root), info.size, info.mtime_ns or 0)


def _list_local(root: Path, recursive: bool) -> Iterator[ListedFile]:
    """List the files below a local folder; see `list_sizes`."""
    folders: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while folders:
        folder, prefix, above = folders.pop()
        try:
            status = Path(folder).stat()
            if (here := (status.st_dev, status.st_ino)) in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = _check_name(prefix + entry.name, root)
                    if (found := _status(entry)) is None:
                        if entry.is_symlink():
                            yield ListedFile(name, 0, 0, dangling=True)
                    elif stat.S_ISREG(found.st_mode):
                        yield ListedFile(name, found.st_size, found.st_mtime_ns)
                    elif stat.S_ISDIR(found.st_mode) and recursive:
                        folders.append((entry.path, f"{name}/", above | {here}))
        except FileNotFoundError:  # there is no such folder, or it was deleted meanwhile
            continue
        except OSError as error:
            raise UserError(f"{folder} can't be listed: {error.strerror}") from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of a file or folder, with links followed. None for links that lead nowhere, and for deleted files."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None
    except OSError:
        if entry.is_symlink():  # a link to itself, or into a folder that may not be read
            return None
        raise


def _check_name(name: str, root: Path) -> str:
    """Return a name if it is in UTF-8, as tables and messages need it; otherwise raise UserError."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {os.fsencode(name)!r} in {root} is not in UTF-8: rename it") from None
    return name
