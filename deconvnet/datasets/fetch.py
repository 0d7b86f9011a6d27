"""Large files over HTTP: with progress, resumed where they broke off, checked, and unpacked with nothing outside the folder.

A download grows in `<file>.part` and gets its name when its checksum is right; an archive is unpacked aside and renamed.
"""

import errno
import hashlib
import http.client
import shutil
import sys
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

_BLOCK = 1 << 20
_TRIES = 5
_PATIENCE = 60.0  # s without a byte before a connection counts as broken
_RESERVE = 100_000_000  # bytes of disk left free


def check_sum(path: Path, checksum: str) -> bool:
    """True if the file has `checksum`: "md5:<hex>" or "sha256:<hex>", where fewer digits compare the first ones.

    Raises UserError where `checksum` is written otherwise.
    """
    kind, _, expected = checksum.lower().partition(":")
    if kind not in ("md5", "sha256") or len(expected) < 8 or set(expected) - set("0123456789abcdef"):
        raise UserError(f"the checksum {checksum!r} must be written md5:HEX or sha256:HEX, with 8 digits or more")
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest().startswith(expected)


def need_disk(folder: Path, size: int, what: str) -> None:
    """Raise UserError if the disk of `folder` has no room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if free < size + _RESERVE:
        raise UserError(f"{what} needs {_bytes(size + _RESERVE)} free in {folder}, which has {_bytes(free)}: make room there")


def fetch(url: str, target: Path, checksum: str | None = None, pause: float = 2.0) -> Path:
    """Download `url` to `target`, or go on with a download that broke off; a file that is there and right is kept.

    A broken connection is tried again, after `pause` seconds at first and twice as long each time. Raises UserError: an address
    that is no http(s) or gives no file, a connection that keeps breaking, a full disk, a wrong checksum.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} can't be downloaded: the address must begin with http:// or https://")
    if target.is_file():
        if checksum is None or check_sum(target, checksum):
            return target
        raise UserError(f"{target} is there already and its checksum is not {checksum}: delete it, or mend the checksum")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(_TRIES):
        try:
            _transfer(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            _give_up(url, part, error, last=attempt == _TRIES - 1)
            tqdm.write(f"{target.name}: {getattr(error, 'reason', None) or error}; trying again", file=sys.stderr)
            time.sleep(pause * 2**attempt)
    if checksum is not None and not check_sum(part, checksum):
        part.unlink()
        raise UserError(
            f"what {url} sent is not the file expected (its checksum is not {checksum}); it was deleted: try again later"
        )
    part.replace(target)
    return target


def _give_up(url: str, part: Path, error: Exception, last: bool) -> None:
    """Raise UserError if trying again is of no use."""
    if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
        raise UserError(f"{url} can't be downloaded: the server answers {error.code} {error.reason}") from None
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"{part} can't be written: {error.strerror}") from None
    if last:
        so_far = part.stat().st_size if part.exists() else 0
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} can't be downloaded ({reason}); {_bytes(so_far)} are kept in {part}, and the same command goes on from there"
        ) from None


def _transfer(url: str, part: Path) -> None:
    """Append to `part` what it lacks. Raises OSError or HTTPException where the connection breaks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "deconvnet", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        reply = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if error.code == 416 and total == str(have):
            return  # it was complete, only not yet checked
        if error.code == 416:
            part.unlink()  # longer than the file: not the start of it
            raise ConnectionError("the server's file is shorter than what was fetched of it") from None
        raise
    with reply:
        if have and (reply.status != 206 or not (reply.headers.get("Content-Range") or "").startswith(f"bytes {have}-")):
            have = 0  # a server that can't resume sends all of it again
        length = reply.headers.get("Content-Length")
        size = have + int(length) if length else None
        need_disk(part.parent, (size or have) - have, part.name)
        with part.open("ab" if have else "wb") as file:
            _pour(reply, file, have, size, part.name.removesuffix(".part"))
        if size is not None and part.stat().st_size < size:
            raise ConnectionError(f"the connection broke off at {_bytes(part.stat().st_size)} of {_bytes(size)}")


def _pour(source: IO[bytes], file: IO[bytes], have: int, size: int | None, name: str) -> None:
    with tqdm(desc=name, initial=have, total=size, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        while block := source.read(_BLOCK):
            file.write(block)
            bar.update(len(block))


def unpack(archive: Path, top: str, to: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Unpack the `wanted` members below the folder `top` of a tar archive to the new folder `to`, which appears whole.

    Raises UserError, with nothing left behind: a damaged archive, one without `top`, a full disk, or a member that would land
    outside (`../`, an absolute path, a link or a device).
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = to.with_name(f".{to.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        with tarfile.open(archive) as tar, tqdm(desc=f"unpacking {archive.name}", unit="file") as bar:
            for member in tar:
                if wanted(member.name):
                    need_disk(aside, member.size, f"unpacking {archive.name}")
                    tar.extract(member, aside, filter="data")
                    bar.update()
        if not (aside / top).is_dir():
            raise UserError(f"{archive} holds no folder {top}: it is not the archive expected; delete it")
        (aside / top).replace(to)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}; nothing of it was kept") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive} can't be unpacked: {error}; delete it and download it again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
