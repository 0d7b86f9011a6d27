"""Write files only while a run holds its lock, also from other processes and machines."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra import storage
from infra.errors import Interrupted
from infra.storage.lock import read_record


@dataclass(frozen=True)
class LockGuard:
    """Writes files for a run as long as no other run has taken its lock. It is made of a lock's `uri` and `token`.

    It can be sent to other processes.

    A process may be suspended for longer than its lock is valid, and wake after another run has taken the lock. It then can't
    overwrite the files of that run: a write succeeds only if the file still has the content that it had while the lock was held.

    Attributes:
        uri: the lock file, local or in a bucket.
        token: random text in the lock file that distinguishes the holder from all others.
    """

    uri: str
    token: str

    def check(self) -> None:
        """Raise Interrupted if another run has taken the lock. The lock file is read each time."""
        theirs = read_record(self.uri)
        if theirs is None or theirs.token != self.token:
            who = theirs.who if theirs else "another run"
            raise Interrupted(f"{who} took the lock {self.uri}: only the results of that run are kept")

    def write(self, uri: str, data: bytes) -> None:
        """Write a file, or raise an error if another run has taken the lock.

        Args:
            uri: the file, local or in a bucket. Only holders of the lock write to it.
            data: content of the file. Runs with different results must write different contents.

        Raises:
            Interrupted: if another run has taken the lock. The file is then unchanged, or that run writes it after this one.
            UserError: if the storage can't be used.
        """
        while True:
            old = None
            with suppress(FileNotFoundError):
                old = storage.read_bytes(uri)
            self.check()
            # If this process is suspended here, and another run writes the file meanwhile, the compare-and-swap fails.
            if old == data or storage.compare_and_swap(uri, old, data):
                return

    def write_json(self, uri: str, value: Any) -> None:
        """Write a JSON value to a file, as `write` does."""
        self.write(uri, (json.dumps(value, indent=1) + "\n").encode())
