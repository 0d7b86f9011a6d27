"""A lock in storage, for runs on any machine: one run holds it at a time, and the lock of a run that died expires.

The lock is a small JSON file that is written only if it is absent or unchanged (`conditional.py`). Its holder renews the time of
expiry while it runs. Clocks of the machines must agree to within a small part of the time to live, and their host names must
differ (those of Kubernetes pods do).
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
    """Another run holds the lock; the message names it, its start and its machine. The commands exit with code 3."""


@dataclass(frozen=True)
class LockRecord:
    """Content of a lock file.

    Attributes:
        holder: name of the run that holds the lock, for messages.
        host: its machine.
        pid: its process id there.
        since: when it took the lock, as a Unix time.
        expires: when the lock expires unless it is renewed, as a Unix time.
        token: random text that tells apart holders of the same name.
    """

    holder: str
    host: str
    pid: int
    since: float
    expires: float
    token: str

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


class Lock:
    """A lock that this process holds; a thread renews it until `release`."""

    def __init__(self, uri: str, record: LockRecord, ttl_seconds: float) -> None:
        """Start renewing.

        Args:
            uri: the lock file.
            record: its content, already written.
            ttl_seconds: time to live: a third of it passes between renewals.
        """
        self.uri = uri
        self._record, self._ttl = record, ttl_seconds
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """True once another run may hold the lock: it was taken over, or it expired because it could not be renewed."""
        return self._lost.is_set() or time.time() >= self._record.expires

    def _renew(self) -> None:
        """Postpone the time of expiry again and again, until the lock is released or lost."""
        while not self._released.wait(self._ttl / 3):
            try:
                renewed = replace(self._record, expires=time.time() + self._ttl)
                if storage.replace_if_same(self.uri, renewed.to_bytes(), self._own_content()):
                    self._record = renewed
                else:
                    self._lost.set()
                    return
            except (UserError, OSError):
                continue  # storage is away for longer than its retries last; it may come back before the lock expires

    def _own_content(self) -> bytes:
        """What the lock file holds if it is still ours.

        Usually that is the last record. If the answer to a renewal was lost, it is a newer record with the same token, which is
        read from the file.
        """
        with suppress(FileNotFoundError):
            content = storage.read_bytes(self.uri)
            if _parse(self.uri, content).token == self._record.token:
                return content
        return self._record.to_bytes()

    def release(self) -> None:
        """Stop renewing, and delete the lock file if it is still ours. Never raises: a file that can't be deleted expires."""
        self._released.set()
        self._thread.join()
        with suppress(UserError, OSError):
            storage.remove_if_same(self.uri, self._own_content())


@contextmanager
def hold_lock(uri: str, holder: str, ttl_seconds: float = 600) -> Iterator[Lock]:
    """Hold a lock while the block runs. A lock that another run holds is not waited for.

    Args:
        uri: the lock file, local or s3://.
        holder: name of this run, for the message that others get.
        ttl_seconds: time to live: the lock is renewed every third of it, and others may take it over once it has expired.

    Yields:
        The lock; check `lost` before writing what only its holder may write.

    Raises:
        Locked: if another run holds the lock.
        UserError: if the file at `uri` is not a lock, or storage can't be used.
    """
    lock = Lock(uri, _acquire(uri, holder, ttl_seconds), ttl_seconds)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(uri: str, holder: str, ttl_seconds: float) -> LockRecord:
    """Write our record to the lock file, in place of none or of an expired one. Raises Locked."""
    now = time.time()
    ours = LockRecord(holder, socket.gethostname(), os.getpid(), now, now + ttl_seconds, uuid.uuid4().hex)
    while not storage.put_if_absent(uri, ours.to_bytes()):
        try:
            content = storage.read_bytes(uri)
        except FileNotFoundError:  # released since the last line
            continue
        theirs = _parse(uri, content)
        if theirs.expires > time.time() and not _process_is_gone(theirs):
            raise Locked(_locked_message(uri, theirs))
        if storage.replace_if_same(uri, ours.to_bytes(), content):
            break
    return ours


def _process_is_gone(record: LockRecord) -> bool:
    """True if the holder was a process of this machine that has ended, so that its lock can be taken over before it expires."""
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
    """Read a lock file's content. Raises UserError if it is something else."""
    try:
        return LockRecord(**json.loads(content))
    except (ValueError, TypeError):
        raise UserError(f"{uri} is not a lock file of this program: delete it if nobody needs it") from None


def _locked_message(uri: str, theirs: LockRecord) -> str:
    """Who holds the lock, and when it expires."""
    since, until = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") for t in (theirs.since, theirs.expires))
    return (
        f"{theirs.holder} holds the lock {uri} since {since} (process {theirs.pid} on {theirs.host}); "
        f"wait until it ends: if it has died, the lock expires by itself at {until}"
    )
