"""Downloads of large files over HTTP, resumed where they broke off and verified by checksum; and unpacking of archives.

A download grows in `<file>.part` and gets its name when its checksum is right. An archive is unpacked to a temporary folder,
which is renamed.
"""

import errno
import hashlib
import http.client
import logging
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tqdm import tqdm

from infra.errors import UserError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_ATTEMPTS = 5
_TIMEOUT = 60.0  # seconds without a byte before a connection counts as broken
_RESERVE = 100_000_000  # bytes of disk to leave free
_FATAL_ERRNOS = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def has_checksum(path: Path, checksum: str) -> bool:
    """Tell whether a file has this checksum.

    Args:
        path: the file.
        checksum: "md5:HEX" or "sha256:HEX", where HEX may be only the first digits of the digest, 8 or more.

    Returns:
        True if the digits agree.

    Raises:
        UserError: if the checksum is written otherwise.
    """
    kind, _, expected = checksum.lower().partition(":")
    if kind not in ("md5", "sha256") or len(expected) < 8 or set(expected) - set("0123456789abcdef"):
        raise UserError(f"the checksum {checksum!r} must be written md5:HEX or sha256:HEX, with 8 digits or more")
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest().startswith(expected)


def require_disk_space(folder: Path, size: int, what: str) -> None:
    """Raise UserError if the disk of a folder has no room for more bytes.

    Args:
        folder: an existing folder.
        size: bytes needed; 100 MB beside them must stay free.
        what: what needs them, for the message.
    """
    free = shutil.disk_usage(folder).free
    if free < size + _RESERVE:
        needed = _format_bytes(size + _RESERVE)
        raise UserError(f"{what} needs {needed} free in {folder}, which has {_format_bytes(free)}: make room there")


def fetch(url: str, target: Path, checksum: str | None = None, pause: float = 2.0) -> Path:
    """Download a file, or resume a download that broke off. A target that exists and has the right checksum is kept.

    Args:
        url: http:// or https:// address.
        target: where to save the file; its folder is created.
        checksum: what the file must have (see `has_checksum`); None: it is not verified.
        pause: seconds to wait before a broken connection is tried again; doubled each time, five attempts in all.

    Returns:
        The target.

    Raises:
        UserError: for other addresses, if the server refuses, the connection keeps breaking, the disk is full, the checksum is
            wrong, or the target exists with another checksum.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} can't be downloaded: the address must begin with http:// or https://")
    if target.is_file():
        if checksum is None or has_checksum(target, checksum):
            return target
        raise UserError(f"{target} exists and its checksum is not {checksum}: delete it, or correct the checksum")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(_ATTEMPTS):
        try:
            _download_rest(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            _raise_if_final(url, part, error, last=attempt == _ATTEMPTS - 1)
            logger.warning("%s: %s; trying again", target.name, getattr(error, "reason", None) or error)
            time.sleep(pause * 2**attempt)
    if checksum is not None and not has_checksum(part, checksum):
        part.unlink()
        raise UserError(
            f"what {url} sent is not the file expected (its checksum is not {checksum}); it was deleted: try again later"
        )
    part.replace(target)
    return target


def _raise_if_final(url: str, part: Path, error: Exception, last: bool) -> None:
    """Raise UserError if a failed download should not be tried again.

    Args:
        url: address of the file.
        part: file with what was received so far.
        error: error of the attempt.
        last: True if this was the last attempt.
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
    """Download what is missing at the end of the file `part`.

    Raises:
        OSError: if the connection breaks.
        HTTPException: if the connection breaks within the headers.
        UserError: if the disk has no room for the file.
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
            return  # it was complete and only not verified yet
        if error.code == 416:
            part.unlink()  # it is longer than the file, so not the beginning of it
            raise ConnectionError("the server's file is shorter than what was received of it") from None
        raise
    with reply:
        content_range = reply.headers.get("Content-Range") or ""
        if received and (reply.status != 206 or not content_range.startswith(f"bytes {received}-")):
            received = 0  # a server that can't resume sends the whole file again
        length = reply.headers.get("Content-Length")
        size = received + int(length) if length else None
        require_disk_space(part.parent, (size or received) - received, part.name)
        with part.open("ab" if received else "wb") as file:
            _copy_stream(reply, file, received, size, part.name.removesuffix(".part"))
        if size is not None and part.stat().st_size < size:
            raise ConnectionError(f"the connection broke off at {_format_bytes(part.stat().st_size)} of {_format_bytes(size)}")


def _copy_stream(source: IO[bytes], file: IO[bytes], received: int, size: int | None, name: str) -> None:
    """Copy a stream to a file and show progress, which starts at `received` of `size` bytes."""
    with tqdm(desc=name, initial=received, total=size, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        while block := source.read(_BLOCK):
            file.write(block)
            bar.update(len(block))


def unpack(archive: Path, top: str, to: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Unpack a folder of a tar archive to a new folder, which appears complete or not at all.

    Args:
        archive: the archive.
        top: folder in the archive whose content is unpacked.
        to: the new folder.
        wanted: tells by a member's name whether to unpack it.

    Raises:
        UserError: if the archive is damaged or has no such folder, the disk is full, or a member would be written outside the
            folder (`../`, an absolute path, a link or a device). Nothing is left behind then.
    """
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
        raise UserError(f"{archive} can't be unpacked: {error}; delete it and download it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _format_bytes(count: int) -> str:
    """Write a number of bytes as text: "1.2 GB", "3.4 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
