"""A lock file that lets only one run at a time do its work, even if the runs are on different machines.

The lock is a small JSON file, which is written only if it is absent or unchanged (see `conditional.py`). It contains the time
when it expires. The holder renews the lock regularly, so the lock of a dead run expires by itself. The machines' clocks must
agree to within a small fraction of the lock's lifetime. A lock is taken over at once if its holder is known to be dead, that is,
if its process ran on this machine (in this container) since the last boot and no longer exists.

Releasing a lock does not delete its file, because the file counts how often the lock was taken. This count is the fencing token:
of two holders, the one with the lower number had lost the lock before the other took it.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from infra import storage
from infra.errors import Interrupted, UserError


class Locked(Exception):
    """An error that is raised because another run holds the lock. Commands then exit with code 3.

    A lock is a file that lets only one run at a time do its work. The message names the other run, its machine and
    process, and the time when it took the lock.
    """


@dataclass(frozen=True)
class LockRecord:
    """The content of a lock file, a JSON file that lets only one run at a time do its work.

    Attributes:
        holder: name of the run that holds the lock, for messages.
        host: host name of the machine on which that run works.
        pid: process id of that run.
        since: time when that run took the lock, as a Unix time.
        expires: time when the lock expires unless it is renewed, as a Unix time; 0 if it was released.
        token: random text, which distinguishes holders of the same name.
        fence: fencing token: how often the lock has been taken.
        kernel: id of the running operating system kernel and of the namespace in which `pid` is valid; "" if the system can't
            tell.
        started: time when the process started, in clock ticks since the kernel started; "" if the system can't tell.
    """

    holder: str
    host: str
    pid: int
    since: float
    expires: float
    token: str
    fence: int = 1
    kernel: str = ""
    started: str = ""

    @property
    def who(self) -> str:
        """Return the command, process and machine that hold the lock, for messages."""
        return f"{self.holder} (process {self.pid} on {self.host})"

    def to_bytes(self) -> bytes:
        """Return the record as the content of the lock file (JSON)."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


class Lock:
    """A lock that this process holds and other runs can't take. A background thread renews it until `release` is called."""

    def __init__(self, uri: str, record: LockRecord, ttl_seconds: float) -> None:
        """Start the thread that renews the lock. The lock file must already have been written.

        Args:
            uri: the lock file, local or in a bucket.
            record: the content of the lock file.
            ttl_seconds: time for which the lock is valid after each renewal. It is renewed whenever a third of it has passed.
        """
        self.uri = uri
        self._record, self._ttl = record, ttl_seconds
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> int:
        """Return the fencing token: how often this lock has been taken, including this time. It grows with each new holder."""
        return self._record.fence

    @property
    def token(self) -> str:
        """Return the random text in the lock file that distinguishes this holder from all others."""
        return self._record.token

    @property
    def lost(self) -> bool:
        """Return whether another run may hold the lock now, because it took the lock over or the lock was not renewed in time.

        This does not read the lock file, so it may notice only at the next renewal that another run took the lock. `still_held`
        notices it at once.
        """
        return self._lost.is_set() or time.time() >= self._record.expires

    def still_held(self) -> bool:
        """Read the lock file, and return whether this process still holds the lock.

        If another run has taken the lock, `lost` is True from then on.

        Raises:
            UserError: if the storage can't be used, or the file is no longer a lock.
        """
        theirs = read_record(self.uri)
        if theirs is None or theirs.token != self._record.token:
            self._lost.set()
        return not self.lost

    def check(self) -> None:
        """Raise an error if the lock is lost. Call this before writing anything that only the holder of the lock may write.

        Raises:
            Interrupted: if the lock is lost. The message names the run that took the lock, or says that the lock was not renewed
                in time.
        """
        if not self.lost:
            return
        theirs = None
        with suppress(UserError, OSError):
            theirs = read_record(self.uri)
        if theirs is None or theirs.token == self._record.token:
            raise Interrupted(
                f"the lock {self.uri} was not renewed in time (was its storage unreachable, or this process suspended?): "
                "the same command resumes"
            )
        raise Interrupted(
            f"{theirs.who} took the lock {self.uri} at {_utc(theirs.since)}, because this "
            "run had not renewed it in time: only the results of that run are kept"
        )

    def _renew(self) -> None:
        """Renew the lock at regular intervals until it is released or lost. The background thread runs this."""
        while not self._released.wait(self._ttl / 3):
            try:
                renewed = replace(self._record, expires=time.time() + self._ttl)
                if storage.compare_and_swap(self.uri, self._own_content(), renewed.to_bytes()):
                    self._record = renewed
                else:
                    self._lost.set()
                    return
            except (UserError, OSError):
                continue  # storage does not answer, despite retries; it may come back before the lock expires

    def _own_content(self) -> bytes:
        """Return the content that the lock file must have if this process still holds the lock.

        If the file has the token of this process, its content is returned. It may be newer than `_record`, because a renewal on
        S3 can succeed although the server's answer is lost. Otherwise `_record` is returned.
        """
        with suppress(FileNotFoundError):
            content = storage.read_bytes(self.uri)
            if _parse(self.uri, content).token == self._record.token:
                return content
        return self._record.to_bytes()

    def release(self) -> None:
        """Stop renewing the lock, and mark it as free in its file if this process still holds it.

        Storage errors are ignored, because a lock that can't be released expires by itself.
        """
        self._released.set()
        self._thread.join()
        with suppress(UserError, OSError):
            storage.compare_and_swap(self.uri, self._own_content(), replace(self._record, expires=0.0).to_bytes())


def check_held(lock: Lock) -> None:
    """Read the file of a lock, and raise Interrupted if another run has taken the lock."""
    lock.still_held()
    lock.check()


@contextmanager
def hold_lock(uri: str, holder: str, ttl_seconds: float = 600, try_again: Callable[[], bool] = lambda: False) -> Iterator[Lock]:
    """Hold a lock for the duration of a `with` statement. By default, if another run holds the lock, raise an error.

    Args:
        uri: the lock file, local or in a bucket.
        holder: name of this run, for the message that other runs get.
        ttl_seconds: time for which the lock is valid after each renewal. It is renewed whenever a third of this time has passed.
            If it is not renewed in time, other runs may take it over.
        try_again: called if another run holds the lock. It may wait, and returns whether to try once more.

    Yields:
        The lock. Call its `check` before writing anything that only the holder of the lock may write.

    Raises:
        Locked: if another run holds the lock.
        UserError: if the file at `uri` is not a lock, or the storage can't be used.
    """
    while True:
        try:
            record = _acquire(uri, holder, ttl_seconds)
            break
        except Locked:
            if not try_again():
                raise
    lock = Lock(uri, record, ttl_seconds)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(uri: str, holder: str, ttl_seconds: float) -> LockRecord:
    """Take the lock by writing the lock file.

    This is possible if there is no such file, or if the lock in it has expired, was released, or has a holder that has died.

    Args:
        uri: the lock file, local or in a bucket.
        holder: name of this run.
        ttl_seconds: time from now until the lock expires, unless it is renewed.

    Returns:
        The record that was written.

    Raises:
        Locked: if another run holds the lock.
        UserError: if the file at `uri` is not a lock, or the storage can't be used.
    """
    now = time.time()
    pid = os.getpid()
    ours = LockRecord(
        holder, socket.gethostname(), pid, now, now + ttl_seconds, uuid.uuid4().hex, 1, _kernel(), _process_start(pid)
    )
    while not storage.compare_and_swap(uri, None, ours.to_bytes()):
        try:
            content = storage.read_bytes(uri)
        except FileNotFoundError:  # somebody has just deleted it
            continue
        theirs = _parse(uri, content)
        if theirs.expires > time.time() and not _process_is_gone(theirs):
            raise Locked(_locked_message(uri, theirs))
        ours = replace(ours, fence=theirs.fence + 1)
        if storage.compare_and_swap(uri, content, ours.to_bytes()):
            break
    return ours


def _process_is_gone(record: LockRecord) -> bool:
    """Return whether the process that holds a lock has certainly ended, so that its lock can be taken over at once.

    The answer is False if the holder ran on another machine, in another container, or before this machine was last started. Its
    process can't be found from here, so the lock has to expire.

    Args:
        record: the content of the lock file.
    """
    if not (record.kernel and record.started) or (record.host, record.kernel) != (socket.gethostname(), _kernel()):
        return False
    try:
        os.kill(record.pid, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists and belongs to another user
        pass
    return _process_start(record.pid) not in ("", record.started)  # another process may have got the same id


def _kernel() -> str:
    """Return the ids of the running kernel and of this process's namespace of process ids; "" if the system can't tell.

    The kernel gets a new id at each start of the machine. Containers on a machine share the kernel, but each container has a
    namespace of its own.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Return when a process of this machine started, in clock ticks since the operating system started.

    Args:
        pid: id of the process.

    Returns:
        The number as text; "ended" if the process has ended but its parent has not collected its exit status yet; "" if there is
        no such process or the system can't tell.
    """
    try:
        # Fields 3 and 22 of the file are the state and the start; field 2, the name in brackets, may contain anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]


def read_record(uri: str) -> LockRecord | None:
    """Return the content of a lock file; None if there is none."""
    try:
        return _parse(uri, storage.read_bytes(uri))
    except FileNotFoundError:
        return None


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
    return (
        f"{theirs.who} has held the lock {uri} since {_utc(theirs.since)}: wait until it ends; if it has died, the lock expires "
        f"by itself at {_utc(theirs.expires)}"
    )


def _utc(seconds: float) -> str:
    """Return a Unix time, in seconds, as text for messages, such as "2026-03-01 12:00:00 UTC"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
