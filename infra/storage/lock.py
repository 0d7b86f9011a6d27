"""A lock file that lets only one run at a time do its work, even if the runs are on different machines.

The lock is a small JSON file, which is written only if it is absent or unchanged (see `conditional.py`). It contains the time
when it expires. Its holder postpones this time again and again, so if a run dies, its lock expires by itself. The clocks of the
machines may differ only by a small part of the time for which a lock is valid. Each machine must have its own host name, as
Kubernetes pods have.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from infra import storage
from infra.errors import UserError


class Locked(Exception):
    """An error which says that another run holds the lock. Commands then exit with code 3.

    The message names the other run, its machine and process, and the time when it took the lock.
    """


@dataclass(frozen=True)
class LockRecord:
    """The content of a lock file.

    Attributes:
        holder: name of the run that holds the lock, for messages.
        host: host name of the machine on which that run works.
        pid: process id of that run.
        since: time when that run took the lock, as a Unix time.
        expires: time when the lock expires unless it is renewed, as a Unix time.
        token: random text, which distinguishes holders of the same name.
    """

    holder: str
    host: str
    pid: int
    since: float
    expires: float
    token: str

    def to_bytes(self) -> bytes:
        """Return the record as the content of the lock file (JSON)."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


class Lock:
    """A lock that this process holds. A background thread renews it until `release` is called."""

    def __init__(self, uri: str, record: LockRecord, ttl_seconds: float) -> None:
        """Start the thread that renews the lock. The lock file must already have been written.

        Args:
            uri: the lock file, local or s3://.
            record: the content of the lock file.
            ttl_seconds: time for which the lock is valid after each renewal. It is renewed whenever a third of it has passed.
        """
        self.uri = uri
        self._record, self._ttl = record, ttl_seconds
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Return whether another run may hold the lock now, because it took the lock over or the lock was not renewed in time."""
        return self._lost.is_set() or time.time() >= self._record.expires

    def _renew(self) -> None:
        """Renew the lock again and again until it is released or lost. The background thread runs this."""
        while not self._released.wait(self._ttl / 3):
            try:
                renewed = replace(self._record, expires=time.time() + self._ttl)
                if storage.exchange(self.uri, self._own_content(), renewed.to_bytes()):
                    self._record = renewed
                else:
                    self._lost.set()
                    return
            except (UserError, OSError):
                continue  # storage does not answer, despite retries; it may come back before the lock expires

    def _own_content(self) -> bytes:
        """Return the content that the lock file has if this process still holds the lock.

        This is the content of the file if it has the token of this process, else the last record that this process wrote. The
        two differ if the file was renewed on S3, but the answer of the server was lost.
        """
        with suppress(FileNotFoundError):
            content = storage.read_bytes(self.uri)
            if _parse(self.uri, content).token == self._record.token:
                return content
        return self._record.to_bytes()

    def release(self) -> None:
        """Stop renewing the lock, and delete the lock file if this process still holds the lock.

        Storage errors are ignored, because a lock file that can't be deleted expires by itself.
        """
        self._released.set()
        self._thread.join()
        with suppress(UserError, OSError):
            storage.exchange(self.uri, self._own_content(), None)


@contextmanager
def hold_lock(uri: str, holder: str, ttl_seconds: float = 600) -> Iterator[Lock]:
    """Hold a lock for the duration of a `with` statement. If another run holds the lock, raise an error instead of waiting.

    Args:
        uri: the lock file, local or s3://.
        holder: name of this run, for the message that other runs get.
        ttl_seconds: time for which the lock is valid after each renewal. It is renewed whenever a third of this time has passed.
            If it is not renewed in time, other runs may take it over.

    Yields:
        The lock. Check that its `lost` is False before writing anything that only the holder of the lock may write.

    Raises:
        Locked: if another run holds the lock.
        UserError: if the file at `uri` is not a lock, or the storage can't be used.
    """
    lock = Lock(uri, _acquire(uri, holder, ttl_seconds), ttl_seconds)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(uri: str, holder: str, ttl_seconds: float) -> LockRecord:
    """Take the lock: write the lock file if there is none, or if its lock has expired or its holder has died.

    Args:
        uri: the lock file, local or s3://.
        holder: name of this run.
        ttl_seconds: time from now until the lock expires, unless it is renewed.

    Returns:
        The record that was written.

    Raises:
        Locked: if another run holds the lock.
        UserError: if the file at `uri` is not a lock, or the storage can't be used.
    """
    now = time.time()
    ours = LockRecord(holder, socket.gethostname(), os.getpid(), now, now + ttl_seconds, uuid.uuid4().hex)
    while not storage.exchange(uri, None, ours.to_bytes()):
        try:
            content = storage.read_bytes(uri)
        except FileNotFoundError:  # the other run has just released the lock
            continue
        theirs = _parse(uri, content)
        if theirs.expires > time.time() and not _process_is_gone(theirs):
            raise Locked(_locked_message(uri, theirs))
        if storage.exchange(uri, content, ours.to_bytes()):
            break
    return ours


def _process_is_gone(record: LockRecord) -> bool:
    """Return whether a lock is held by a process on this machine that has ended, so that it can be taken over at once."""
    if record.host != socket.gethostname():
        return False
    try:
        os.kill(record.pid, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists and belongs to another user
        return False
    return False


def _parse(uri: str, content: bytes) -> LockRecord:
    """Decode the content of a lock file.

    Args:
        uri: the lock file, for the error message.
        content: the content of the file.

    Returns:
        The record in the file.

    Raises:
        UserError: if the content is not that of a lock file.
    """
    try:
        return LockRecord(**json.loads(content))
    except (ValueError, TypeError):
        raise UserError(f"{uri} is not a lock file of this program: delete it if nobody needs it") from None


def _locked_message(uri: str, theirs: LockRecord) -> str:
    """Return the error message that names the holder of a lock and says when the lock expires.

    Args:
        uri: the lock file.
        theirs: the content of the lock file, which describes the run that holds the lock.
    """
    since, until = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") for t in (theirs.since, theirs.expires))
    return (
        f"{theirs.holder} holds the lock {uri} since {since} (process {theirs.pid} on {theirs.host}); "
        f"wait until it ends: if it has died, the lock expires by itself at {until}"
    )
