"""A lock that lies in storage, for runs on any machine: one holder at a time, and a dead one's lock expires.

It is one small JSON object, written only if it is absent or still what was read (S3's conditional put; on disk, under flock). The
machines' clocks must agree to within a small part of the time to live, and their names differ (as those of pods do).
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
    """Somebody else holds the lock; the message says who, since when and where. The doors exit with code 3."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: what it is called, where it runs, and, as Unix times, since when and until when if it does not renew."""

    holder: str
    host: str
    pid: int
    since: float
    expires: float
    token: str  # tells two holders of the same name apart


class Lock:
    """A lock that is held, and kept by a thread until `release`."""

    def __init__(self, uri: str, mine: Holder, ttl_seconds: float) -> None:
        self.uri = uri
        self._mine, self._ttl = mine, ttl_seconds
        self._lost, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """True once somebody else may hold it: it was taken over, or it could not be renewed before it expired."""
        return self._lost.is_set() or time.time() >= self._mine.expires

    def _renew(self) -> None:
        while not self._ended.wait(self._ttl / 3):
            try:
                renewed = replace(self._mine, expires=time.time() + self._ttl)
                if storage.replace_if_same(self.uri, _bytes(renewed), self._standing()):
                    self._mine = renewed
                else:
                    self._lost.set()
                    return
            except (UserError, OSError):
                continue  # storage is away for longer than it is waited for; until the lock expires it may come back

    def _standing(self) -> bytes:
        """What lies there, if it is of ours: a renewal may have been written though its answer was lost; else what should."""
        with suppress(FileNotFoundError):
            found = storage.read_bytes(self.uri)
            if _holder(self.uri, found).token == self._mine.token:
                return found
        return _bytes(self._mine)

    def release(self) -> None:
        """Give it up, if it is still ours. Never raises: a lock that can't be deleted expires."""
        self._ended.set()
        self._thread.join()
        with suppress(UserError, OSError):
            storage.remove_if_same(self.uri, self._standing())


@contextmanager
def held(uri: str, holder: str, ttl_seconds: float = 600) -> Iterator[Lock]:
    """Hold the lock at `uri` (a file's, local or s3://) as `holder` for the time of the block, or raise Locked at once.

    It is renewed every third of `ttl_seconds`; one that nobody has renewed for that long is taken over.
    """
    lock = Lock(uri, _taken(uri, holder, ttl_seconds), ttl_seconds)
    try:
        yield lock
    finally:
        lock.release()


def _taken(uri: str, holder: str, ttl_seconds: float) -> Holder:
    now = time.time()
    mine = Holder(holder, socket.gethostname(), os.getpid(), now, now + ttl_seconds, uuid.uuid4().hex)
    while not storage.put_if_absent(uri, _bytes(mine)):
        try:
            standing = storage.read_bytes(uri)
        except FileNotFoundError:  # released in between
            continue
        theirs = _holder(uri, standing)
        if theirs.expires > time.time() and not _died_here(theirs):
            raise Locked(_sentence(uri, theirs))
        if storage.replace_if_same(uri, _bytes(mine), standing):
            break
    return mine


def _died_here(theirs: Holder) -> bool:
    """True for a process of this machine that is no more: its lock need not be waited for."""
    if theirs.host != socket.gethostname():
        return False
    try:
        os.kill(theirs.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        return False
    return False


def _holder(uri: str, data: bytes) -> Holder:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        raise UserError(f"{uri} is not a lock of ours: delete it if nobody needs it") from None


def _bytes(value: Holder) -> bytes:
    return (json.dumps(asdict(value), indent=1) + "\n").encode()


def _sentence(uri: str, theirs: Holder) -> str:
    since, until = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") for t in (theirs.since, theirs.expires))
    return (
        f"{theirs.holder} holds the lock {uri} since {since} (process {theirs.pid} on {theirs.host}); "
        f"wait until it ends: if it has died, the lock expires by itself at {until}"
    )
