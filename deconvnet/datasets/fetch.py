"""Downloading large files over HTTP, and unpacking tar archives.

A download is saved as `<file>.part` at first. If it breaks off, it is resumed from there. When it is complete and its checksum is
right, it is renamed. An archive is unpacked to a temporary folder, which is renamed when it is complete.
"""

import errno
import fcntl
import hashlib
import http.client
import logging
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from infra.errors import UserError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes to read at once
_ATTEMPTS = 5
_TIMEOUT = 60.0  # seconds without a byte before a connection counts as broken
_RESERVE = 100_000_000  # bytes of disk to leave free
_FATAL_ERRNOS = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # another attempt would fail in the same way


def has_checksum(path: Path, checksum: str) -> bool:
    """Tell whether a file has a given checksum.

    Args:
        path: path of the file.
        checksum: "md5:HEX" or "sha256:HEX". HEX is the digest in hex digits, or at least its first 8 digits.

    Returns:
        True if the digest of the file's content begins with these digits.

    Raises:
        UserError: if the checksum is written in another way.
    """
    kind, _, expected = checksum.lower().partition(":")
    if kind not in ("md5", "sha256") or len(expected) < 8 or set(expected) - set("0123456789abcdef"):
        raise UserError(f"the checksum {checksum!r} must be written md5:HEX or sha256:HEX, with 8 digits or more")
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest().startswith(expected)


def require_disk_space(folder: Path, size: int, name: str) -> None:
    """Check that a disk has room for a number of bytes, and for 100 MB more.

    Args:
        folder: an existing folder on the disk.
        size: number of bytes needed.
        name: what needs the space, for the message, such as "unpacking data.tar".

    Raises:
        UserError: if the disk has less room.
    """
    free = shutil.disk_usage(folder).free
    if free < size + _RESERVE:
        needed = _format_bytes(size + _RESERVE)
        raise UserError(f"{name} needs {needed} free in {folder}, which has {_format_bytes(free)}: make room there")


def fetch(url: str, target: Path, checksum: str, pause: float = 2.0) -> Path:
    """Download a file, or resume a download that broke off.

    If the target exists with the right checksum, nothing is downloaded. If the connection breaks, the download is resumed up to
    four times. Progress is shown on stderr.

    Args:
        url: http:// or https:// address of the file.
        target: path to save the file to; its folder is created if needed.
        checksum: checksum that the file must have, as for `has_checksum`.
        pause: seconds to wait before the download is resumed for the first time; the wait doubles each time.

    Returns:
        `target`, the path of the complete file.

    Raises:
        UserError: if the address is not http:// or https://, the server refuses, the connection keeps breaking, the disk is full,
            the downloaded file has a wrong checksum, the target exists with another checksum, or another run downloads it.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} can't be downloaded: the address must begin with http:// or https://")
    if target.is_file():
        if has_checksum(target, checksum):
            return target
        raise UserError(f"{target} exists and its checksum is not {checksum}: delete it, or correct the checksum")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with _locked(part):
        for attempt in range(_ATTEMPTS):
            try:
                _download_rest(url, part)
                break
            except (OSError, http.client.HTTPException) as error:
                _raise_if_final(url, part, error, last=attempt == _ATTEMPTS - 1)
                logger.warning("%s: %s; trying again", target.name, getattr(error, "reason", None) or error)
                time.sleep(pause * 2**attempt)
        if not has_checksum(part, checksum):
            part.unlink()
            raise UserError(f"the file from {url} does not have the checksum {checksum} and was deleted: try again later")
        part.replace(target)
    return target


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Lock a file while it is downloaded, so that no other run appends to it. If nothing was received, it is deleted at the end.

    Args:
        part: the file, which is created if it does not exist. Inside the block, it may be deleted or replaced only when nothing
            more is written to it.

    Raises:
        UserError: if another run has locked the file, or it can't be written.
    """
    try:
        file = part.open("ab")
    except OSError as error:
        raise UserError(f"{part} can't be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is downloading to {part}: wait until it has ended") from None
        except OSError:
            logger.warning("the disk of %s has no file locks: do not start two downloads there", part.parent)
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                if not part.stat().st_size:
                    part.unlink()


def _raise_if_final(url: str, part: Path, error: Exception, last: bool) -> None:
    """Raise UserError if a failed download is not worth another attempt. Otherwise, return normally.

    Args:
        url: address of the file.
        part: file that holds what was received so far.
        error: exception that ended the attempt.
        last: True if no attempt is left.

    Raises:
        UserError: if the server refuses, the file can't be written, or this was the last attempt.
    """
    if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
        raise UserError(f"{url} can't be downloaded: the server answers {error.code} {error.reason}") from None
    if isinstance(error, OSError) and error.errno in _FATAL_ERRNOS:
        raise UserError(f"{part} can't be written: {error.strerror}") from None
    if last:
        received = _format_bytes(part.stat().st_size if part.exists() else 0)
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} can't be downloaded ({reason}); {received} are kept in {part}, and the same command resumes from there"
        ) from None


def _download_rest(url: str, part: Path) -> None:
    """Download the rest of a file and append it to what was received earlier, or download it all if the server can't resume.

    Args:
        url: address of the file.
        part: file that holds what was received so far; it need not exist.

    Raises:
        OSError: if the connection breaks or the server answers with an error. (urllib's HTTPError is an OSError.)
        HTTPException: if the server's answer is cut short or malformed.
        UserError: if the disk has no room for the rest.
    """
    received = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "deconvnet", "Accept-Encoding": "identity"})
    if received:
        request.add_header("Range", f"bytes={received}-")
    try:
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if error.code == 416 and total == str(received):
            return  # the file is complete; only its checksum has not been verified
        if error.code == 416:
            part.write_bytes(b"")  # what was received is longer than the file, so it is not the beginning of the file
            raise ConnectionError("the server's file is shorter than what was received of it") from None
        raise
    with reply:
        content_range = reply.headers.get("Content-Range") or ""
        if received and (reply.status != 206 or not content_range.startswith(f"bytes {received}-")):
            received = 0  # a server that can't resume sends the whole file again
        length = reply.headers.get("Content-Length")
        size = received + int(length) if length else None
        require_disk_space(part.parent, 0 if size is None else size - received, part.name)
        with part.open("ab" if received else "wb") as file:
            name = part.name.removesuffix(".part")
            with tqdm(desc=name, initial=received, total=size, unit="B", unit_scale=True) as bar:
                while block := reply.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
        if size is not None and part.stat().st_size < size:
            raise ConnectionError(f"the connection broke off at {_format_bytes(part.stat().st_size)} of {_format_bytes(size)}")


def unpack(archive: Path, top: str, to: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Unpack one folder of a tar archive to a new folder.

    The new folder appears only when all its files are unpacked. Progress is shown on stderr.

    Args:
        archive: path of the archive.
        top: path of the folder in the archive.
        to: path of the new folder. An empty folder may exist there.
        wanted: function that is called with the path of each file in the archive. The file is unpacked if it returns True.

    Raises:
        UserError: if the archive is damaged, has no such folder, or has a member that would be written outside the new folder
            (through `../`, an absolute path, a link or a device), if the new folder exists and is not empty, or if it can't be
            written, for example because the disk is full. Nothing is left behind then.
    """
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(
            f"{to} exists and is not empty, and {archive} would be unpacked there: move it away, or name another folder"
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with tarfile.open(archive) as tar, tqdm(desc=f"unpacking {archive.name}", unit="file") as bar:
            for member in tar:
                if wanted(member.name):
                    require_disk_space(temporary, member.size, f"unpacking {archive.name}")
                    tar.extract(member, temporary, filter="data")
                    bar.update()
        if not (temporary / top).is_dir():
            raise UserError(f"{archive} holds no folder {top}: it is not the archive expected; delete it")
        (temporary / top).replace(to)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}; nothing of it was kept") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FATAL_ERRNOS:
            raise UserError(f"{to} can't be written: {error.strerror}") from None
        raise UserError(f"{archive} can't be unpacked: {error}; delete it and download it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _format_bytes(count: int) -> str:
    """Write a number of bytes as text for the user, such as "1.2 GB" or "3.4 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
